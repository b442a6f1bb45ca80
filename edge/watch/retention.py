"""Delete what was stored, by age, by place, or all of it."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from edge.base.clock import plausible
from edge.watch.partitions import after, drop, lock_over
from edge.watch.progress import tombstone
from edge.watch.quarters import forget_sums
from edge.watch.tables import COUNTS, HEALTH, LOGS, RETIRED, STATUSES, UtcTime

MOST_DAYS = 36_500


def clock_fault(now: datetime) -> str:
    """Say why nothing may be deleted by its age, "" for no reason. A clock that lost its battery says
    any year, and by one far ahead all that was ever stored is too old."""
    if plausible(now.timestamp()):
        return ""
    return (
        f"this machine's clock says {now:%Y-%m-%d}, so nothing is deleted by its age; set the clock "
        "right"
    )


def delete_messages(db: sa.Connection, before: datetime | None, place: str, now: datetime) -> int:
    """Delete what a place (site, site/room or site/room/node; "" for all) said before a moment (None
    for ever), readings by the time of counting; those of a time to come, of a clock that was wrong, by
    the time that they came. Returns how many readings went.

    Their logs count as stored so far, or the nodes would send them again; where nothing is left of a
    place, under a name that says nothing."""
    nodes = nodes_of(db, place) if place else None
    for table in (HEALTH, STATUSES):
        db.execute(sa.delete(table).where(_selection(table, table.c.received, before, nodes)))
    start, end, received = COUNTS.c.start, COUNTS.c.end, COUNTS.c.received
    if before is None:
        db.execute(sa.delete(RETIRED).where(of_place(RETIRED, place)))
        gone = _delete_readings(db, _selection(COUNTS, None, None, nodes))
        _bury(db, place)
        forget_sums(db, None, now, nodes)
        return gone
    # Both by the index on start: a window ends after it starts.
    old = sa.and_(start < before, _selection(COUNTS, end, before, nodes))
    ahead = sa.and_(start > now, _selection(COUNTS, received, before, nodes))
    gone = 0
    if db.dialect.name == "postgresql" and not place:
        gone = _drop_months(db, before)
    gone += _delete_readings(db, old) + _delete_readings(db, ahead, now)
    # Last, since who makes sums waits for it, and who writes readings comes with the logs' rows first.
    forget_sums(db, before, now, nodes)
    return gone


def _drop_months(db: sa.Connection, before: datetime) -> int:
    months = lock_over(db, before)
    if not months:
        return 0
    start = COUNTS.c.start
    spans = [sa.and_(start >= month, start < after(month)) for month in months]
    gone = _mark_deleted(db, sa.or_(*spans), None)
    drop(db, months)
    return gone


def _delete_readings(
    db: sa.Connection, which: sa.ColumnElement[bool], latest: datetime | None = None
) -> int:
    """latest: until when their logs count as deleted, at most: what comes after it is new."""
    _mark_deleted(db, which, latest)
    return db.execute(sa.delete(COUNTS).where(which)).rowcount


def _mark_deleted(db: sa.Connection, which: sa.ColumnElement[bool], latest: datetime | None) -> int:
    """Returns how many readings these are."""
    last, end = sa.func.max(COUNTS.c.seq), sa.func.max(COUNTS.c.end, type_=UtcTime)
    # SQLite would walk the whole primary key to have the groups in order; of an expression it has none.
    node, log = (sa.func.coalesce(c, "") for c in (COUNTS.c.node, COUNTS.c.log))
    question = sa.select(
        *(node.label("node"), log.label("log"), last.label("last"), end.label("end")),
        sa.func.count().label("readings"),
    ).where(which)
    rows = db.execute(question.group_by(sa.text("1, 2"))).all()
    own = sa.and_(LOGS.c.node == sa.bindparam("n"), LOGS.c.log == sa.bindparam("g"))
    if not rows:
        return 0
    db.execute(
        sa.update(LOGS)
        .where(own, LOGS.c.whole < sa.bindparam("s"))
        .values(whole=sa.bindparam("s"), first=sa.bindparam("f")),
        [{"n": r.node, "g": r.log, "s": r.last, "f": r.last + 1} for r in rows],
    )
    until = LOGS.c.deleted_until
    db.execute(
        sa.update(LOGS)
        .where(own, sa.or_(until.is_(None), until < sa.bindparam("e", type_=UtcTime)))
        .values(deleted_until=sa.bindparam("e", type_=UtcTime)),
        # Also of the log whose numbers those have that stand apart.
        [
            {"n": r.node, "g": g, "e": min(r.end, latest or r.end)}
            for r in rows
            for g in {r.log, r.log.split("~")[0]}
        ],
    )
    return sum(row.readings for row in rows)


def _bury(db: sa.Connection, place: str) -> None:
    whose = sa.and_(of_place(LOGS, place), LOGS.c.node != "")
    logs = [(r.node, r.log) for r in db.execute(sa.select(LOGS.c.node, LOGS.c.log).where(whose))]
    names = [(log, tombstone(log)) for log in logs]
    own = sa.and_(LOGS.c.node == sa.bindparam("n"), LOGS.c.log == sa.bindparam("g"))
    if names:
        db.execute(
            sa.update(LOGS).where(own).values(node=sa.bindparam("tn"), log=sa.bindparam("tg")),
            [{"n": n, "g": g, "tn": tn, "tg": tg} for (n, g), (tn, tg) in names],
        )


def of_place(table: sa.Table, place: str) -> sa.ColumnElement[bool]:
    """Select what a place (site, site/room or site/room/node; "" for all) said."""
    node = table.c.node
    if not place:
        return sa.true()
    return sa.or_(node == place, node.startswith(f"{place}/", autoescape=True))


def nodes_of(db: sa.Connection, place: str) -> list[str]:
    """Name the nodes of a place that ever spoke: all tables are found by a node's name in an index,
    where the beginning of one would want every row of every month."""
    spoke = [sa.select(table.c.node).where(of_place(table, place)) for table in (LOGS, STATUSES)]
    return list(db.execute(sa.union(*spoke)).scalars())


def _selection(
    table: sa.Table,
    column: sa.Column[Any] | None,
    before: datetime | None,
    nodes: Collection[str] | None,
) -> sa.ColumnElement[bool]:
    """Select what some nodes said (None: all) before a moment, by a column (None: ever)."""
    whose = sa.true() if nodes is None else table.c.node.in_(nodes)
    return whose if column is None or before is None else sa.and_(column < before, whose)
