"""The node's own certificate: whether it is this node's, and when it ends, to be renewed in time."""

from __future__ import annotations

import re
import shutil
import ssl
import subprocess
from pathlib import Path

from edge.base.errors import SettingsError
from edge.settings import Settings

WARN_SECONDS = 60 * 86400.0
# A name as the kit's own authority gives it; what another authority writes there says nothing.
NODE = re.compile(r"[a-z0-9-]+/[a-z0-9-]+/[a-z0-9-]+")


def _openssl(file: Path, *words: str) -> str:
    """Ask openssl's program about a certificate; "" without either."""
    program = shutil.which("openssl")
    if program is None:
        return ""
    command = [program, "x509", "-noout", *words, "-in", str(file)]
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=10
        )
        return done.stdout
    except (OSError, subprocess.TimeoutExpired, ValueError):
        return ""  # what is wrong with it, the connection will say


def ends(file: Path) -> float | None:
    """Read when a certificate ends (seconds since 1970); None where it cannot be told."""
    try:
        answer = _openssl(file, "-enddate").strip()
        return float(ssl.cert_time_to_seconds(answer.removeprefix("notAfter=")))
    except ValueError:
        return None


def check_owner(settings: Settings) -> None:
    """Raise SettingsError where the certificate is another node's.

    A broker that goes by its name would refuse every message, in MQTT 3.1.1 without a word.
    """
    file = settings.broker.tls.certificate
    subject = _openssl(file, "-subject", "-nameopt", "multiline") if file else ""
    named = re.search(r"commonName\s*= (.*)", subject)
    if named and NODE.fullmatch(named[1]) and named[1] != settings.node.path:
        raise SettingsError(
            f"broker.tls.certificate {file} is {named[1]}'s, and this node is {settings.node.path}: "
            f"give its own (edge-flash ca issue), or set node.site, room and name to the certificate's"
        )


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
