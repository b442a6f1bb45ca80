"""What a reading costs the recorder and the database, as seconds of CPU, and that memory stays flat.

A thousand nodes' readings wait at the broker; `edge-watch --record` takes them as fast as it can.
Prints its figures: on a busy machine they take longer, and cost the same.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sqlalchemy as sa
from paho.mqtt import client as mqtt

from edge.watch.database import StoreError
from edge.watch.store import Store
from edge.watch.tables import COUNTS
from support.brokers import Mosquitto
from support.heard import counts
from support.paths import ROOT
from support.patience import wait_for
from support.postgres import Postgres

pytestmark = pytest.mark.scale

NODES = int(os.environ.get("SCALE_NODES", "1000"))
ROUNDS = int(os.environ.get("COST_ROUNDS", "60"))  # readings a node
TICK = os.sysconf("SC_CLK_TCK")
GROWTH_MIB = 16


def cpu_seconds(process: int) -> float:
    """User and system time of a process and of the children that it has, such as PostgreSQL's."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # ended meanwhile
        if process in (int(folder.name), int(fields[1])):
            total += int(fields[11]) + int(fields[12])
    return total / TICK


def resident_mib(process: int) -> float:
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


class Recorder:
    """edge-watch --record, with its log."""

    def __init__(self, broker: Mosquitto, url: str, log: Path) -> None:
        command = [sys.executable, "-m", "edge.watch.run", "--broker", broker.url, "--record", url]
        with log.open("w") as out:
            self.process = subprocess.Popen(command, cwd=ROOT, stderr=out)
        wait_for(lambda: "broker connected" in log.read_text(), log.read_text)

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(60) == 0


def publish_all(broker: Mosquitto) -> int:
    """Publish every node's readings, round by round as they come in life; returns how many."""
    school = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    school.max_inflight_messages_set(500)
    school.connect("127.0.0.1", broker.port)
    school.loop_start()
    for seq in range(1, ROUNDS + 1):
        sent = [
            school.publish(*counts(seq, f"school-{n % 20}/room-{n}/node-1", log=f"log-{n}"), qos=1)
            for n in range(NODES)
        ]
        for one in sent:
            one.wait_for_publish(60)
    school.loop_stop()
    school.disconnect()
    return NODES * ROUNDS


def stored(store: Store) -> int:
    try:
        with store.transaction(reading=True) as db:
            return int(db.execute(sa.select(sa.func.count()).select_from(COUNTS)).scalar_one())
    except StoreError:
        return 0  # the recorder writes at this moment


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_what_a_reading_costs(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    server: Postgres | None = None
    url = str(tmp_path / "school.sqlite")
    if kind == "postgresql":
        server = request.getfixturevalue("postgres")
        url = server.url
    broker = Mosquitto(tmp_path, "allow_anonymous true\nmax_queued_messages 0\n")
    Recorder(broker, url, tmp_path / "recorder.log").end()
    made, store = publish_all(broker), Store(url)
    postmaster = int((server.data / "postmaster.pid").read_text().split()[0]) if server else 0
    before, began = cpu_seconds(postmaster) if server else 0.0, time.monotonic()
    recorder = Recorder(broker, url, tmp_path / "recorder.log")
    start = cpu_seconds(recorder.process.pid)
    sizes = []
    while (now := stored(store)) < made:
        if now > made / 3:
            sizes.append(resident_mib(recorder.process.pid))
        assert time.monotonic() - began < 60 + made / 100, (now, made)
        time.sleep(0.5)
    wall = time.monotonic() - began
    cost = cpu_seconds(recorder.process.pid) - start
    of_server = cpu_seconds(postmaster) - before if server else 0.0
    recorder.end()
    broker.stop()
    store.close()
    print(
        f"\n{kind}: {made} readings of {NODES} nodes in {wall:.1f} s; the recorder took {cost:.1f} s "
        f"of CPU, {1e6 * cost / made:.0f} µs a reading, {made / cost:.0f} a second of one core; "
        f"the database {1e6 * of_server / made:.0f} µs a reading; "
        f"memory {sizes[0]:.0f} MiB after a third, {sizes[-1]:.0f} MiB at the end"
    )
    assert sizes[-1] < sizes[0] + GROWTH_MIB
