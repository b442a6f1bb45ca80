"""Retained texts to the broker: bounded, the last one of each topic."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

from edge.delivery.scheduler import IN_FLIGHT
from edge.watch.announce import Announcer


@dataclass
class Slow:
    """A client whose broker confirms when the test says so."""

    sent: list[tuple[str, str]] = field(default_factory=list)
    on_publish: Any = None

    def publish(self, topic: str, text: str, qos: int, retain: bool) -> SimpleNamespace:
        assert (qos, retain) == (1, True)
        self.sent.append((topic, text))
        return SimpleNamespace(mid=len(self.sent))

    def confirm(self, mid: int) -> None:
        self.on_publish(self, None, mid, SimpleNamespace(is_failure=False), None)


def test_of_each_topic_the_last_text_waits_while_a_broker_is_slow() -> None:
    client = Slow()
    announcer = Announcer(cast(Any, client), True, set())
    for n in range(IN_FLIGHT + 3):
        announcer.say(f"room-{n}/ack", "1")
    assert len(client.sent) == IN_FLIGHT
    for text in ("2", "3"):
        announcer.say(f"room-{IN_FLIGHT}/ack", text)
    for mid in range(1, 4):
        client.confirm(mid)
    later = [f"room-{IN_FLIGHT + n}/ack" for n in range(3)]
    assert client.sent[IN_FLIGHT:] == list(zip(later, ["3", "1", "1"], strict=True))
    client.confirm(4)
    assert len(client.sent) == IN_FLIGHT + 3, "nothing is left"
