"""A node says when recorders answer no more, and when one does again; it connects again meanwhile."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import pytest

from edge.delivery.answers import LONGEST_RENEWAL_SECONDS, RENEWAL_SECONDS, SILENT_SECONDS, Answers
from edge.delivery.messages import Ack, Outgoing, as_dict, dumps
from edge.delivery.outbox import Outbox
from edge.delivery.publisher import MqttPublisher
from edge.settings import Broker
from fakes.broker import Habits, StubBroker
from support.clock import Clock
from support.patience import wait_for

NODE = "school/room-1/node-1"


def test_silence_is_told_once_and_its_end_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    clock = Clock()
    answers = Answers(clock)
    answers.check(True)
    clock.now += 10 * SILENT_SECONDS
    answers.check(True)
    assert not caplog.messages, "nothing was sent"
    answers.sent()
    clock.now += SILENT_SECONDS - 1
    answers.sent()
    answers.check(True)
    assert not caplog.messages
    clock.now += 1
    answers.check(False)
    assert not caplog.messages, "no recorder ever spoke: there may be none"
    for _ in range(3):
        answers.check(True)
    assert [m[:23] for m in caplog.messages] == ["no recorder has answere"]
    for _ in range(3):
        answers.heard()
    assert caplog.messages[1:] == ["a recorder answers again"]


def test_what_the_broker_had_kept_is_no_answer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a reconnect the retained ack comes, whoever is still there to store anything."""
    monkeypatch.setattr("edge.delivery.answers.SILENT_SECONDS", 0.5)
    caplog.set_level(logging.INFO)
    box = Outbox(tmp_path / "box.sqlite")
    will = Outgoing("status", {"node": NODE, "state": "lost"}, retain=True)
    with StubBroker(Habits()) as broker:
        kept, said = (
            dumps(as_dict(Ack(node=NODE, log=box.log_id, seq=seq))).encode() for seq in (0, 2)
        )
        for number in (1, 2):
            box.append({"node": NODE, "end": "2026-01-01T00:00:00.000Z", "window_seconds": 10,
                        "time_base": "utc", "historical": False, "number": number})  # fmt: skip
        broker.publish(f"edge/v1/{NODE}/ack", kept, retain=True)
        node = MqttPublisher(Broker(url=broker.url), f"edge/{NODE}", will, box)
        node.start()
        wait_for(lambda: any("no recorder has" in m for m in caplog.messages), "told")
        assert box.stored == 0, "it is believed all the same"
        broker.publish(f"edge/v1/{NODE}/ack", said)
        wait_for(lambda: "a recorder answers again" in caplog.messages, "told")
        hurried = threading.Event()
        hurried.set()
        node.finish(will, 0.0, hurried)
    box.close()


def test_a_connection_without_answers_is_made_anew_less_and_less_often() -> None:
    clock = Clock()
    answers = Answers(clock, lambda: 1.0)
    answers.connected()
    clock.now += 10 * RENEWAL_SECONDS
    assert not answers.deaf(True), "nothing was sent"
    answers.sent()
    clock.now += RENEWAL_SECONDS - 1
    assert not answers.deaf(True)
    clock.now += 1
    assert not answers.deaf(False), "no recorder ever spoke: there may be none"
    assert answers.deaf(True)
    pauses = []
    for _ in range(8):
        answers.connected()
        began = clock.now
        while not answers.deaf(True):
            clock.now += 30
        pauses.append(clock.now - began)
    assert pauses[:2] == [2 * RENEWAL_SECONDS, 4 * RENEWAL_SECONDS]
    assert pauses[-1] == LONGEST_RENEWAL_SECONDS
    answers.heard()
    answers.connected()
    clock.now += LONGEST_RENEWAL_SECONDS
    assert not answers.deaf(True), "all is answered"
    answers.sent()
    clock.now += RENEWAL_SECONDS
    assert answers.deaf(True)


def test_the_nodes_of_a_district_do_not_all_connect_again_in_one_moment() -> None:
    clock = Clock()
    nodes = [Answers(clock) for _ in range(400)]
    for node in nodes:
        node.connected()
        node.sent()
    clock.now += RENEWAL_SECONDS - 1
    assert not any(node.deaf(True) for node in nodes)
    again = []
    for _ in range(10):
        clock.now += RENEWAL_SECONDS / 10 + 0.1
        again.append(sum(node.deaf(True) for node in nodes))
    assert sum(again) == len(nodes)
    assert max(again) < len(nodes) / 4


def test_a_node_whose_subscription_a_broker_lost_hears_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RabbitMQ 4.0.5 did so when a member was killed and came back: the connection stands, and what was
    granted delivers nothing any more."""
    monkeypatch.setattr("edge.delivery.answers.RENEWAL_SECONDS", 0.5)
    box = Outbox(tmp_path / "box.sqlite")
    will = Outgoing("status", {"node": NODE, "state": "lost"}, retain=True)
    with StubBroker(Habits()) as broker:

        def answer(seq: int) -> None:
            ack = dumps(as_dict(Ack(node=NODE, log=box.log_id, seq=seq))).encode()
            broker.publish(f"edge/v1/{NODE}/ack", ack)

        def count(number: int) -> None:
            box.append({"node": NODE, "end": "2026-01-01T00:00:00.000Z", "window_seconds": 10,
                        "time_base": "utc", "historical": False, "number": number})  # fmt: skip

        node = MqttPublisher(Broker(url=broker.url), f"edge/{NODE}", will, box)
        node.start()
        count(1)

        def stored(seq: int) -> bool:
            answer(seq)
            return box.stored == seq

        wait_for(lambda: stored(1), "heard", every=0.1)
        broker.forget_subscriptions()
        count(2)
        wait_for(lambda: stored(2), "heard again", every=0.1)
        assert len(broker.connects) > 1
        assert not [topic for topic, content, _ in broker.published if b"lost" in content]
        hurried = threading.Event()
        hurried.set()
        node.finish(will, 0.0, hurried)
    box.close()
