"""What one client wants to hear, asked for until the broker grants it.

A cluster that elects a leader refuses subscriptions for some seconds, while the connection stands; an
access list may change. Who asks once is deaf from then on, and looks connected. Some brokers end the
connection instead of an answer: what was asked for then waits on the next one, so that the rest gets
through meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from edge.base.backoff import Backoff
from edge.delivery.client import CONNECT_SECONDS

if TYPE_CHECKING:
    from edge.delivery.client import Client, ReasonCode

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 300.0
SILENT = "no answer"
CLOSED = "it ends the connection when asked"


class Subscriptions:
    """The filters of one client, and what became of each. For its connection's thread."""

    def __init__(
        self,
        filters: Sequence[str],
        qos: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._filters, self._qos, self._clock = tuple(filters), qos, clock
        self._backoff = Backoff(FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS)
        self.refusals: dict[str, str] = {}  # filter -> the broker's reason
        self._granted: set[str] = set()
        self._asked: dict[int, tuple[str, ...]] = {}  # message id -> filters, in this order
        # At which the connection ended; the next to be tried is first.
        self._closing: list[str] = []
        self._again_at = 0.0

    @property
    def granted(self) -> bool:
        """Whether the broker grants all of them."""
        return len(self._granted) == len(self._filters)

    @property
    def deaf(self) -> bool:
        """Whether it grants none."""
        return not self._granted

    @property
    def answered(self) -> bool:
        """Whether something is known of each: granted, refused, or the broker was silent for long."""
        return len(self._granted | set(self.refusals)) == len(self._filters)

    def begin(self, client: Client) -> None:
        """Ask on a new connection, for all that ended none yet. Takes the client's `on_subscribe`."""
        self._granted.clear()
        self._asked.clear()
        self.refusals = dict.fromkeys(self._closing, CLOSED)
        client.on_subscribe = self._on_subscribe
        self._again_at = self._clock() + self._backoff.next()
        if fresh := tuple(wanted for wanted in self._filters if wanted not in self._closing):
            self._ask(client, fresh)

    def poll(self, client: Client) -> None:
        """Ask again for what was refused, or not answered, once its pause is over."""
        if self.granted or self._clock() < self._again_at:
            return
        missing = [wanted for wanted in self._filters if wanted not in self._granted]
        for wanted in missing:
            self.refusals.setdefault(wanted, SILENT)
        sure = tuple(wanted for wanted in missing if wanted not in self._closing)
        self._ask(client, sure or (self._closing[0],))

    def ended(self) -> bool:
        """Note that the broker ended the connection, and return whether instead of an answer."""
        asked = [wanted for filters in self._asked.values() for wanted in filters]
        unanswered = [wanted for wanted in dict.fromkeys(asked) if wanted not in self._granted]
        unanswered = [wanted for wanted in unanswered if self.refusals.get(wanted) != SILENT]
        self._asked.clear()
        rest = [wanted for wanted in self._closing if wanted not in unanswered]
        self._closing = rest + unanswered
        return bool(unanswered)

    def _ask(self, client: Client, filters: tuple[str, ...]) -> None:
        mid = client.subscribe([(wanted, self._qos) for wanted in filters])[1]
        if mid is not None:  # None: the connection is gone, which its loop finds too
            self._asked[mid] = filters
        silent = any(self.refusals.get(wanted) == SILENT for wanted in filters)
        self._again_at = self._clock() + CONNECT_SECONDS + (self._backoff.next() if silent else 0.0)

    def _on_subscribe(
        self, client: Client, userdata: Any, mid: int, reasons: list[ReasonCode], properties: Any
    ) -> None:
        # Fewer answers than filters: of the others the broker was silent.
        for wanted, reason in zip(self._asked.pop(mid, ()), reasons, strict=False):
            if wanted in self._closing:
                self._closing.remove(wanted)
            if reason.is_failure:
                self._granted.discard(wanted)
                self.refusals[wanted] = str(reason)
            else:
                self._granted.add(wanted)
                self.refusals.pop(wanted, None)
        if self.granted:
            self._backoff.reset()
        elif not self._asked:
            self._again_at = self._clock() + self._backoff.next()
