"""Retained texts to the broker: of each topic the last one, and as many at once as a broker takes.

A recorder that catches up makes acknowledgements faster than a broker takes them: 20 at once to
mosquitto. In the client's own queue all of them would wait, a kilobyte each.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from edge.delivery.client import loop_once
from edge.delivery.scheduler import IN_FLIGHT

if TYPE_CHECKING:
    from edge.delivery.client import Client, ReasonCode

log = logging.getLogger(__name__)

FINISH_SECONDS = 5.0


class Announcer:
    """What waits for one connection, in its thread."""

    def __init__(self, client: Client, retains: bool, denied: set[str]) -> None:
        """retains: whether the broker keeps a topic's last text; denied: first parts of the topics that
        it refused, each of which is logged once."""
        self._client, self._retains, self._denied = client, retains, denied
        self._waiting: dict[str, str] = {}  # by topic
        self._in_flight: dict[int, str] = {}  # mid -> topic, until the broker answers
        client.on_publish = self._arrived

    def say(self, topic: str, text: str) -> None:
        """Publish a text at QoS 1, in place of one that waits on the same topic."""
        self._waiting[topic] = text
        self._send()

    def finish(self) -> None:
        """Send all that waits, unless that takes longer than FINISH_SECONDS."""
        deadline = time.monotonic() + FINISH_SECONDS
        while self._waiting and time.monotonic() < deadline and loop_once(self._client, 0.05):
            pass

    def _send(self) -> None:
        while self._waiting and len(self._in_flight) < IN_FLIGHT:
            topic = next(iter(self._waiting))
            text = self._waiting.pop(topic)
            sent = self._client.publish(topic, text, qos=1, retain=self._retains)
            self._in_flight[sent.mid] = topic

    def _arrived(
        self, client: Client, data: Any, mid: int, reason: ReasonCode, properties: Any
    ) -> None:
        """Log what an access list forbids; MQTT 3.1.1 does not tell."""
        topic = self._in_flight.pop(mid, "")
        first = topic.split("/")[0]
        if reason.is_failure and first not in self._denied:
            self._denied.add(first)
            log.error(
                "the broker refuses what is published on %s (%s): check its access list; "
                "`edge-watch broker` writes one", topic, reason
            )  # fmt: skip
        self._send()
