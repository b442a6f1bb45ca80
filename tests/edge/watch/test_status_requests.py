"""Nodes are asked for their status where the broker keeps none, and only there."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest

from edge.base.clock import utc_now
from edge.delivery.messages import Command, Result, as_dict, dumps
from edge.settings import Broker
from edge.watch.rooms import SETTLE, Rooms
from edge.watch.run import MessageRouter
from edge.watch.status_requests import AGAIN, MOST_AT_ONCE, StatusRequests
from fakes.broker import CLOSE, Habits, StubBroker
from support.brokers import Mosquitto, free_port
from support.harness import NodeProcess, Receiver
from support.heard import NODE, NOON, counts, heard, raw
from support.paths import ROOT
from support.patience import PATIENCE, wait_for
from support.screen import Terminal

SECOND = timedelta(seconds=1)
NOTHING_KEPT = "allow_anonymous true\nretain_available false\n"
READER = "user reader\ntopic read edge/v1/#\n\nuser node\ntopic readwrite edge/v1/#\n"


def living(*nodes: str) -> Rooms:
    """Rooms that count and of whose status nothing came; they may be asked for it now."""
    rooms, then = Rooms(), utc_now() - SETTLE
    for node in nodes:
        rooms.hear(heard(counts(1, node)), then)
        rooms.hear(heard(counts(2, node)), then + 9 * SECOND)
    return rooms


def requests(broker: StubBroker, rooms: Rooms) -> StatusRequests:
    return StatusRequests(Broker(url=broker.url), None, rooms, threading.Event())


def asked(broker: StubBroker) -> list[str]:
    """Whom somebody asked; a retained command would be done by nobody."""
    found = [(topic, kept) for topic, _, kept in broker.published if topic.endswith("/cmd/report")]
    assert not [topic for topic, kept in found if kept]
    return [topic.removeprefix("edge/v1/").removesuffix("/cmd/report") for topic, _ in found]


class Answering:
    """Answers the command `report` for every node, as nodes do."""

    def __init__(self, url: str) -> None:
        self._client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        ready = threading.Event()
        self._client.on_connect = lambda c, *_: c.subscribe("edge/v1/+/+/+/cmd/report", qos=1)
        self._client.on_subscribe = lambda *_: ready.set()
        self._client.on_message = self._answer
        self._client.connect("127.0.0.1", int(url.rpartition(":")[2]))
        self._client.loop_start()
        assert ready.wait(PATIENCE)

    def _answer(self, client: mqtt.Client, data: Any, message: mqtt.MQTTMessage) -> None:
        command = Command.model_validate_json(message.payload)
        result = Result(
            node=command.node, session="s-1", n=1, time=command.expires, clock_synced=True,
            id=command.id, name="report", ok=True, text="status, info and health follow",
        )  # fmt: skip
        client.publish(f"{message.topic}/result", dumps(as_dict(result)), qos=1)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def test_only_who_lives_and_said_nothing_that_holds_is_asked() -> None:
    rooms, later = Rooms(), NOON + SETTLE
    rooms.hear(heard(counts(1)), NOON)
    assert rooms.unsaid(later) == [], "one message may be the last of a room that ends"
    rooms.hear(heard(counts(2)), later - SECOND)
    assert rooms.unsaid(later - SECOND) == [], "a broker may be sending what it keeps"
    assert rooms.unsaid(later) == [NODE]
    rooms.hear(heard(raw("status")), later, retained=True)
    assert rooms.unsaid(later + SECOND) == []
    # The connection was lost, and with it perhaps what the room said meanwhile.
    rooms.doubt(later)
    assert rooms.unsaid(later + SETTLE) == [], "it has not been heard since"
    rooms.hear(heard(counts(3)), later + SETTLE)
    assert rooms.unsaid(later + SETTLE) == [NODE]
    rooms.hear(heard(raw("status")), later + SETTLE, retained=True)
    assert rooms.unsaid(later + 2 * SETTLE) == []
    # It counts, and lives by that, after the broker's word that it is lost.
    rooms.hear(heard(raw("status", state="lost")), later + 2 * SETTLE)
    assert rooms.unsaid(later + 3 * SETTLE) == []
    rooms.hear(heard(counts(4)), later + 3 * SETTLE)
    assert rooms.unsaid(later + 3 * SETTLE) == [NODE]
    assert rooms.unsaid(later + timedelta(hours=1)) == [], "it is silent since"


def test_what_a_recorder_stored_before_this_start_asks_nobody() -> None:
    rooms, now = Rooms(), utc_now()
    row = {
        "node": NODE, "received": now, "log": "l", "seq": 1, "start": now - 10 * SECOND, "end": now,
        "faces_mean": 6.0, "suppressed": False, "person_seconds": {"calm": 60},
    }  # fmt: skip
    rooms.remember(row, now)
    assert rooms.unsaid(now + SETTLE) == []


def test_a_lost_connection_puts_in_doubt_what_was_said() -> None:
    router = MessageRouter("")
    router.rooms = living(NODE)
    router.rooms.hear(heard(raw("status")), utc_now())
    assert router.rooms.unsaid(utc_now() + SETTLE) == []
    router.lost()
    router.rooms.hear(heard(counts(3)), utc_now() + SETTLE)
    assert router.rooms.unsaid(utc_now() + SETTLE) == [NODE]


def test_many_are_asked_in_parts_and_each_once_in_five_minutes() -> None:
    nodes = [f"school/room-{n:03}/node-1" for n in range(MOST_AT_ONCE + 5)]
    rooms = living(*nodes)
    now = utc_now()
    with StubBroker(Habits(retained="none")) as broker:
        answering = Answering(broker.url)
        asking = StatusRequests(Broker(url=broker.url), None, rooms, threading.Event(), lambda: now)
        for so_far in (nodes[:MOST_AT_ONCE], nodes, nodes):
            assert asking.turn()
            assert sorted(asked(broker)) == so_far
        now += AGAIN
        for node in nodes[:2]:
            rooms.hear(heard(counts(3, node)), now)
        assert asking.turn()
        assert sorted(asked(broker)) == sorted(nodes + nodes[:2])
        answering.close()


@pytest.mark.parametrize("refusal", [0x87, CLOSE])
def test_who_may_not_ask_says_so_once_and_asks_no_more(
    refusal: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    nodes = [f"school/room-{n}/node-1" for n in range(3)]
    rooms = living(nodes[0])

    def puback(topic: str) -> int | None:
        return refusal if "/cmd/" in topic else 0

    with StubBroker(Habits(retained="none", puback=puback)) as broker:
        asking = requests(broker, rooms)
        assert asking.turn(), "it may have been chance"
        for node in nodes[1:]:
            then = utc_now() - SETTLE
            rooms.hear(heard(counts(1, node)), then)
            rooms.hear(heard(counts(2, node)), then + SECOND)
        assert not asking.turn()
    (told,) = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    assert told.startswith(
        f"the broker keeps no status of {nodes[0]}, and asked for it none answered"
    )
    why = "it may still be done" if refusal is CLOSE else "check user and access list"
    assert why in told


def test_who_is_told_nothing_of_the_broker_tries_again_and_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With 3.1.1 a broker may drop what is forbidden without a word."""
    rooms, now = living(NODE), utc_now()
    with StubBroker(Habits(retained="none", suback=lambda topic, times: 0x80)) as broker:
        asking = requests(broker, rooms)
        assert asking.turn()
        assert asked(broker) == [], "who may not hear the answer asks nobody"
    with StubBroker(Habits(versions=(4,), retained="none")) as broker:
        asking = StatusRequests(Broker(url=broker.url), None, rooms, threading.Event(), lambda: now)
        for _ in range(3):
            assert asking.turn()
            rooms.hear(heard(counts(3)), now + AGAIN)
            now += AGAIN
        assert asked(broker) == [NODE] * 3
    assert len([r for r in caplog.records if "none answered" in r.message]) == 2, "once each"


