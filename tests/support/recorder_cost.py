"""Seconds of CPU that a recorder takes for readings that wait for it at a broker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

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

TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Cost:
    """made: readings; wall, recorder, database: seconds, the latter two of CPU; mebibytes: the
    recorder's memory, every half second from a third of the readings on."""

    made: int
    wall: float
    recorder: float
    database: float
    mebibytes: tuple[float, ...]


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


def publish_all(broker: Mosquitto, nodes: int, rounds: int) -> int:
    """Publish every node's readings, round by round as they come in life; returns how many."""
    school = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    school.max_inflight_messages_set(500)
    school.connect("127.0.0.1", broker.port)
    school.loop_start()
    for seq in range(1, rounds + 1):
        sent = [
            school.publish(
                *counts(seq, f"school-{n % 20}/room-{n}/node-1", log=f"{nodes}-{n}"), qos=1
            )
            for n in range(nodes)
        ]
        for one in sent:
            one.wait_for_publish(60)
    school.loop_stop()
    school.disconnect()
    return nodes * rounds


def stored(store: Store) -> int:
    try:
        with store.transaction(reading=True) as db:
            return int(db.execute(sa.select(sa.func.count()).select_from(COUNTS)).scalar_one())
    except StoreError:
        return 0  # the recorder writes at this moment


def measure(folder: Path, nodes: int, rounds: int, server: Postgres | None) -> Cost:
    """Have so many nodes' readings wait at a broker, and a recorder take them as fast as it can, into
    SQLite where there is no server."""
    url = server.url if server else str(folder / "school.sqlite")
    broker = Mosquitto(folder, "allow_anonymous true\nmax_queued_messages 0\n")
    Recorder(broker, url, folder / "recorder.log").end()
    made, store = publish_all(broker, nodes, rounds), Store(url)
    earlier = stored(store)
    postmaster = int((server.data / "postmaster.pid").read_text().split()[0]) if server else 0
    before, began = cpu_seconds(postmaster) if server else 0.0, time.monotonic()
    recorder = Recorder(broker, url, folder / "recorder.log")
    start = cpu_seconds(recorder.process.pid)
    sizes = []
    while (now := stored(store) - earlier) < made:
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
    return Cost(made, wall, cost, of_server, tuple(sizes))
