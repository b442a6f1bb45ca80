"""What tests of all packages share, besides fixtures."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from edge.weights import locked, sha256

ROOT = Path(__file__).parents[1]
CLIP = ROOT / "demo" / "classroom.mp4"
PICTURES = ROOT / "demo" / "pictures"


@dataclass
class Done:
    code: int
    out: str
    err: str

    @property
    def last(self) -> str:
        """The one line that a user reads."""
        return self.err.strip().splitlines()[-1] if self.err.strip() else ""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Mosquitto:
    """A real broker on a free port, with a configuration of the test's."""

    def __init__(
        self,
        folder: Path,
        extra: str = "allow_anonymous true\n",
        tls: str = "",
        port: int | None = None,
    ) -> None:
        program = shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin")
        if program is None:
            pytest.skip("needs mosquitto (Debian: apt-get install mosquitto)")
        self.port = port or free_port()
        config = folder / "mosquitto.conf"
        config.write_text(f"listener {self.port} 127.0.0.1\n{tls}{extra}")
        if os.getuid() == 0:
            config.write_text(f"user root\n{config.read_text()}")
        self.url = f"{'mqtts' if tls else 'mqtt'}://127.0.0.1:{self.port}"
        self._command = [program, "-c", str(config)]
        self.log = folder / "mosquitto.log"
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with socket.socket() as knock:
                if knock.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.02)
        raise AssertionError("mosquitto did not start")

    def stop(self, how: int = signal.SIGTERM) -> None:
        self.process.send_signal(how)
        self.process.wait(timeout=10)


def original(detector_file: Path) -> bytes:
    """The published bytes, from the patched ones: every edit undone."""
    entry = locked()["yunet"]
    data = bytearray(detector_file.read_bytes())
    for offset, old, new in entry["patch"]["edits"]:
        assert data[offset : offset + 3] == bytes.fromhex(new)
        data[offset : offset + 3] = bytes.fromhex(old)
    assert sha256(bytes(data)) == entry["sha256"]
    return bytes(data)
