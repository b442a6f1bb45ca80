"""What systemd hears from a node, over a real datagram socket, and what feeds the watchdog."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from edge.assemble import assemble
from edge.health.systemd import Systemd
from edge.settings import Settings
from support.paths import ROOT
from support.patience import PATIENCE


class Listener:
    """systemd's end of NOTIFY_SOCKET."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(path)
        self.heard: list[str] = []

    def listen(self, seconds: float, until: str = "") -> list[str]:
        """Hear for so long, and what waits then, however late this thread comes to it."""
        deadline = time.monotonic() + seconds
        while True:
            self.socket.settimeout(max(0.0, deadline - time.monotonic()))
            try:
                text = self.socket.recv(4096).decode()
            except (TimeoutError, BlockingIOError):
                break
            self.heard.append(text)
            if until and text.startswith(until):
                break
        return self.heard.copy()


@pytest.mark.process
def test_a_service_is_ready_after_its_first_frame_alive_after_and_says_that_it_stops(
    tmp_path: Path,
) -> None:
    listener = Listener(str(tmp_path / "notify"))
    config = tmp_path / "node.yaml"
    config.write_text("privacy:\n  legal_basis: 'safety: a drill of the watchdog'\n")
    node = subprocess.Popen(
        [sys.executable, "-m", "edge.run", "--camera", "test", "--config", config, "--broker", "-"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={
            **os.environ,
            "NOTIFY_SOCKET": str(tmp_path / "notify"),
            "WATCHDOG_USEC": "800000",
            "XDG_STATE_HOME": str(tmp_path),
        },
    )
    heard = listener.listen(PATIENCE, until="WATCHDOG=1")
    assert heard[0] == "STATUS=starting"
    assert heard.index("READY=1") < heard.index("WATCHDOG=1")
    if "STATUS=online" not in heard:
        assert "STATUS=online" in listener.listen(PATIENCE, until="STATUS=online")
    began = time.monotonic()
    before = len(listener.listen(0))
    listener.listen(2)
    fed = listener.heard[before:].count("WATCHDOG=1")
    quarters = (time.monotonic() - began) / 0.2
    assert fed <= quarters + 2, "every quarter of what systemd allows"
    for _ in range(4 - fed):  # on a machine that does other things
        assert listener.listen(PATIENCE, until="WATCHDOG=1")[-1] == "WATCHDOG=1"
    node.send_signal(signal.SIGTERM)
    assert "STOPPING=1" in listener.listen(PATIENCE, until="STOPPING=1")
    assert node.wait(PATIENCE) == 0


@pytest.mark.slow
def test_a_hang_in_the_pipeline_starves_the_watchdog(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, detector_file: Path
) -> None:
    listener = Listener(str(tmp_path / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "200000")
    settings = Settings.model_validate(
        {"camera": {"source": "test"}, "runtime": {"state": str(tmp_path), "backend": "fake"}}
    )
    stop, never = threading.Event(), threading.Event()
    node = assemble(settings, None, stop, threading.Event())
    runner = threading.Thread(target=node.run)
    runner.start()
    listener.listen(PATIENCE, until="WATCHDOG=1")
    hung = threading.Event()

    def hang(pixels: object) -> list[object]:
        hung.set()
        never.wait(PATIENCE)
        return []

    monkeypatch.setattr(node.pipeline.detector, "find", hang)
    assert hung.wait(PATIENCE)
    before = len(listener.listen(0.1))  # what was sent until then
    assert listener.listen(1.5)[before:] == []
    stop.set()
    never.set()
    runner.join(PATIENCE)
    assert not runner.is_alive()


def test_without_systemd_nothing_is_said_and_nothing_fails(tmp_path: Path) -> None:
    quiet = Systemd({})
    assert not quiet.service
    quiet.progress()
    gone = Systemd({"NOTIFY_SOCKET": str(tmp_path / "nobody"), "WATCHDOG_USEC": "rubbish"})
    assert gone.service
    gone.progress()
    gone.stopping()


def test_the_watchdog_of_another_process_is_not_ours() -> None:
    address = f"@edge-test-notify-{os.getpid()}"  # of the machine, which other tests have too
    listener = Listener(f"\0{address[1:]}")
    now = [0.0]
    ours = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "4000000", "WATCHDOG_PID": str(os.getpid())}
    systemd = Systemd(ours, lambda: now[0])
    for now[0] in (1.0, 1.5, 2.0, 2.9, 3.1):
        systemd.progress()
    assert listener.listen(0.2) == ["READY=1", "WATCHDOG=1", "WATCHDOG=1", "WATCHDOG=1"]
    other = Systemd({**ours, "WATCHDOG_PID": "1"}, lambda: now[0])
    other.progress()
    assert listener.listen(0.2)[4:] == ["READY=1"]
