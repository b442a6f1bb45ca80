"""A school's recorder and a district's, each at its own mosquitto with a bridge between them: a node
that names both keeps each reading until both have it.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.district import Schools
from support.harness import NodeProcess
from support.paths import ROOT
from support.patience import PATIENCE, wait_for

pytestmark = [pytest.mark.process, pytest.mark.broker]

NODE = "school/room/node"
BOTH = "outbox: {keep_hours: 0, recorders: [north, district]}\n"


def stored(database: Path) -> list[int]:
    """The numbers of all readings that a recorder stored, in order."""
    if not database.exists():
        return []  # who makes it says who may read it
    with contextlib.closing(sqlite3.connect(database)) as db:
        if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'counts'").fetchall():
            return []  # before the first message came
        return [seq for (seq,) in db.execute("SELECT seq FROM counts ORDER BY seq")]


def made(node: NodeProcess) -> int:
    """How many readings a node that has ended ever kept."""
    with contextlib.closing(sqlite3.connect(node.outbox)) as db:
        question = "SELECT seq FROM sqlite_sequence WHERE name = 'readings'"
        return int(db.execute(question).fetchone()[0])


class District:
    """The brokers, a node at the school's, and a recorder at each."""

    def __init__(self, folder: Path, ended: contextlib.ExitStack) -> None:
        self.folder, self._ended = folder, ended
        self.schools = ended.enter_context(Schools(folder, ["school"], ("tester", NODE)))
        self.schools.bridged("school")
        # At the broker that stays: a client forgets what it wants to hear with a broker that is killed.
        self._ear = self.schools.ear("district", "tester", f"edge/v1/{NODE}/health")
        ended.callback(self._ear.close)
        self.north, self.district = folder / "north.sqlite", folder / "district.sqlite"

    def record(self, where: str, name: str, client: str) -> subprocess.Popen[bytes]:
        database = self.north if name == "north" else self.district
        words = ["--record", database, "--name", name, "--client-id", client]
        with (self.folder / f"{name}.log").open("ab") as log:
            made = subprocess.Popen(
                self.schools.command(where, "server", *words), cwd=ROOT, stderr=log
            )
        self._ended.callback(lambda: made.poll() is None and made.kill())
        return made

    def node(self) -> NodeProcess:
        at = self.folder / "school"
        names = {
            "ca": "ca.pem",
            "certificate": "school-room-node.pem",
            "key": "school-room-node.key",
        }
        tls = ", ".join(f"{key}: {at / name}" for key, name in names.items())
        node = NodeProcess(
            self.folder, self.schools.schools["school"].url, broker=f", tls: {{{tls}}}"
        )
        node.config.write_text(node.config.read_text() + BOTH)
        self._ended.callback(node.end)
        return node.start()

    def health(self) -> dict[str, Any]:
        """What the node said last; LookupError before it says anything."""
        found: dict[str, Any] = json.loads(self._ear.payloads()[-1])
        return found


@pytest.fixture
def district(tmp_path: Path) -> Iterator[District]:
    with contextlib.ExitStack() as ended:
        yield District(tmp_path, ended)


def test_both_end_whole_though_the_districts_recorder_and_the_schools_broker_are_killed(
    district: District,
) -> None:
    """The district's broker keeps nothing for its recorder, which comes back by another client id, and
    the school's may lose what waits in it for the bridge."""
    keeps = district.record("school", "north", "one")
    first = district.record("district", "district", "two")
    node = district.node()
    wait_for(lambda: len(stored(district.district)) >= 3, node.log.read_text)
    wait_for(lambda: district.health()["outbox_first"] > 1, "what both have goes")
    first.kill()
    first.wait()
    missed = stored(district.district)[-1] + 1
    wait_for(lambda: stored(district.north)[-1] >= missed + 5, node.log.read_text)
    broker = district.schools.schools["school"]
    broker.stop(signal.SIGKILL)
    broker.start()
    back = stored(district.north)[-1]
    wait_for(lambda: stored(district.north)[-1] >= back + 5, node.log.read_text)

    def alone_behind() -> dict[str, Any]:
        """What the node says where the school's recorder is not late, too, as on a busy machine."""
        said = district.health()
        return said if said["recorders_behind"].keys() == {"district"} else {}

    wait_for(lambda: alone_behind()["recorders_behind"]["district"] >= 5, node.log.read_text)
    assert district.health()["outbox_first"] <= missed, "kept for the recorder that is away"
    second = district.record("district", "district", "three")
    came_back = stored(district.north)[-1]
    wait_for(lambda: len(stored(district.district)) >= came_back + 3, node.log.read_text)
    wait_for(lambda: not district.health()["recorders_behind"], node.log.read_text)
    wait_for(lambda: district.health()["outbox_first"] > came_back, "and gone once both have it")
    assert district.health()["outbox_dropped"] == 0
    assert node.stop() == 0, node.log.read_text()
    whole = list(range(1, made(node) + 1))
    for database in (district.north, district.district):
        wait_for(lambda file=database: stored(file) == whole, database)
    for recorder in (keeps, second):
        recorder.terminate()
        assert recorder.wait(PATIENCE) == 0
    assert len(whole) >= came_back + 3
