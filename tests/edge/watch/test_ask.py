"""Commands by name: asked of real nodes over a real broker, and told as the nodes answer."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import paho.mqtt.client as mqtt
import pytest

from edge.base.clock import rfc3339
from edge.base.errors import UsageError
from edge.delivery.commands import NAMES, Name
from edge.delivery.messages import Command, Result, as_dict
from edge.settings import Broker
from edge.watch.ask import TEXTS
from edge.watch.command import (
    LONGEST_MINUTES,
    Answer,
    Caller,
    Order,
    Outcome,
    check_target,
    matches,
    order,
)
from support.brokers import Mosquitto, free_port, school_broker
from support.command import Done
from support.harness import NodeProcess
from support.patience import PATIENCE, wait_for
from support.subscriber import Subscriber

Run = Callable[..., Done]


def test_every_command_of_the_node_has_a_command_line() -> None:
    assert tuple(TEXTS) == NAMES == get_args(Name)


@pytest.mark.parametrize(
    ("name", "amount", "arguments"),
    [
        ("pause", 10, {"seconds": 600.0}),
        ("pause", 0.5, {"seconds": 30.0}),
        ("pause", None, {}),
        ("resume", None, {}),
        ("set-window", 30, {"seconds": 30.0}),
        ("set-min-group", 8, {"people": 8.0}),
    ],
)
def test_what_a_person_says_becomes_the_nodes_units(
    name: Name, amount: float | None, arguments: dict[str, float]
) -> None:
    assert order(name, amount) == Order(name, arguments)


def test_a_tiny_pause_never_becomes_one_without_end() -> None:
    """The node takes 0 seconds as: until resumed."""
    assert order("pause", 1e-9).arguments["seconds"] > 0


@pytest.mark.parametrize(
    ("name", "amount"),
    [
        *(("pause", a) for a in (0, -1, float("nan"), float("inf"), LONGEST_MINUTES + 1)),
        *(("set-window", a) for a in (None, 0, -1, float("nan"), float("inf"), 1e300)),
        *(("set-min-group", a) for a in (None, 0, -3, 10**400)),
        *((name, 1) for name in ("resume", "report", "reload-bundle")),
    ],
)
def test_an_amount_that_cannot_be_meant_is_refused_before_anybody_is_asked(
    name: Name, amount: Any
) -> None:
    with pytest.raises(UsageError):
        order(name, amount)


@pytest.mark.parametrize(
    ("target", "node", "meant"),
    [
        ("north/room-12", "north/room-12/cam-1", True),
        ("north/room-12", "north/room-120/cam-1", False),
        ("north/room-12/cam-1", "north/room-12/cam-1", True),
        ("north/room-12/cam-1", "north/room-12/cam-10", False),
        ("north/*", "north/room-1/a", True),
        ("north/*", "north-2/room-1/a", False),
        ("*/*", "north/room-1/a", True),
        ("north/room-1*/cam-*", "north/room-12/cam-1", True),
    ],
)
def test_whom_a_pattern_means(target: str, node: str, meant: bool) -> None:
    assert matches(target, node) is meant


@pytest.mark.parametrize(
    "target",
    ["", "north", "*", "/", "north/", "a/b/c/d", "north/+", "north/#", "North/room", "a b/c", "a/b\n",
     "north/room?", "$share/x", "é/b", "a/b/"],
)  # fmt: skip
def test_what_is_no_room_is_refused_with_an_example(target: str) -> None:
    with pytest.raises(UsageError, match=r"north/room-12 or 'north/\*'"):
        check_target(target)


@pytest.mark.parametrize(
    "words",
    [
        ["pause", "north", "--minutes", "10"],
        ["pause", "north/a", "--minutes", "0"],
        ["pause", "north/a", "--timeout", "0"],
        ["pause", "north/a", "--timeout", "nan"],
        ["set-window", "north/a", "--seconds", "-1"],
        ["set-min-group", "north/a", "--people", "9" * 400],
        ["report", "north/a", "--broker", "-"],
        ["resume", "north/a", "--broker", "mqtt://127.0.0.1:1", "--ca", "/nowhere.pem"],
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(command: Run, words: list[str]) -> None:
    done = command("edge.watch.run", *words)
    assert done.code == 2
    assert len(done.err.strip().splitlines()) == 1


def test_without_a_broker_nothing_is_done_and_the_code_is_1(command: Run) -> None:
    url = f"mqtt://127.0.0.1:{free_port()}"
    done = command("edge.watch.run", "pause", "north/a/b", "--broker", url)
    assert (done.code, done.out) == (1, "")
    assert "nothing listens there" in done.last


@pytest.fixture
def school(tmp_path: Path) -> Iterator[tuple[Mosquitto, list[NodeProcess]]]:
    """A broker and two real nodes that read nothing but the test pattern."""
    broker = Mosquitto(tmp_path)
    nodes = [NodeProcess(tmp_path, broker.url, room).start() for room in ("room-1", "room-2")]
    receiver = Subscriber(broker.port)
    for node in nodes:
        wait_for(
            lambda node=node: any(
                s["node"] == node.name and s["state"] == "online" for s in receiver.of("status")
            ),
            node.log.read_text,
        )
    receiver.close()
    yield broker, nodes
    for node in nodes:
        node.end()
    broker.stop()


@pytest.mark.process
@pytest.mark.broker
def test_real_nodes_do_what_they_are_asked_and_their_answers_are_told(
    school: tuple[Mosquitto, list[NodeProcess]], command: Run
) -> None:
    broker, (first, second) = school

    def ask(*words: str) -> Done:
        return command("edge.watch.run", *words, "--broker", broker.url, "--timeout", PATIENCE)

    def printed(done: Done, *texts: str) -> None:
        assert (done.code, done.out.splitlines()) == (
            0,
            [f"{first.name}: done: {t}" for t in texts],
        )

    printed(ask("pause", first.name, "--minutes", "10"), "paused for 600 s")
    printed(ask("pause", "school/room-1"), "paused until resumed")
    kept = json.loads((first.state / "commands.json").read_text())["wishes"]
    assert kept["pause"] == 0.0
    printed(ask("resume", "school/room-1"), "resumed")
    printed(
        ask("set-window", "school/room-1", "--seconds", "3"), "windows of 3 s from the next one on"
    )
    people = ask("set-min-group", "school/room-1", "--people", "8")
    printed(people, "groups of 8 at least from the next window on")
    printed(ask("report", "school/room-1"), "status, info and health follow")
    refused = ask("set-window", "school/room-1", "--seconds", "0.5")
    assert (refused.code, refused.out) == (3, "")
    assert refused.last.endswith(f"{first.name} refused it: set-window takes 'seconds', 2 to 3600")
    # Several: each that was asked, and each answer.
    both = ask("pause", "school/*", "--minutes", "1")
    assert both.code == 0
    assert f"asking 2 nodes: {first.name}, {second.name}" in both.err
    assert sorted(both.out.splitlines()) == [
        f"{node.name}: done: paused for 60 s" for node in (first, second)
    ]
    # One of them is gone: the other's answer stands, and nothing is said to be done that is not.
    second.kill()
    half = command("edge.watch.run", "resume", "*/*", "--broker", broker.url, "--timeout", "30")
    assert half.code == 4
    assert f"{first.name}: done: resumed" in half.out
    assert f"{second.name}: no answer: it is not connected" in half.out
    assert "done" not in next(
        line for line in half.out.splitlines() if second.name in line
    ).replace("nothing was done", "")
    assert half.last.endswith("0 of 2 nodes refused it, 1 gave no answer; see the lines above")


@pytest.mark.process
@pytest.mark.broker
def test_a_room_that_nobody_knows_is_one_line_and_exit_code_4(
    mosquitto: Mosquitto, command: Run
) -> None:
    done = command("edge.watch.run", "resume", "north/*", "--broker", mosquitto.url)
    assert (done.code, done.out) == (4, "")
    assert "no status of a node 'north/*': nobody was asked" in done.last
    done = command("edge.watch.run", "resume", "north/a/b", "--broker", mosquitto.url)
    assert (done.code, done.out) == (4, "")
    assert "it is not connected to the broker, nothing was done" in done.last


class Pretender:
    """What subscribes to a node's commands, and answers as a test wants it to."""

    def __init__(
        self, broker: Mosquitto, answer: Callable[[Command], list[dict[str, Any]]]
    ) -> None:
        self._answer = answer
        self._client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        ready: list[int] = []
        self._client.on_subscribe = lambda *_: ready.append(1)
        self._client.on_message = self._on_message
        self._client.connect("127.0.0.1", broker.port)
        self._client.loop_start()
        self._client.subscribe("edge/v1/a/b/c/cmd/+", qos=1)
        wait_for(lambda: ready, "subscribed")

    def _on_message(self, client: Any, userdata: Any, message: Any) -> None:
        if "/result" not in message.topic:
            for answer in self._answer(Command.model_validate_json(message.payload)):
                client.publish(f"{message.topic}/result", json.dumps(answer), qos=1)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def result(command: Command, **other: Any) -> dict[str, Any]:
    found = Result(
        node=command.node, session="s", n=1, time=rfc3339(0), clock_synced=True, id=command.id,
        name="pause", ok=True, text="paused",
    )  # fmt: skip
    return {**as_dict(found), **other}


