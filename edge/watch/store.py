"""Messages -> a database: each reading once, and how far each log is stored.

`write` is one transaction. A reading is known when one of its number (node, log, seq) is there and says
the same. Where it says something else, the number was given twice (a restored card, two boards of one
card): the reading is stored too, in a log of its own, LOG~HASH, so that the table's key and everybody's
deduplication on (node, log, seq) hold. The row of a log is locked meanwhile, so recorders that share
the load agree.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from edge.base.clock import parse_rfc3339
from edge.delivery.messages import Counts, Health, Status
from edge.watch.bulk import insert_rows
from edge.watch.database import LONG_ANSWER_SECONDS, Database
from edge.watch.messages import Message
from edge.watch.partitions import Months
from edge.watch.progress import STEP, Log, Progress, advance, lock, numbered, write_progress
from edge.watch.quarters import mark
from edge.watch.retention import delete_messages, nodes_of
from edge.watch.tables import APART, COUNTS, DERIVED, HEALTH, LOGS, RETIRED, STATUSES

Key = tuple[str, str, int]  # node, log, seq
Row = dict[str, Any]  # of COUNTS, by column
# What a reading says, and a repetition says again: not when it came, nor whether that was late.
SAID = tuple(
    c.name
    for c in COUNTS.columns
    # What was stored before `min_cell` was, and is said again, is the same reading.
    if c.name not in ("log", "seq", "received", "historical", "min_cell", *DERIVED)
)

MOST_LOGS = 100_000  # remembered to have a row

# What the rooms' timeline needs of a reading.
SHOWN = tuple(
    COUNTS.c[name]
    for name in (
        *("node", "log", "seq", "start", "end", "received"),
        *("faces_mean", "suppressed", "person_seconds"),
    )
)


@dataclass(slots=True)
class Written:
    """What a batch became. new, known: readings stored, and passed over since they were there; apart:
    of the new, node, log and seq of those whose number another reading has; strays: node and start of
    those whose month has no partition in PostgreSQL; contiguous_seq: by log, the seq up to which
    everything is stored."""

    new: int = 0
    known: int = 0
    strays: list[tuple[str, datetime]] = field(default_factory=list)
    apart: list[Key] = field(default_factory=list)
    contiguous_seq: dict[Log, int] = field(default_factory=dict)


class Store(Database):
    """The recorder's tables, for one thread."""

    def __init__(self, address: str, read_only: bool = False) -> None:
        """As of Database."""
        super().__init__(address, read_only)
        # Logs whose rows this one saw, so that it need not try to make them with every batch.
        self._made: set[Log] = set()
        self._months = Months()

    def write(self, batch: Sequence[Message], received: datetime) -> Written:
        """Store all or nothing. Raises StoreError."""
        written = Written()
        payloads = [message.payload for message in batch]
        counts = [p for p in payloads if isinstance(p, Counts)]
        healths = [p for p in payloads if isinstance(p, Health)]
        statuses = [p for p in payloads if isinstance(p, Status)]
        rows = [_row(m, received) for m in counts]
        if self.postgresql:
            self._prepare_months(rows, received, written)
        with self.transaction(seconds=self.answer_seconds) as db:
            keys = {(m.node, m.log) for m in counts} | {(m.node, m.log) for m in healths}
            logs = lock(db, keys, self._insert(LOGS), self._made)
            fresh = _write_counts(db, rows, logs, written)
            if written.new:
                mark(db, (row["start"] for row in rows))
            for health in healths:
                logs[health.node, health.log].lacks_below(health.outbox_first)
            advance(db, logs, fresh)
            write_progress(db, logs)
            written.contiguous_seq = {key: progress.whole for key, progress in logs.items()}
            _bring_back(db, {m.node for m in counts})
            self._write_health(db, healths, received)
            _write_statuses(db, statuses, received)
        if len(self._made) > MOST_LOGS:
            self._made.clear()
        self._made |= keys
        return written

    def _prepare_months(self, rows: Sequence[Row], received: datetime, written: Written) -> None:
        starts = [row["start"] for row in rows]
        if lacking := self._months.lacking(starts, received):
            with self.transaction(seconds=LONG_ANSWER_SECONDS) as db:
                self._months.prepare(db, lacking, received)
        if stray := set(self._months.strays(starts)):
            written.strays = [(row["node"], row["start"]) for row in rows if row["start"] in stray]

    def stored(self, nodes: Collection[str]) -> dict[Log, int]:
        """Return up to which number each log of these nodes is stored without a gap. Raises
        StoreError."""
        wanted = sorted(nodes)
        question = sa.select(LOGS.c.node, LOGS.c.log, LOGS.c.whole)
        with self.transaction(reading=True, seconds=self.answer_seconds) as db:
            rows = db.execute(question.where(LOGS.c.node.in_(wanted))).all() if wanted else []
        return {(node, log): whole for node, log, whole in rows if whole and "~" not in log}

    def _insert(self, table: sa.Table) -> sa.Insert:
        """Make an insert that passes over rows that are there."""
        insert = postgresql.insert if self.postgresql else sqlite.insert
        return insert(table).on_conflict_do_nothing()

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
        readings went; `overwrite_deleted` takes them out of the files. Raises StoreError."""
        before = None if older_than is None else now - older_than
        with self.transaction() as db:
            return delete_messages(db, before, place, now)

    def knows(self, place: str) -> bool:
        """Tell whether a place (site, site/room or site/room/node) ever spoke. Raises StoreError."""
        with self.transaction(reading=True) as db:
            return bool(nodes_of(db, place))

    def readings(self, since: datetime | None = None) -> Iterable[dict[str, Any]]:
        """Yield stored readings in the order of their time, as dicts by column. Raises StoreError."""
        question = sa.select(COUNTS).order_by(COUNTS.c.start, COUNTS.c.node)
        if since is not None:
            question = question.where(COUNTS.c.start >= since)
        with self.transaction(reading=True) as db:
            rows = db.execution_options(yield_per=STEP).execute(question)
            for row in rows.mappings():
                yield dict(row)

    def recent(self, first: datetime, end: datetime) -> list[Row]:
        """Return what a timeline needs of the readings that began in a time, the newest first; also
        beside the thread that writes. Raises StoreError."""
        began = COUNTS.c.start
        question = sa.select(*SHOWN).where(began >= first, began < end).order_by(began.desc())
        with self.transaction(reading=True) as db:
            return [dict(row) for row in db.execute(question).mappings()]


def _write_counts(
    db: sa.Connection, rows: Sequence[Row], logs: dict[Log, Progress], written: Written
) -> dict[Log, set[int]]:
    """Returns the numbers that were stored, by log."""
    # Above `highest` nothing is stored; what stands apart has no row of its own in LOGS.
    old = (r for r in rows if r["seq"] <= logs[r["node"], r["log"]].highest or "~" in r["log"])
    there = _stored(db, {_key(row): row["start"] for row in old})
    fresh: dict[Key, Row] = {}
    doubtful = []
    for row in rows:
        key, progress = _key(row), logs[row["node"], row["log"]]
        other = fresh.get(key) or there.get(key)
        if other is None and row["seq"] > progress.whole:
            fresh[key] = row
        elif not (_same(row, other) if other else progress.stored(row["seq"], row["end"])):
            doubtful.append(row)
    # Numbers of what never came, or that were given twice: seldom.
    apart = _stored(db, {_key(_apart(row)): row["start"] for row in doubtful})
    moved = _said_at(db, doubtful) | {_hash(row) for row in fresh.values() if doubtful}
    for row in doubtful:
        key, away = _key(row), _apart(row)
        other = fresh.get(key) or there.get(key)
        if _key(away) in apart or _key(away) in fresh:
            continue
        if other is None:
            fresh[key] = row
        elif not _same(row, other) and _hash(row) not in moved:
            fresh[_key(away)] = away
            written.apart.append(key)
    _take_back(db, [row for node_log, row in fresh.items() if node_log[:2] in logs])
    insert_rows(db, COUNTS, list(fresh.values()))
    numbers: dict[Log, set[int]] = {}
    for node, log, seq in fresh:
        numbers.setdefault((node, log), set()).add(seq)
    written.new, written.known = len(fresh), len(rows) - len(fresh)
    return numbers


def _key(row: Row) -> Key:
    return row["node"], row["log"], row["seq"]


def _same(one: Row, other: Row) -> bool:
    return all(one[name] == other[name] for name in SAID)


def _hash(row: Row) -> str:
    """Hash what a reading says."""
    said = repr([sorted(row[n].items()) if isinstance(row[n], dict) else row[n] for n in SAID])
    return hashlib.blake2s(said.encode("utf-8", "replace"), digest_size=8).hexdigest()


def _apart(row: Row) -> Row:
    """Name a log by what the reading says: it has the same one whenever it comes again."""
    return {**row, "log": f"{row['log']}~{_hash(row)}"}


def _said_at(db: sa.Connection, rows: Sequence[Row]) -> set[str]:
    """Hashes of all that is stored, in logs of its own, of the times of some readings."""
    times, found = sorted({row["start"] for row in rows}), set()
    for start in range(0, len(times), STEP):
        some = COUNTS.c.start.in_(times[start : start + STEP])
        asked = sa.select(COUNTS).where(some, sa.text(f"NOT {APART}"))
        found |= {_hash(dict(row)) for row in db.execute(asked).mappings()}
    return found


def _stored(db: sa.Connection, wanted: Mapping[Key, datetime]) -> dict[Key, Row]:
    """The rows of some numbers. wanted: with when they began, for what is looked at first."""
    if db.dialect.name == "postgresql":
        keys = list(wanted)
        rows = numbered(db, keys, list(COUNTS.columns), [wanted[key] for key in keys])
        found = {_key(row): row for row in (dict(r._mapping) for r in rows)}
        # A number that was given to another time too may stand in any month.
        rest = [key for key in keys if key not in found]
        rows = numbered(db, rest, list(COUNTS.columns))
        return found | {_key(row): row for row in (dict(r._mapping) for r in rows)}
    found, ordered = {}, list(wanted)
    columns = (COUNTS.c.node, COUNTS.c.log, COUNTS.c.seq)
    for start in range(0, len(ordered), STEP):
        some = ordered[start : start + STEP]
        for row in db.execute(sa.select(COUNTS).where(sa.tuple_(*columns).in_(some))).mappings():
            found[_key(dict(row))] = dict(row)
    return found


def _take_back(db: sa.Connection, rows: Sequence[Row]) -> None:
    """Delete what stands apart and comes now under a number of its own: a node that finds that it gave
    numbers twice begins another log, and sends what it counted since in that one."""
    if not rows:
        return
    began = COUNTS.c.start
    within = began.between(min(row["start"] for row in rows), max(row["start"] for row in rows))
    if db.execute(sa.select(COUNTS.c.seq).where(sa.text(APART), within).limit(1)).first() is None:
        return
    for start in range(0, len(rows), STEP):
        some = {(row["node"], row["start"]): row for row in rows[start : start + STEP]}
        place = sa.tuple_(COUNTS.c.node, COUNTS.c.start).in_(list(some))
        for row in db.execute(sa.select(COUNTS).where(sa.text(APART), place)).mappings().all():
            if _same(some[row["node"], row["start"]], dict(row)):
                own = (COUNTS.c.node == row["node"], COUNTS.c.log == row["log"])
                db.execute(sa.delete(COUNTS).where(*own, COUNTS.c.seq == row["seq"]))


def _bring_back(db: sa.Connection, nodes: Collection[str]) -> None:
    """Show retired rooms that count again."""
    gone = set(db.execute(sa.select(RETIRED.c.node)).scalars()) & set(nodes)
    if gone:
        db.execute(sa.delete(RETIRED).where(RETIRED.c.node.in_(gone)))


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
        "min_cell": m.min_cell,
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
        "counting": m.counting,
    }
