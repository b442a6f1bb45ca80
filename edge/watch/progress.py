"""How far each log is stored, for the `ack` that tells its node, and what of it was deleted."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from edge.watch.tables import COUNTS, LOGS

STEP = 1000  # rows of one question

Log = tuple[str, str]  # node, log


@dataclass(slots=True)
class Progress:
    """One log's row in LOGS."""

    first: int = 1
    whole: int = 0
    highest: int = 0
    deleted_until: datetime | None = None

    def stored(self, seq: int, end: datetime) -> bool:
        """Tell whether a reading that is not there was, and has been deleted."""
        return seq <= self.whole and self.deleted_until is not None and end <= self.deleted_until

    def lacks_below(self, first: int) -> None:
        """Take a node's word that nothing below `first` will come; of what nobody has seen yet, which
        might be anybody's word on an open broker, no gap is closed in advance."""
        self.first = max(self.first, min(first, self.highest + 1))


def tombstone(log: Log) -> Log:
    """Name a log whose place was forgotten: found again by who asks for it, read by nobody."""
    return "", hashlib.sha256("\0".join(log).encode()).hexdigest()


def lock(
    db: sa.Connection, keys: Iterable[Log], insert: sa.Insert, made: Collection[Log] = ()
) -> dict[Log, Progress]:
    """Lock the logs' rows until the transaction ends, made where they are missing. insert: into LOGS,
    passing over rows that are there; made: logs whose rows need not be."""
    ordered = sorted(keys)  # in one order, so that two recorders never wait for each other
    if not ordered:
        return {}
    if missing := [key for key in ordered if key not in made]:
        db.execute(insert, [_fields(key, Progress()) for key in missing])
    logs = _rows(db, ordered)
    # Of a place that was forgotten meanwhile, which changed their names.
    if missing := [key for key in ordered if key not in logs]:
        db.execute(insert, [_fields(key, Progress()) for key in missing])
        logs |= _rows(db, missing)
    unheard = {tombstone(log): log for log, at in logs.items() if at == Progress()}
    for buried, at in _rows(db, sorted(unheard)).items():
        logs[unheard[buried]] = at
    if unheard:
        db.execute(sa.delete(LOGS).where(_among(list(unheard))))
    return logs


def _fields(key: Log, at: Progress) -> dict[str, Any]:
    node, log = key
    return {
        "node": node,
        "log": log,
        "first": at.first,
        "whole": at.whole,
        "highest": at.highest,
        "deleted_until": at.deleted_until,
    }


def _among(logs: Collection[Log]) -> sa.ColumnElement[bool]:
    return sa.tuple_(LOGS.c.node, LOGS.c.log).in_(logs)


# One parameter a column, where a list of pairs would be a thousand.
_ASKED = "unnest(CAST(:nodes AS text[]), CAST(:logs AS text[]))"
_LOCKED = sa.text(
    f"SELECT logs.* FROM logs JOIN {_ASKED} AS asked (n, g) ON node = n AND log = g "
    "ORDER BY node, log FOR UPDATE OF logs"
).columns(*LOGS.columns)
_UPDATED = sa.text(
    "UPDATE logs SET first = f, whole = w, highest = h, deleted_until = d FROM unnest("
    "CAST(:node AS text[]), CAST(:log AS text[]), CAST(:first AS bigint[]), CAST(:whole AS bigint[]), "
    "CAST(:highest AS bigint[]), CAST(:deleted_until AS timestamptz[])) AS now (n, g, f, w, h, d) "
    "WHERE node = n AND log = g"
)


def _rows(db: sa.Connection, ordered: Collection[Log]) -> dict[Log, Progress]:
    if not ordered:
        return {}
    if db.dialect.name == "postgresql":
        nodes, logs = zip(*ordered, strict=True)
        rows = db.execute(_LOCKED, {"nodes": list(nodes), "logs": list(logs)})
    else:  # whose transaction has the database to itself
        rows = db.execute(sa.select(LOGS).where(_among(ordered)))
    return {(r.node, r.log): Progress(r.first, r.whole, r.highest, r.deleted_until) for r in rows}


