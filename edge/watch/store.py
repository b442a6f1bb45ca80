"""Messages -> a database: each reading once, and how far each log is stored.

`write` is one transaction. A reading is new when its log is not stored so far and its seq is not there;
the row of its log is locked meanwhile, so recorders that share the load agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from edge.base.clock import parse_rfc3339
from edge.delivery.messages import Counts, Health, Status
from edge.watch.database import Database
from edge.watch.messages import Message
from edge.watch.retention import delete_messages
from edge.watch.tables import COUNTS, HEALTH, LOGS, STATUSES

STEP = 1000  # readings looked at in one question

Log = tuple[str, str]  # node, log


@dataclass(slots=True)
class Written:
    """What a batch became. new, known: readings stored, and passed over since they were there;
    contiguous_seq: by log, the seq up to which everything is stored."""

    new: int = 0
    known: int = 0
    contiguous_seq: dict[Log, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Progress:
    """One log's row in LOGS."""

    first: int
    whole: int
    highest: int


class Store(Database):
    """The recorder's tables, for one thread."""

    def write(self, batch: Sequence[Message], received: datetime) -> Written:
        """Store all or nothing. Raises StoreError."""
        written = Written()
        payloads = [message.payload for message in batch]
        counts = [p for p in payloads if isinstance(p, Counts)]
        healths = [p for p in payloads if isinstance(p, Health)]
        statuses = [p for p in payloads if isinstance(p, Status)]
        with self.transaction() as db:
            keys = {(m.node, m.log) for m in counts} | {(m.node, m.log) for m in healths}
            logs = self._lock(db, keys)
            for health in healths:
                progress = logs[health.node, health.log]
                progress.first = max(progress.first, health.outbox_first)
            self._write_counts(db, counts, logs, received, written)
            for key, progress in logs.items():
                _advance(db, key, progress)
                written.contiguous_seq[key] = progress.whole
            _write_progress(db, logs)
            self._write_health(db, healths, received)
            _write_statuses(db, statuses, received)
        return written

    def _insert(self, table: sa.Table) -> sa.Insert:
        """Make an insert that passes over rows that are there."""
        insert = postgresql.insert if self.postgresql else sqlite.insert
        return insert(table).on_conflict_do_nothing()

    def _lock(self, db: sa.Connection, keys: Iterable[Log]) -> dict[Log, _Progress]:
        """Lock the logs' rows, made where they are missing, until the transaction ends."""
        ordered = sorted(keys)  # in one order, so that two recorders never wait for each other
        if not ordered:
            return {}
        db.execute(
            self._insert(LOGS),
            [{"node": n, "log": g, "first": 1, "whole": 0, "highest": 0} for n, g in ordered],
        )
        rows = db.execute(
            sa.select(LOGS)
            .where(sa.tuple_(LOGS.c.node, LOGS.c.log).in_(ordered))
            .order_by(LOGS.c.node, LOGS.c.log)
            .with_for_update()
        )
        return {(r.node, r.log): _Progress(r.first, r.whole, r.highest) for r in rows}

    def _write_counts(
        self,
        db: sa.Connection,
        counts: Sequence[Counts],
        logs: dict[Log, _Progress],
        received: datetime,
        written: Written,
    ) -> None:
        fresh = {(m.node, m.log, m.seq): m for m in counts if m.seq > logs[m.node, m.log].whole}
        known = _stored_among(db, list(fresh))
        rows = [_row(m, received) for key, m in fresh.items() if key not in known]
        if rows:
            db.execute(sa.insert(COUNTS), rows)
        for row in rows:
            progress = logs[row["node"], row["log"]]
            progress.highest = max(progress.highest, row["seq"])
        written.new, written.known = len(rows), len(counts) - len(rows)

    def _write_health(
        self, db: sa.Connection, healths: Sequence[Health], received: datetime
    ) -> None:
        rows = [
            {
                "node": m.node,
                "received": received,
                "session": m.session,
                "n": m.n,
                "temperature_celsius": m.temperature_celsius,
                "outbox_pending": m.outbox_pending,
                "outbox_dropped": m.outbox_dropped,
                "message": m.model_dump(mode="json", by_alias=True),
            }
            for m in healths
        ]
        if rows:
            db.execute(self._insert(HEALTH), rows)

    def forget(self, older_than: timedelta | None, place: str, now: datetime) -> int:
        """Delete what a place (see `delete_messages`) said before that age, or ever. Returns how many
        readings went. Raises StoreError."""
        before = None if older_than is None else now - older_than
        with self.transaction() as db:
            return delete_messages(db, before, place)

    def readings(self, since: datetime | None = None) -> Iterable[dict[str, Any]]:
        """Yield stored readings in the order of their time, as dicts by column. Raises StoreError."""
        question = sa.select(COUNTS).order_by(COUNTS.c.start, COUNTS.c.node)
        if since is not None:
            question = question.where(COUNTS.c.start >= since)
        with self.transaction(reading=True) as db:
            rows = db.execution_options(yield_per=STEP).execute(question)
            for row in rows.mappings():
                yield dict(row)


