"""Which readings are offered next: new ones at once, older ones in order and paced.

What waits when a connection comes up is the backlog. It leaves room for new readings, a broker that
was away for a week is not flooded, and one reading that the broker refuses holds up no other.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from typing import Any

from edge.base.errors import OutboxError
from edge.delivery.outbox import Outbox

log = logging.getLogger(__name__)

IN_FLIGHT = 20
RESERVED = 5  # places in flight that the backlog leaves to new readings
BACKLOG_PER_SECOND = 50.0
REFUSED_PAUSE_SECONDS = 30.0
# A broker's acknowledgement so old, and still no recorder's: offered again, and as often.
RECORDER_SECONDS = 60.0
# While its `ack` does not move, the pause doubles up to this: its database is away, not the broker.
LONGEST_RECORDER_SECONDS = 3600.0

Waiting = list[tuple[int, dict[str, Any]]]


class _Turn:
    """When one recorder is offered again what it lacks: a minute after its `ack` moved, less and less
    often while it stands still. One that is named and says nothing is away, and is offered nothing
    until it speaks: the others would only get once more what they have."""

    def __init__(self, now: float, named: bool) -> None:
        self._named, self._away, self._spoke = named, named, False
        self._pause, self._at = RECORDER_SECONDS, now + RECORDER_SECONDS

    def heard(self, now: float, moved: bool) -> None:
        if moved or self._away:
            self._pause = RECORDER_SECONDS
            self._at = min(self._at, now + RECORDER_SECONDS)
        self._away, self._spoke = False, True

    def due(self, now: float) -> bool:
        if now < self._at:
            return False
        self._at = now + self._pause
        self._pause = min(2 * self._pause, LONGEST_RECORDER_SECONDS)
        self._away, self._spoke = self._named and not self._spoke, False
        return not self._away


class SendScheduler:
    """For one thread, the publisher's."""

    def __init__(self, outbox: Outbox, clock: Callable[[], float] = time.monotonic) -> None:
        self._outbox, self._clock = outbox, clock
        self._in_flight: set[tuple[str, int]] = set()
        # "": whoever speaks, where none is named.
        names = outbox.recorders or ("",)
        self._turns = {name: _Turn(clock(), bool(name)) for name in names}
        self.connected()

    def connected(self) -> None:
        """A new connection, or a new log: nothing is in flight, all that waits is the backlog."""
        self._log_id = self._outbox.log_id
        self._in_flight.clear()
        self._refused = False
        self._paused_until = 0.0
        self._start_over()
        self._live = self._backlog_to
        self._credit, self._counted = 0.0, self._clock()

    def _start_over(self) -> None:
        self._backlog, self._backlog_to = 0, self._outbox.seq_range()[1]

    def next(self, fresh: bool = True) -> Waiting:
        """What to send now; each is in flight until `acknowledged` or `refused`. fresh: new ones, too,
        not only the backlog."""
        now = self._clock()
        if self._outbox.log_id != self._log_id:
            self.connected()  # what waits may have come under it, or out of a damaged file
        if due := [name for name, turn in self._turns.items() if turn.due(now)]:
            self._requeue_unconfirmed([name for name in due if name])
        free = IN_FLIGHT - len(self._in_flight)
        if free <= 0:
            return []
        found = self._outbox.pending(above=self._live, limit=free) if fresh else []
        if found:
            self._live = found[-1][0]
        found += self._from_backlog(now, free - len(found) - RESERVED)
        self._in_flight |= {(payload["log"], seq) for seq, payload in found}
        return found

    def _requeue_unconfirmed(self, recorders: Collection[str]) -> None:
        try:
            if self._outbox.requeue_unconfirmed(RECORDER_SECONDS, recorders):
                self._start_over()
        except OutboxError as error:
            log.error("%s; it will be tried again", error)  # a full disk: the rest goes on

    def _from_backlog(self, now: float, room: int) -> Waiting:
        self._credit = min(
            self._credit + BACKLOG_PER_SECOND * (now - self._counted), BACKLOG_PER_SECOND
        )
        self._counted = now
        room = min(room, int(self._credit))
        if room <= 0 or now < self._paused_until:
            return []
        rows = self._outbox.pending(above=self._backlog, up_to=self._backlog_to, limit=room)
        if rows:
            self._backlog = rows[-1][0]
        elif self._refused:
            # At the end, and some were refused on the way: from the start, after the pause.
            self._refused = False
            self._start_over()
        rows = [(s, p) for s, p in rows if (p["log"], s) not in self._in_flight]
        self._credit -= len(rows)
        return rows

    def acknowledged(self, seq: int, log_id: str) -> None:
        """By the broker. Raises OutboxError where the disk does not take the mark; then it is sent once
        more, later."""
        try:
            self._outbox.acknowledge(seq, log_id)
        except OutboxError:
            self.refused(seq, log_id)
            raise
        self._in_flight.discard((log_id, seq))

    def refused(self, seq: int, log_id: str) -> None:
        """By the broker, on a connection that stands: later again, and the others first."""
        self._in_flight.discard((log_id, seq))
        self._refused = True
        self._backlog_to = max(self._backlog_to, seq)
        self._paused_until = self._clock() + REFUSED_PAUSE_SECONDS

    def rejected(self, seq: int, log_id: str) -> None:
        """By this node: it is no reading, and is set aside. Raises OutboxError."""
        self._in_flight.discard((log_id, seq))
        self._outbox.reject(seq)

    def on_recorder_ack(self, seq: int, log_id: str, recorder: str = "") -> None:
        """This recorder ("" of an older one) stored everything up to seq."""
        box = self._outbox
        known = box.stored_by(recorder) if box.recorders else box.stored
        turn = self._turns.get(recorder if box.recorders else "")
        if turn is not None:
            turn.heard(self._clock(), moved=log_id == box.log_id and seq != known)
        box.on_recorder_ack(seq, log_id, recorder)