def test_a_broker_that_is_away_is_no_refusal(caplog: pytest.LogCaptureFixture) -> None:
    url = f"mqtt://127.0.0.1:{free_port()}"
    nodes = [f"school/room-{n}/node-1" for n in range(2)]
    asking = StatusRequests(Broker(url=url), None, living(*nodes), threading.Event())
    for _ in range(3):
        assert asking.turn()
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


@pytest.fixture
def ended() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def node_on(url: str, folder: Path, ended: ExitStack, username: str | None = None) -> NodeProcess:
    """A real node that said that it is online before anybody looks: a page that is there in time hears
    it, and asks for nothing."""
    receiver = Receiver(int(url.rpartition(":")[2]), acks=False, username=username)
    ended.callback(receiver.close)
    node = NodeProcess(folder, url, broker=f", username: {username}" if username else "")
    ended.callback(node.end)
    node.start()
    wait_for(lambda: ("online", "") in receiver.said(node.name), node.log.read_text)
    return node


def page_on(url: str, folder: Path, ended: ExitStack, *more: str) -> tuple[Path, int]:
    port = free_port()
    log = folder / "page.log"
    words: Sequence[str] = ["--broker", url, "--web", str(port), *more]
    with log.open("wb") as err:
        page = subprocess.Popen(
            [sys.executable, "-m", "edge.watch.run", *words], cwd=ROOT, stderr=err,
            env={**os.environ, "XDG_STATE_HOME": str(folder)},
        )  # fmt: skip
    ended.callback(lambda: (page.terminate(), page.wait(PATIENCE)))
    wait_for(lambda: "the page is at" in log.read_text(), log.read_text)
    return log, port


