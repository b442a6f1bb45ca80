"""Schools whose rooms count every ten seconds, for what the page costs."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable
from contextlib import ExitStack
from datetime import datetime, timedelta
from typing import Any
from unittest import mock

from edge.watch import view
from edge.watch.feed import Squeeze, shrink
from edge.watch.rooms import Rooms
from edge.watch.schools import Watchers
from support.heard import NOON, counts, heard, raw, small

ROOMS_A_SCHOOL = 40
LABELS = [
    *("anger", "contempt", "disgust", "fear", "happiness", "neutral", "sadness", "surprise"),
    *("unclassified", "other"),
]


class District:
    """Rooms with 15 to 28 people at random over ten labels; a second passes with each `tick`."""

    def __init__(
        self, number: int, seed: int, a_school: int = ROOMS_A_SCHOOL, now: datetime = NOON,
        hidden: float = 0.0,
    ) -> None:  # fmt: skip
        """number: of rooms; a_school: how many of them; hidden: the share of small groups."""
        self.rooms, self.now, self.second = Rooms(), now, 0
        self._random, self._hidden = random.Random(seed), hidden
        self.nodes = [
            f"school-{i // a_school:03}/room-{i % a_school + 101}/node-1" for i in range(number)
        ]
        for node in self.nodes:
            self.rooms.hear(heard(raw("status", node)), now)

    def tick(self) -> None:
        self.second += 1
        self.now += timedelta(seconds=1)
        for i in range(self.second % 10, len(self.nodes), 10):
            self.rooms.hear(heard(self._reading(self.nodes[i])), self.now)
        for i in range(self.second % 30, len(self.nodes), 30):
            warm = 50 + self._random.random()
            message = raw("health", self.nodes[i], temperature_celsius=warm)
            self.rooms.hear(heard(message), self.now)

    def _reading(self, node: str) -> tuple[str, bytes]:
        start = self.now - timedelta(seconds=10)
        if self._random.random() < self._hidden:
            return small(self.second, node, start=start)
        cells = dict.fromkeys(LABELS, 0)
        for _ in range(self._random.randint(15, 28)):
            cells[self._random.choice(LABELS)] += 1
        many = sum(cells.values())
        return counts(
            self.second, node, start, counts=cells,
            person_seconds={k: 10 * n for k, n in cells.items()},
            faces={"mean": many - 0.4, "max": many},
        )  # fmt: skip

    def watch(self, opened: Iterable[str]) -> tuple[int, int, float]:
        """Watch for two minutes of the district's own time, as one browser does.

        Returns the bytes of the first event and of a minute's changes on average, compressed, and the
        seconds of CPU that making them cost.
        """
        with ExitStack() as stack:
            for module in ("feed", "schools"):
                own = mock.Mock(monotonic=lambda: float(self.second))
                stack.enter_context(mock.patch(f"edge.watch.{module}.time", own))
            watchers = Watchers(self.rooms, lambda: "connected", lambda: self.now)
            feed, squeeze = watchers.feed(opened), Squeeze(True)
            number, texts = feed.since(None)
            first = len(squeeze.event("".join(f"data: {text}\n\n" for text in texts)))
            sent, spent = 0, 0.0
            for _ in range(120):
                self.tick()
                began = time.process_time()
                number, texts = feed.since(number)
                sent += len(squeeze.event("".join(f"data: {text}\n\n" for text in texts)))
                spent += time.process_time() - began
        return first, sent // 2, spent / 2

    def state(self) -> dict[str, Any]:
        """Return what the page's server makes of it now."""
        return shrink(view.state(self.rooms, "connected", self.now), self.now.timestamp())
