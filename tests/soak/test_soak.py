"""Hours of the demo clip as a camera: memory, descriptors and threads stay where they were.

`make soak` runs ten minutes, SOAK_MINUTES=480 a night.
"""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path

import pytest

from support.brokers import Mosquitto
from support.harness import NodeProcess, Receiver, tally
from support.paths import CLIP
from support.patience import wait_for

pytestmark = pytest.mark.soak

MINUTES = float(os.environ.get("SOAK_MINUTES", "10"))
SAMPLE_SECONDS = 1.0
SAMPLES = 15  # whose median is compared, before the end of the first minute and of the run
MOST_GROWTH = 0.02


class Use:
    """What a process holds: resident memory in MiB, open descriptors, threads."""

    def __init__(self, pid: int) -> None:
        process = Path(f"/proc/{pid}")
        pages = int((process / "statm").read_text().split()[1])
        self.memory = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
        self.descriptors = len(list((process / "fd").iterdir()))
        self.threads = len(list((process / "task").iterdir()))


def typical(uses: list[Use]) -> tuple[float, int, int]:
    return (
        statistics.median(u.memory for u in uses),
        statistics.mode(u.descriptors for u in uses),
        statistics.mode(u.threads for u in uses),
    )


def test_a_node_holds_no_more_after_a_while(tmp_path: Path) -> None:
    assert MINUTES >= 2, "SOAK_MINUTES: the first minute is for settling"
    broker = Mosquitto(tmp_path, "allow_anonymous true\nmax_queued_messages 0\n")
    receiver = Receiver(broker.port)
    # A node that leaves no core dump shows its descriptors to root alone.
    dumpable = "import edge.run\nedge.run.forbid_core_dumps = lambda: None"
    node = NodeProcess(tmp_path, broker.url, camera=f"loop:{CLIP}", more=dumpable)
    text = node.config.read_text().replace("backend: fake", "backend: ort")
    node.config.write_text(text.replace("width: 160, height: 128", "width: 640, height: 480"))
    node.start()
    assert node.process is not None
    began, uses = time.monotonic(), []
    try:
        while time.monotonic() - began < 60 * MINUTES:
            time.sleep(SAMPLE_SECONDS)
            assert node.process.poll() is None, node.log.read_text()[-2000:]
            uses.append((time.monotonic() - began, Use(node.process.pid)))
        first = typical([use for moment, use in uses if moment <= 60][-SAMPLES:])
        last = typical([use for _, use in uses][-SAMPLES:])
        assert node.stop() == 0
        # The broker has the last one, and may not have handed it on.
        wait_for(lambda: tally(node, receiver)[1] == 0, "all committed readings")
        committed, lost, doubled = tally(node, receiver)
    finally:
        node.end()
        receiver.close()
        broker.stop()
    growth = last[0] / first[0] - 1
    print(
        f"\nsoak {MINUTES:g} min: readings {committed} lost {lost} doubled {doubled}; after the first "
        f"minute / at the end: memory {first[0]:.1f} / {last[0]:.1f} MiB ({100 * growth:+.2f} %), "
        f"descriptors {first[1]} / {last[1]}, threads {first[2]} / {last[2]}"
    )
    assert committed > 50 * MINUTES
    assert (lost, doubled) == (0, 0)
    assert abs(growth) < MOST_GROWTH
    assert first[1:] == last[1:]