def rooms_of(port: int) -> list[dict[str, Any]]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/state") as answer:
        found: list[dict[str, Any]] = json.load(answer)["rooms"]
        return found


@pytest.mark.process
def test_a_page_that_comes_later_learns_how_a_room_is_from_a_stub_that_keeps_nothing(
    tmp_path: Path, ended: ExitStack
) -> None:
    broker = ended.enter_context(StubBroker(Habits(retained="none")))
    node = node_on(broker.url, tmp_path, ended)

    def said(kind: str) -> int:
        return sum(topic == f"edge/v1/{node.name}/{kind}" for topic, _, _ in broker.published)

    wait_for(lambda: said("counts") >= 2, node.log.read_text)
    infos = said("info")
    log, port = page_on(broker.url, tmp_path, ended)
    wait_for(lambda: rooms_of(port)[0]["state"] == "online", log.read_text)
    wait_for(lambda: said("info") > infos, "info for programs that came later, too")
    assert asked(broker) == [node.name]
    assert "WARNING" not in log.read_text()


@pytest.mark.process
@pytest.mark.broker
def test_page_and_table_that_come_later_learn_how_a_room_is_from_a_mosquitto_that_keeps_nothing(
    tmp_path: Path, ended: ExitStack
) -> None:
    broker = Mosquitto(tmp_path, NOTHING_KEPT)
    ended.callback(broker.stop)
    node = node_on(broker.url, tmp_path, ended)
    _, port = page_on(broker.url, tmp_path, ended)
    wait_for(lambda: rooms_of(port)[0]["state"] == "online", node.log.read_text)
    terminal = Terminal()
    ended.callback(terminal.close)
    table = subprocess.Popen(
        [sys.executable, "-m", "edge.watch.run", "--broker", broker.url],
        cwd=ROOT, stdout=terminal.theirs, stderr=subprocess.DEVNULL,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "20"},
    )  # fmt: skip
    ended.callback(lambda: (table.terminate(), table.wait(PATIENCE)))
    wait_for(terminal.shows(rf"{node.name}.*online"), lambda: terminal.text[-2000:])


@pytest.mark.process
@pytest.mark.broker
def test_a_reader_whom_the_access_list_lets_hear_alone_shows_the_room_and_says_so_once(
    tmp_path: Path, ended: ExitStack
) -> None:
    access = tmp_path / "readers.acl"
    access.write_text(READER)
    access.chmod(0o600)
    broker = Mosquitto(tmp_path, f"{NOTHING_KEPT}acl_file {access}\n")
    ended.callback(broker.stop)
    node = node_on(broker.url, tmp_path, ended, username="node")
    log, port = page_on(broker.url, tmp_path, ended, "--username", "reader")
    wait_for(lambda: "and asked for it none answered" in log.read_text(), log.read_text)
    assert log.read_text().count("none answered") == 1
    assert f"the broker keeps no status of {node.name}" in log.read_text()
    assert "check user and access list" in log.read_text()
    (room,) = rooms_of(port)
    assert (room["node"], room["state"]) == (node.name, "unknown")
    assert room["people"] is not None