@contextlib.contextmanager
def pretending(
    broker: Mosquitto, answer: Callable[[Command], list[dict[str, Any]]]
) -> Iterator[None]:
    made = Pretender(broker, answer)
    yield
    made.close()


def asked(broker: Mosquitto, version: str = "auto", seconds: float = 1.0) -> Answer:
    settings = Broker(url=broker.url, protocol=version)  # type: ignore[arg-type]
    with Caller(settings) as caller:
        (answer,) = caller.ask(["a/b/c"], order("pause", 1), seconds)
    return answer


@pytest.mark.broker
@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_a_node_that_says_nothing_is_no_answer_however_it_is_asked(
    mosquitto: Mosquitto, version: str
) -> None:
    with pretending(mosquitto, lambda command: []):
        answer = asked(mosquitto, version)
    assert answer.outcome is Outcome.UNANSWERED
    assert answer.text.startswith("not within 1 s (the broker has no status of it)")


@pytest.mark.broker
@pytest.mark.parametrize(
    "other",
    [
        {"id": "another"},
        {"node": "a/b/d"},
        {"schema": "edge.cmd-result/2"},
        {"ok": None},
        {"text": 7},
    ],
)
def test_what_is_no_answer_to_this_command_does_not_count(
    mosquitto: Mosquitto, other: dict[str, Any]
) -> None:
    with pretending(mosquitto, lambda command: [result(command, **other)]):
        assert asked(mosquitto).outcome is Outcome.UNANSWERED


