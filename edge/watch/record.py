"""Messages -> the store -> an acknowledgement, in this order.

A batch is committed; then each node hears by the retained `ack` how far its log is stored, and the
broker that its messages have arrived. Killed in between, nothing acknowledged is missing: the broker
sends again what it was not told, and what a broker lost, the node offers again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from edge.base.backoff import Backoff
from edge.base.clock import parse_rfc3339, utc_now
from edge.delivery.messages import PREFIX, Ack, Counts, Status
from edge.watch.database import StoreError, StoreMovedError
from edge.watch.home_assistant import Discovery
from edge.watch.lease import RENEW_SECONDS, Leases
from edge.watch.lines import printable
from edge.watch.messages import WARN_AT, Message
from edge.watch.partitions import STRAYS
from edge.watch.receive import UNACKNOWLEDGED, Token
from edge.watch.retention import clock_fault
from edge.watch.store import Store, Written

log = logging.getLogger(__name__)

BATCH_SECONDS = 0.2
BATCH = UNACKNOWLEDGED // 2
# RabbitMQ sends ten messages until one is acknowledged, unless it is told otherwise: a batch that grows
# no more is not waited for. With 200 nodes and windows of 1 s 124 readings/s were stored so, not 42.
QUIET_SECONDS, LEAST_LIMIT = 0.03, 5
FIRST_PAUSE_SECONDS, LAST_PAUSE_SECONDS = 0.5, 15.0
RETENTION_SECONDS = 3600.0
GONE = ("stopped", "lost")  # states of a node that hears no answer
DISCOVERY_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class LastStored:
    """Of the last batch with readings that came in time. at: UTC seconds of its commit; lag_seconds:
    from the end of a window to it, the largest."""

    at: float
    lag_seconds: float


class Ripeness:
    """When a batch is full, old enough, or as large as the broker lets it become; all in seconds."""

    def __init__(self) -> None:
        self._oldest = self._newest = 0.0
        self._limit = 0  # how many messages the broker seems to send at a time, 0 for no limit

    def added(self, size: int, now: float) -> None:
        """Note a message; size: of the batch with it."""
        self._newest = now
        if size == 1:
            self._oldest = now

    def ripe(self, size: int, now: float) -> bool:
        """Return whether a batch of so many messages is to be stored."""
        if not size:
            return False
        quiet = now - self._newest
        if now - self._oldest >= BATCH_SECONDS:
            stopped = quiet >= BATCH_SECONDS / 2 and size >= LEAST_LIMIT
            self._limit = size if stopped else 0
            return True
        return size >= BATCH or (0 < self._limit <= size and quiet >= QUIET_SECONDS)


class Recorder:
    """Stores what the receiver's thread hears: it calls `take` for every message and `flush_due` as
    often as possible."""

    def __init__(
        self,
        store: Store,
        done: Callable[[Token], None],
        publish: Callable[[str, str], object],
        keep_days: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        discovery: Discovery | None = None,
        leases: Leases | None = None,
        name: str = "",
        utc: Callable[[], datetime] = utc_now,
    ) -> None:
        """done: acknowledges a message to the broker; publish: topic and text, retained; keep_days:
        older readings are deleted, None for never; discovery: None for no Home Assistant;
        leases: of the parts that recorders share; name: of the recorder, in its `ack`."""
        self._store, self._done, self._publish = store, done, publish
        self._keep = None if keep_days is None else timedelta(days=keep_days)
        self._clock, self._discovery, self._leases = clock, discovery, leases
        self._name, self._utc = name, utc
        self._next_renewal = 0.0
        self._waiting: list[tuple[Message | None, Token]] = []
        self._connected: set[str] = set()  # nodes that said how they are, and are not answered yet
        self._ripeness = Ripeness()
        self._next_try = self._next_retention = self._next_discovery = 0.0
        self._backoff = Backoff(FIRST_PAUSE_SECONDS, LAST_PAUSE_SECONDS)
        self._ready = False
        self.new = self.known = self.conflicts = self.strays = 0
        self.refused = self.unkept = self.faults = 0
        self.last: LastStored | None = None
        self.fault = ""  # why nothing is stored at present

    @property
    def waiting(self) -> int:
        """Messages that are heard and not stored yet."""
        return len(self._waiting)

    def take(self, message: Message | None, token: Token) -> None:
        """Queue a message; None for what was refused, which is acknowledged and not stored.

        At QoS 0 the broker holds nothing back, and the kit's nodes send nothing so: no more of it waits
        than of what is acknowledged."""
        if not token.qos and (message is None or len(self._waiting) >= UNACKNOWLEDGED):
            self._pass_over(message)
            return
        self._waiting.append((message, token))
        self._ripeness.added(len(self._waiting), self._clock())
        status = message.payload if message is not None and not token.retained else None
        if isinstance(status, Status) and status.state not in GONE:
            self._connected.add(status.node)

    def _pass_over(self, message: Message | None) -> None:
        if message is None:
            return
        self.unkept += 1
        if self.unkept in WARN_AT:
            log.warning(
                "%d messages at QoS 0 are not stored, the last of %s: they come faster than they are "
                "stored; nodes send at QoS 1", self.unkept, message.node
            )  # fmt: skip

    def discard(self) -> None:
        """Drop what waits, when the connection is gone: the broker sends it again."""
        self._waiting.clear()
        self._connected.clear()
        if self._discovery is not None:
            self._discovery.reset()

    def flush_due(self) -> None:
        """Store what waits, when a batch is full or old enough, and delete what is too old."""
        now = self._clock()
        if now < self._next_try:
            return
        if self._ripeness.ripe(len(self._waiting), now):
            self._try(self._store_waiting)
        if self._keep is not None and now >= self._next_retention:
            self._try(self._forget)
        if self._leases is not None and now >= self._next_renewal:
            self._try(self._renew)
        if self._discovery is not None and now >= self._next_discovery:
            self._try(self._discover)

    def pass_over(self, token: Token) -> None:
        """Acknowledge a message that another recorder stores."""
        self._done(token)

    def flush(self) -> None:
        """Store what waits, or leave it with the broker."""
        if self._waiting:
            self._try(self._store_waiting)

    def _try(self, work: Callable[[], None]) -> None:
        try:
            if not self._ready:
                self._store.migrate()
                self._ready = True
            work()
        except StoreMovedError:
            raise  # no new attempt finds the old file again
        except StoreError as error:
            if not self.fault:
                log.error("%s; trying again, nothing is acknowledged meanwhile", error)
            self.fault = str(error)
            self.faults += 1
            # Recorders that share a database do not all come back to it in one moment.
            self._next_try = self._clock() + self._backoff.next()
            return
        if self.fault:
            log.info("the database takes readings again")
        self.fault = ""
        self._backoff.reset()

    def _store_waiting(self) -> None:
        batch = self._waiting
        try:
            self._write([message for message, _ in batch if message is not None])
        except StoreError as error:
            if not error.refused:
                raise
            self._one_by_one([message for message, _ in batch if message is not None])
        self._waiting = []
        for _, token in batch:
            self._done(token)

    def _one_by_one(self, batch: list[Message]) -> None:
        """Store each by itself, so that a row that the database will never take holds up no other."""
        for message in batch:
            try:
                self._write([message])
            except StoreError as error:
                if not error.refused:
                    raise
                self.refused += 1
                log.error("a %s message of %s is not stored: %s", message.kind, message.node, error)

    def _write(self, batch: list[Message]) -> None:
        written: Written = self._store.write(batch, utc_now())
        self.new += written.new
        self.known += written.known
        self._note_lag(batch)
        for node, log_id, seq in written.apart:
            self.conflicts += 1
            if self.conflicts in WARN_AT:
                log.warning(
                    "%s gave the number %d of its log %s to two readings, and both are stored; %d such "
                    "so far: a restored or copied card?", node, seq, printable(log_id), self.conflicts
                )  # fmt: skip
        for node, start in written.strays:
            self.strays += 1
            if self.strays in WARN_AT:
                log.warning(
                    "%s dates a reading to %s: it stands in %s, outside of the months that are kept "
                    "apart; %d such so far: is its clock right?",
                    *(node, f"{start:%Y-%m-%d}", STRAYS, self.strays),
                )
        # Who just connected hears it too: a broker may retain nothing, or what another recorder said.
        known = self._store.stored(self._connected)
        self._connected.clear()
        for (node, log_id), seq in (known | written.contiguous_seq).items():
            ack = Ack(node=node, log=log_id, seq=seq, recorder=self._name)
            self._publish(f"{PREFIX}/{node}/ack", ack.model_dump_json(by_alias=True))

    def _renew(self) -> None:
        assert self._leases is not None
        self._leases.renew()
        self._next_renewal = self._clock() + RENEW_SECONDS

    def _discover(self) -> None:
        assert self._discovery is not None
        self._discovery.turn()
        self._next_discovery = self._clock() + DISCOVERY_SECONDS

    def _note_lag(self, batch: list[Message]) -> None:
        counts = [m.payload for m in batch if isinstance(m.payload, Counts)]
        if ends := [c.end for c in counts if not c.historical]:
            now = utc_now()
            # As text they have one order, to a second; parsing each costs more than it tells.
            self.last = LastStored(
                now.timestamp(), (now - parse_rfc3339(min(ends))).total_seconds()
            )

    def _forget(self) -> None:
        assert self._keep is not None
        now, gone = self._utc(), 0
        if wrong := clock_fault(now):
            log.warning("%s", wrong)
        else:
            gone = self._store.forget(self._keep, "", now)
        self._next_retention = self._clock() + RETENTION_SECONDS
        if gone:
            try:
                self._store.overwrite_deleted(rewrite=False)
            except StoreError as error:
                log.warning("%s", error)
            log.info("%d readings older than %g days deleted", gone, self._keep.days)
