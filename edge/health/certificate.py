"""When the node's own certificate ends, so that somebody renews it in time."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

WARN_SECONDS = 60 * 86400.0


def ends(file: Path) -> float | None:
    """Read when a certificate ends (seconds since 1970) by openssl's program; None without either."""
    program = shutil.which("openssl")
    if program is None:
        return None
    command = [program, "x509", "-noout", "-enddate", "-in", str(file)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
        return float(ssl.cert_time_to_seconds(done.stdout.strip().removeprefix("notAfter=")))
    except (OSError, subprocess.TimeoutExpired, ValueError):
        return None  # what is wrong with it, the connection will say


class Validity:
    """The end of one file's certificate, read again only when the file changed."""

    def __init__(self, file: Path | None) -> None:
        """file: PEM; None where the node shows no certificate."""
        self._file, self._seen = file, -1.0
        self._ends: float | None = None

    def ends(self) -> float | None:
        if self._file is None:
            return None
        try:
            changed = self._file.stat().st_mtime
        except OSError:
            return None
        if changed != self._seen:
            self._seen, self._ends = changed, ends(self._file)
        return self._ends
