"""A node whose settings name two recorders: neither loses what the other has."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.brokers import Mosquitto
from support.harness import NodeProcess
from support.patience import wait_for
from support.recording import Recording
from support.subscriber import Subscriber

BOTH = "outbox: {keep_hours: 0, recorders: [school, district]}\n"


def stored(database: Path) -> list[int]:
    """The numbers of all readings that a recorder stored, in order."""
    with contextlib.closing(sqlite3.connect(database)) as db:
        if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'counts'").fetchall():
            return []  # before the first message came
        return [seq for (seq,) in db.execute("SELECT seq FROM counts ORDER BY seq")]


def answers(heard: Subscriber) -> set[str]:
    """Who has answered a node since it said how it is, by what the broker did not only retain."""
    said = [(topic.rsplit("/", 1)[1], payload, kept) for topic, payload, kept in heard.messages]
    states = [kind == "status" and payload["state"] != "lost" for kind, payload, _ in said]
    since = said[states.index(True) :] if True in states else []
    return {payload["recorder"] for kind, payload, kept in since if kind == "ack" and not kept}


@pytest.fixture
def ended() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def start(
    ended: contextlib.ExitStack, broker: Mosquitto, database: Path, name: str, client: str
) -> Recording:
    found = Recording(broker, database, "--name", name, "--client-id", client)
    ended.callback(lambda: found.poll() is None and found.kill())
    return found


@pytest.mark.process
@pytest.mark.broker
def test_what_a_killed_recorder_missed_is_kept_until_it_has_it(
    tmp_path: Path, mosquitto: Mosquitto, ended: contextlib.ExitStack
) -> None:
    """The broker keeps nothing for it, since it comes back under another client id; the node forgets at
    once what both have."""
    school, district = tmp_path / "school.sqlite", tmp_path / "district.sqlite"
    keeps = start(ended, mosquitto, school, "school", "one")
    first = start(ended, mosquitto, district, "district", "two")
    node = NodeProcess(tmp_path, mosquitto.url)
    node.config.write_text(node.config.read_text() + BOTH)
    ended.callback(node.end)
    heard = Subscriber(mosquitto.port)
    ended.callback(heard.close)
    node.start()
    wait_for(lambda: len(stored(district)) >= 3, node.log.read_text)
    first.kill()
    first.wait()
    missed = stored(district)[-1]
    wait_for(lambda: stored(school)[-1] >= missed + 8, node.log.read_text)

    def behind() -> dict[str, int]:
        """Alone the one that is away; on a busy machine the other one is late for a moment, too."""
        found: dict[str, int] = heard.of("health")[-1]["recorders_behind"]
        return found if found.keys() == {"district"} else {}

    wait_for(lambda: behind()["district"] >= 3, node.log.read_text)
    second = start(ended, mosquitto, district, "district", "three")
    came_back = stored(school)[-1]
    wait_for(lambda: len(stored(district)) >= came_back + 3, node.log.read_text)
    wait_for(lambda: not heard.of("health")[-1]["recorders_behind"], node.log.read_text)
    wait_for(lambda: "recorder district has all" in node.log.read_text(), "a line in the log")
    assert "recorder district of outbox.recorders lacks" in node.log.read_text()
    wait_for(lambda: heard.of("health")[-1]["outbox_first"] > came_back, "what both have to go")
    # A node that comes back hears both, whichever of them is retained.
    node.kill()
    wait_for(lambda: heard.of("status")[-1]["state"] == "lost", "the broker's word")
    heard.messages.clear()
    node.start()
    wait_for(lambda: answers(heard) >= {"school", "district"}, node.log.read_text)
    assert node.stop() == 0, node.log.read_text()
    last = node.committed()[1][-1][0]  # the broker has it, and may not have handed it on
    for database in (school, district):
        wait_for(lambda file=database: stored(file)[-1] >= last, database)
    for recorder in (keeps, second):
        recorder.end()
    assert stored(school) == stored(district) == list(range(1, len(stored(school)) + 1))
    assert not [h for h in heard.of("health") if h["outbox_dropped"]]