def advance(db: sa.Connection, logs: Mapping[Log, Progress], fresh: Mapping[Log, set[int]]) -> None:
    """Move each `whole` over what is stored without a gap; what lies below `first` never comes. fresh:
    by log, the numbers that this transaction stored. The database is asked only about logs that have a
    gap."""
    for key, at in logs.items():
        at.whole = max(at.whole, at.first - 1)
        at.highest = max(at.highest, *fresh.get(key, (0,)))
        while at.whole + 1 in fresh.get(key, ()):
            at.whole += 1
    gaps = {key: at for key, at in logs.items() if at.whole < at.highest}
    for key in _followed(db, gaps):
        _advance_over_stored(db, key, gaps[key])


def _followed(db: sa.Connection, gaps: Mapping[Log, Progress]) -> list[Log]:
    """The logs of which the next number is stored."""
    wanted = [(*key, at.whole + 1) for key, at in gaps.items()]
    if db.dialect.name == "postgresql":
        return [(row.node, row.log) for row in numbered(db, wanted, (COUNTS.c.node, COUNTS.c.log))]
    place, found = sa.tuple_(COUNTS.c.node, COUNTS.c.log, COUNTS.c.seq), list[Log]()
    for start in range(0, len(wanted), STEP):
        some = sa.select(COUNTS.c.node, COUNTS.c.log).where(place.in_(wanted[start : start + STEP]))
        found += [(row.node, row.log) for row in db.execute(some)]
    return found


def numbered(
    db: sa.Connection,
    keys: Sequence[tuple[str, str, int]],
    columns: Sequence[sa.ColumnElement[Any]],
    starts: Sequence[datetime] = (),
) -> Iterable[sa.Row[Any]]:
    """Read the readings of some numbers (node, log, seq) in PostgreSQL, by the key's index; where it is
    known when each began, in that month alone."""
    if not keys:
        return []
    kinds: dict[str, Any] = {"node": sa.Text, "log": sa.Text, "seq": sa.BigInteger}
    values: list[Sequence[Any]] = list(zip(*keys, strict=True))
    if starts:
        kinds["start"] = sa.DateTime(timezone=True)
        values.append(starts)
    # A list of a thousand pairs would be planned for each month; arrays are one plan.
    asked = (
        sa.func.unnest(
            *(
                sa.cast(list(column), postgresql.ARRAY(kind))
                for column, kind in zip(values, kinds.values(), strict=True)
            )
        )
        .table_valued(*kinds, name="asked")
        .render_derived()
    )
    same = [COUNTS.c[name] == asked.c[name] for name in kinds]
    if starts:
        same.append(COUNTS.c.start.between(min(starts), max(starts)))
    # LIMIT, since PostgreSQL would otherwise read all months for what it takes for many numbers.
    each = sa.select(*columns).where(*same).limit(1).lateral()
    return db.execute(sa.select(each).select_from(asked.join(each, sa.true())))


def _advance_over_stored(db: sa.Connection, key: Log, progress: Progress) -> None:
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


def write_progress(db: sa.Connection, logs: Mapping[Log, Progress]) -> None:
    """Write what `lock` gave, as it is now."""
    rows = [_fields(key, at) for key, at in logs.items()]
    if not rows:
        return
    if db.dialect.name == "postgresql":
        db.execute(_UPDATED, {name: [row[name] for row in rows] for name in rows[0]})
        return
    own = sa.and_(LOGS.c.node == sa.bindparam("n"), LOGS.c.log == sa.bindparam("g"))
    db.execute(
        sa.update(LOGS).where(own),
        [{"n": row.pop("node"), "g": row.pop("log"), **row} for row in rows],
    )
