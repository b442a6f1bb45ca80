"""Brokers that refuse a version, a subscription or a retained message, and who still gets through."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from edge.base.errors import BrokerError
from edge.delivery.connection import deliver, probe
from edge.delivery.messages import Ack, Outgoing, as_dict, dumps
from edge.delivery.outbox import Outbox
from edge.delivery.publisher import MqttPublisher
from edge.settings import Broker
from edge.watch.command import Caller
from edge.watch.fleet import SimNode, SimulatedFleet
from edge.watch.receive import Receiver, SessionOptions
from fakes.broker import CLOSE, GRANTED, REFUSED, Habits, StubBroker
from support.patience import PATIENCE, wait_for

pytestmark = pytest.mark.slow  # each waits for pauses of a second or two

NODE = "school/room-1/node-1"
OWN = f"edge/v1/{NODE}"
COUNTS = f"{OWN}/counts"
HURRIED = threading.Event()
HURRIED.set()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.delivery.subscriptions.FIRST_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr("edge.delivery.publisher.reconnect_delay", lambda *a: 0.05)
    monkeypatch.setattr("edge.watch.receive.FIRST_BACKOFF_SECONDS", 0.05)


def status(state: str) -> Outgoing:
    return Outgoing("status", {"node": NODE, "state": state}, retain=True)


def reading() -> dict[str, Any]:
    return {"node": NODE, "end": "2026-01-01T00:00:00.000Z", "window_seconds": 10,
            "time_base": "utc", "historical": False}  # fmt: skip


@contextmanager
def a_node(url: str, folder: Path) -> Iterator[tuple[MqttPublisher, Outbox]]:
    box = Outbox(folder / "box.sqlite")
    node = MqttPublisher(Broker(url=url), f"edge/{NODE}", status("lost"), box)
    node.start()
    yield node, box
    node.finish(status("stopped"), 0.0, HURRIED)
    box.close()


@contextmanager
def a_receiver(
    url: str, keep: SessionOptions | None = None, heard: list[str] | None = None
) -> Iterator[Receiver]:
    topics: list[str] = [] if heard is None else heard
    receiver = Receiver(Broker(url=url), lambda topic, *_: topics.append(topic), keep, patient=True)
    stop = threading.Event()
    thread = threading.Thread(target=receiver.run, args=(stop,))
    thread.start()
    yield receiver
    stop.set()
    thread.join(PATIENCE)


def stands(client: Any, how: str) -> None:
    wait_for(lambda: str(client.state).startswith(how), lambda: f"{how}, not {client.state}")


def node_connects(url: str, folder: Path) -> None:
    with a_node(url, folder) as (node, box):
        stands(node, "connected: MQTT 3.1.1")
        box.append(reading())
        wait_for(lambda: not box.pending_count(), "the broker's acknowledgement")


def recorder_connects(url: str, folder: Path) -> None:
    with a_receiver(url, SessionOptions("recorder")) as receiver:
        stands(receiver, "connected: MQTT 3.1.1")


def watcher_connects(url: str, folder: Path) -> None:
    with a_receiver(url) as receiver:
        stands(receiver, "connected: MQTT 3.1.1")


def until_answered(once: Callable[[], object]) -> None:
    """Do again what tries once, as a person would: with half a second to wait, a busy machine is silent
    too."""

    def done() -> bool:
        try:
            once()
        except BrokerError:
            return False
        return True

    wait_for(done, "an answer in 3.1.1")


def check_connects(url: str, folder: Path) -> None:
    def once() -> None:
        assert probe(Broker(url=url), [f"{OWN}/ack", f"{OWN}/cmd/+"]) == "MQTT 3.1.1"

    until_answered(once)


def caller_connects(url: str, folder: Path) -> None:
    def once() -> None:
        with Caller(Broker(url=url)) as caller:
            assert caller.nodes(NODE) == [NODE]

    until_answered(once)


def update_delivers(url: str, folder: Path) -> None:
    until_answered(lambda: deliver(Broker(url=url), "edge-update", status("lost")))


def simulator_connects(url: str, folder: Path) -> None:
    nodes = [SimNode(number, ["a", "b"], 1.0, 0, 0.1) for number in range(2)]
    fleet = SimulatedFleet(Broker(url=url), nodes)

    def up() -> bool:
        fleet.turn()
        return all(node.up and node.subscriptions.granted for node in nodes)

    wait_for(up, lambda: fleet.reason)
    fleet.close()


@pytest.mark.parametrize(
    "unknown",
    ["code 1", "code 0x84", "close", "reset", pytest.param("silent", marks=pytest.mark.slow)],
)
@pytest.mark.parametrize(
    "connects",
    [node_connects, recorder_connects, watcher_connects, check_connects, caller_connects,
     update_delivers, simulator_connects],
)  # fmt: skip
def test_every_client_falls_back_to_3_1_1_however_a_broker_refuses_5(
    connects: Callable[[str, Path], None],
    unknown: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if unknown == "silent":  # the others answer: whoever waits for that, waits as ever
        for module in (
            "delivery.connection",
            "delivery.subscriptions",
            "watch.command",
            "watch.fleet",
        ):
            monkeypatch.setattr(f"edge.{module}.CONNECT_SECONDS", 0.5)
    monkeypatch.setattr("edge.watch.fleet.SPREAD_SECONDS", 0.1)
    with StubBroker(Habits(versions=(4,), unknown=unknown)) as broker:
        connects(broker.url, tmp_path)
        versions = [version for version, _ in broker.connects]
        assert versions[0] == 5
        assert 4 in versions
        assert all(name for _, name in broker.connects), "a broker may refuse an empty id"


def refusing(kind: str, until: threading.Event, answer: int | str | None = 0x87) -> Habits:
    """Refuses one kind of filter until a test has seen what comes of it."""

    def suback(wanted: str, asked: int) -> int | str | None:
        return answer if kind in wanted and not until.is_set() else GRANTED

    return Habits(suback=suback)


FOR_EVER = threading.Event()


@pytest.fixture
def granted() -> threading.Event:
    """Set by a test, once it has seen a refusal."""
    return threading.Event()


@pytest.mark.parametrize("kind", ["ack", "cmd"])
def test_a_node_asks_again_for_what_was_refused_and_tells_both(
    kind: str, granted: threading.Event, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with StubBroker(refusing(kind, granted)) as broker, a_node(broker.url, tmp_path) as (node, _):
        stands(node, f"refused: {kind} (Not authorized)")
        wanted = next(w for w in broker.subscribed if kind in w)
        wait_for(lambda: broker.subscribed.count(wanted) >= 4, "asked again and again")
        granted.set()
        stands(node, "connected: MQTT 5")
        assert len(broker.connects) == 1, "on the same connection"
        asked = broker.subscribed.count(wanted)
        assert broker.subscribed.count(f"{OWN}/{'ack' if kind == 'cmd' else 'cmd/+'}") == 1
        broker.publish(f"{OWN}/cmd/report", b"{}")
        wait_for(lambda: node.commands, "a command")
        assert broker.subscribed.count(wanted) == asked, "and no more once it is granted"
    said = [m for m in caplog.messages if "refused: " in m or "connected: " in m]
    assert [m.split(" address")[0] for m in said[:2]] == [
        f"broker refused: {kind} (Not authorized)",
        "broker connected: MQTT 5",
    ]


def test_a_node_that_is_refused_for_ever_is_never_connected_and_still_delivers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with (
        StubBroker(refusing("cmd", FOR_EVER)) as broker,
        a_node(broker.url, tmp_path) as (node, box),
    ):
        box.append(reading())
        wait_for(lambda: broker.subscribed.count(f"{OWN}/cmd/+") >= 4, "asked again")
        wait_for(lambda: not box.pending_count(), "the reading's acknowledgement")
        assert str(node.state) == "refused: cmd (Not authorized)"
    told = [m for m in caplog.messages if m.startswith("broker ")]
    assert len(told) == 1, told


def test_the_pauses_between_two_wishes_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    from edge.delivery.subscriptions import Subscriptions

    class Refuses:
        def __init__(self) -> None:
            self.asked: list[float] = []
            self.on_subscribe: Any = None

        def subscribe(self, wanted: list[tuple[str, int]]) -> tuple[int, int]:
            self.asked.append(now[0])
            return 0, len(self.asked)

    class No:
        is_failure = True

    now, client = [0.0], Refuses()
    heard = Subscriptions(["a"], clock=lambda: now[0])
    heard.begin(client)  # type: ignore[arg-type]
    for _ in range(4000):
        if heard._asked:
            client.on_subscribe(client, None, len(client.asked), [No()], None)
        now[0] += 0.05
        heard.poll(client)  # type: ignore[arg-type]
    pauses = [b - a for a, b in zip(client.asked, client.asked[1:], strict=False)]
    assert 5 <= len(pauses) <= 20
    assert pauses[-1] > 4 * pauses[0]


def test_a_broker_that_does_not_answer_a_subscription_is_told_and_asked_again(
    granted: threading.Event, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.delivery.subscriptions.CONNECT_SECONDS", 0.2)
    with StubBroker(refusing("ack", granted, "silent")) as broker:
        with a_node(broker.url, tmp_path) as (node, _):
            stands(node, "refused: ack (no answer)")
            granted.set()
            stands(node, "connected")
        assert [name for _, name in broker.connects] == [f"edge/{NODE}"]


def test_a_node_whose_subscription_ends_the_connection_delivers_all_the_same(
    tmp_path: Path,
) -> None:
    """As brokers do whose access list forbids a topic: the rest is heard, and the wish waits."""
    habits = refusing("cmd", FOR_EVER, CLOSE)
    with StubBroker(habits) as broker, a_node(broker.url, tmp_path) as (node, box):
        stands(node, "refused: cmd (it ends the connection when asked)")
        box.append(reading())
        wait_for(lambda: any(t == COUNTS for t, *_ in broker.published), "a reading")
        wait_for(lambda: not box.pending_count(), "its acknowledgement")
        seq, log = 1, box.log_id
        text = dumps(as_dict(Ack(node=NODE, log=log, seq=seq))).encode()

        def stored() -> bool:
            broker.publish(f"{OWN}/ack", text)
            return box.stored == seq

        wait_for(stored, "the recorder's word is heard")


@pytest.mark.parametrize("keep", [None, SessionOptions("recorder")])
def test_a_recorder_hears_what_is_granted_and_asks_again_for_the_rest(
    keep: SessionOptions | None, granted: threading.Event
) -> None:
    heard: list[str] = []
    habits = refusing("health", granted)
    with StubBroker(habits) as broker, a_receiver(broker.url, keep, heard) as r:
        stands(r, "refused: to hear health (Not authorized)")
        broker.publish(COUNTS, b"{}")
        wait_for(lambda: COUNTS in heard, "counts")
        granted.set()
        stands(r, "connected: MQTT 5")
        broker.publish(f"{OWN}/health", b"{}")
        wait_for(lambda: f"{OWN}/health" in heard, "health")
        assert len(broker.connects) == 1


def test_who_only_looks_is_told_at_once_that_it_may_not() -> None:
    with StubBroker(refusing("", FOR_EVER)) as broker:
        receiver = Receiver(Broker(url=broker.url), lambda *_: None)
        with pytest.raises(
            BrokerError, match=r"refused: to hear counts, health, info, status \(Not"
        ):
            receiver.run(threading.Event())


@pytest.mark.parametrize(
    ("share", "said"),
    [
        ("close", "ends the connection at"),
        pytest.param("deaf", "grants .* delivers nothing", marks=pytest.mark.slow),
    ],
)
def test_a_group_that_a_broker_gives_nothing_ends_in_one_line_and_never_connected(
    share: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    keep = SessionOptions("recorder", "halves")
    with StubBroker(Habits(share=share)) as broker:
        receiver = Receiver(Broker(url=broker.url), lambda *_: None, keep, patient=True)
        stop = threading.Event()
        late = threading.Timer(PATIENCE, stop.set)  # one that trusts the broker goes on
        late.start()
        with pytest.raises(BrokerError, match=f"{said} .*--part K/N"):
            receiver.run(stop)
        late.cancel()
    assert not [m for m in caplog.messages if "broker connected" in m]


def test_a_check_names_what_the_node_may_not_hear() -> None:
    told = pytest.raises(BrokerError, match=r"hear .*/ack and .*/cmd/\+ \(Not authorized\)")
    with StubBroker(refusing("cmd", FOR_EVER)) as broker, told:
        probe(Broker(url=broker.url), [f"{OWN}/ack", f"{OWN}/cmd/+"])


def test_a_command_waits_for_a_leader_to_be_elected() -> None:
    def suback(wanted: str, asked: int) -> int:
        return REFUSED if "status" in wanted and asked <= 3 else GRANTED

    with StubBroker(Habits(suback=suback)) as broker:
        broker.publish(
            f"{OWN}/status",
            dumps(
                {"schema": "edge.status/1", "node": NODE, "session": "s", "state": "online"}
            ).encode(),
            retain=True,
        )
        with Caller(Broker(url=broker.url)) as caller:
            assert caller.nodes("school/*") == [NODE]


def test_a_broker_that_retains_nothing_gets_status_and_will_all_the_same(tmp_path: Path) -> None:
    with StubBroker(Habits(retain_available=False)) as broker:
        with a_node(broker.url, tmp_path) as (node, box):
            stands(node, "connected: MQTT 5")
            node.send(status("online"))
            box.append(reading())
            wait_for(lambda: not box.pending_count(), "the reading's acknowledgement")
            wait_for(lambda: any(t == f"{OWN}/status" for t, *_ in broker.published), "status")
        assert not any(retain for *_, retain in broker.published)