def _stored_among(db: sa.Connection, keys: Sequence[tuple[str, str, int]]) -> set[tuple[Any, ...]]:
    found: set[tuple[Any, ...]] = set()
    columns = (COUNTS.c.node, COUNTS.c.log, COUNTS.c.seq)
    for start in range(0, len(keys), STEP):
        some = keys[start : start + STEP]
        rows = db.execute(sa.select(*columns).where(sa.tuple_(*columns).in_(some)))
        found |= {tuple(row) for row in rows}
    return found


def _advance(db: sa.Connection, key: Log, progress: _Progress) -> None:
    """Move `whole` over what is stored without a gap; what lies below `first` never comes."""
    progress.whole = max(progress.whole, progress.first - 1)
    while progress.whole < progress.highest:
        rows = db.execute(
            sa.select(COUNTS.c.seq)
            .where(COUNTS.c.node == key[0], COUNTS.c.log == key[1], COUNTS.c.seq > progress.whole)
            .order_by(COUNTS.c.seq)
            .limit(STEP)
        ).scalars()
        before = progress.whole
        for seq in rows:
            if seq != progress.whole + 1:
                return
            progress.whole = seq
        if progress.whole == before:
            return


def _write_progress(db: sa.Connection, logs: dict[Log, _Progress]) -> None:
    if not logs:
        return
    own = sa.and_(LOGS.c.node == sa.bindparam("n"), LOGS.c.log == sa.bindparam("g"))
    db.execute(
        sa.update(LOGS).where(own),
        [
            {"n": n, "g": g, "first": at.first, "whole": at.whole, "highest": at.highest}
            for (n, g), at in logs.items()
        ],
    )


def _write_statuses(db: sa.Connection, statuses: Sequence[Status], received: datetime) -> None:
    """Write changes only: a retained status comes again with every connection."""
    for m in statuses:
        last = db.execute(
            sa.select(STATUSES.c.session, STATUSES.c.state, STATUSES.c.reason)
            .where(STATUSES.c.node == m.node)
            .order_by(STATUSES.c.id.desc())
            .limit(1)
        ).first()
        now = {"session": m.session, "state": m.state, "reason": m.reason}
        if last is None or tuple(last) != tuple(now.values()):
            db.execute(sa.insert(STATUSES).values(node=m.node, received=received, **now))


def _row(m: Counts, received: datetime) -> dict[str, Any]:
    shown = None if m.faces is None or isinstance(m.faces, str) else m.faces
    return {
        "node": m.node,
        "log": m.log,
        "seq": m.seq,
        "start": parse_rfc3339(m.start),
        "end": parse_rfc3339(m.end),
        "received": received,
        "time_base": m.time_base,
        "clock_synced": m.clock_synced,
        "historical": m.historical,
        "min_group": m.min_group,
        "suppressed": isinstance(m.faces, str),
        "faces_mean": shown.mean if shown else None,
        "faces_max": shown.max if shown else None,
        "counts": m.counts,
        "person_seconds": m.person_seconds,
        "seen": m.quality.seen,
        "frames": m.quality.frames,
        "dropped": m.quality.dropped,
        "low_confidence": m.quality.low_confidence,
        "camera": m.quality.camera,
    }
