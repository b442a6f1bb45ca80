"""The broker of the tests ends, at whatever moment it is told to."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from support.brokers import Mosquitto

# Listens, and has no ear for the first signal.
DEAF = """#!{python}
import signal, socket, sys
signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
words = open(sys.argv[2]).read().split()
with socket.create_server(("127.0.0.1", int(words[words.index("listener") + 1]))):
    while True:
        signal.pause()
"""


@pytest.mark.process
def test_a_broker_that_misses_its_first_signal_gets_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "mosquitto"
    program.write_text(DEAF.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    broker = Mosquitto(tmp_path)
    broker.stop()
    assert broker.process.poll() is not None