@pytest.mark.broker
def test_the_first_answer_stands_and_cannot_steer_a_terminal(mosquitto: Mosquitto) -> None:
    said = "\x1b[2J" + "x" * 5000
    with pretending(
        mosquitto, lambda command: [result(command, ok=False, text=said), result(command)]
    ):
        answer = asked(mosquitto, seconds=PATIENCE)
    assert answer.outcome is Outcome.REFUSED
    assert answer.text.isprintable()
    assert len(answer.text) <= 2000


@pytest.mark.process
@pytest.mark.broker
def test_over_tls_the_server_may_ask_and_a_node_may_not(tmp_path: Path, command: Run) -> None:
    """By certificates and access list as `edge-watch broker` sets them up."""
    broker = school_broker(tmp_path, ["server", "school/room/node", "school/other/node"])
    own = f"certificate: {tmp_path}/school-room-node.pem, key: {tmp_path}/school-room-node.key"
    tls = f", tls: {{ca: {tmp_path}/ca.pem, {own}}}"
    node = NodeProcess(tmp_path, broker.url, broker=tls).start()

    def ask(who: str, target: str, *more: object) -> Done:
        own = ("--certificate", tmp_path / f"{who}.pem", "--key", tmp_path / f"{who}.key")
        url = ("--broker", broker.url, "--ca", tmp_path / "ca.pem")
        return command("edge.watch.run", "pause", target, *own, *url, *more)

    try:
        wait_for(lambda: ask("server", "school/*").code == 0, node.log.read_text)
        done = ask("server", node.name, "--minutes", "5", "--timeout", PATIENCE)
        assert (done.code, done.out) == (0, f"{node.name}: done: paused for 300 s\n")
        other = ask("school-other-node", node.name, "--timeout", "2")
        assert (other.code, other.out) == (4, "")
        assert "the broker did not pass it on (Not authorized)" in other.last
        unknown = command("edge.watch.run", "resume", node.name, "--broker", broker.url)
        assert unknown.code == 1
        assert "the broker's certificate is not from this authority" in unknown.last
    finally:
        node.end()
        broker.stop()
