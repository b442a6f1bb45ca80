"""A node says when recorders answer no more, and when one does again."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import pytest

from edge.delivery.answers import SILENT_SECONDS, Answers
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
