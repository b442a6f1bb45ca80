"""A recorder as a school runs it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from support.brokers import Mosquitto
from support.paths import ROOT
from support.patience import PATIENCE, wait_for

# The kit's own, where a test runs in the environment of another program.
PYTHON = os.environ.get("KIT_PYTHON", sys.executable)


class Recording(subprocess.Popen[bytes]):
    """`edge-watch --record` in a process of its own, which hears the nodes once this returns."""

    def __init__(self, broker: Mosquitto, record: object, *more: str) -> None:
        command = [PYTHON, "-m", "edge.watch.run", "--broker", broker.url]
        self._log = Path(tempfile.mkstemp(suffix=".log", dir=broker.log.parent)[1])
        with self._log.open("wb") as log:
            super().__init__([*command, "--record", str(record), *more], cwd=ROOT, stderr=log)
        wait_for(lambda: "broker connected" in self.told() or self.poll() is not None, self.told)
        assert self.poll() is None, self.told()

    def told(self) -> str:
        return self._log.read_text()

    def end(self) -> None:
        self.send_signal(signal.SIGTERM)
        assert self.wait(PATIENCE) == 0
