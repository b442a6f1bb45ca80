"""Delete what was stored, by age, by place, or all of it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa

from edge.watch.tables import COUNTS, HEALTH, LOGS, STATUSES

MOST_DAYS = 36_500


def delete_messages(db: sa.Connection, before: datetime | None, place: str) -> int:
    """Delete what a place (site, site/room or site/room/node; "" for all) said before a moment (None
    for ever), readings by the time of counting. Returns how many readings went.

    Their logs count as stored so far, or the nodes would send them again."""
    _mark_stored(db, _selection(COUNTS, COUNTS.c.end, before, place))
    for table in (HEALTH, STATUSES):
        db.execute(sa.delete(table).where(_selection(table, table.c.received, before, place)))
    return db.execute(
        sa.delete(COUNTS).where(_selection(COUNTS, COUNTS.c.end, before, place))
    ).rowcount


def _mark_stored(db: sa.Connection, which: sa.ColumnElement[bool]) -> None:
    last = sa.func.max(COUNTS.c.seq).label("last")
    question = sa.select(COUNTS.c.node, COUNTS.c.log, last).where(which)
    rows = db.execute(question.group_by(COUNTS.c.node, COUNTS.c.log)).all()
    own = sa.and_(LOGS.c.node == sa.bindparam("n"), LOGS.c.log == sa.bindparam("g"))
    behind = LOGS.c.whole < sa.bindparam("s")
    if rows:
        db.execute(
            sa.update(LOGS)
            .where(own, behind)
            .values(whole=sa.bindparam("s"), first=sa.bindparam("f")),
            [{"n": r.node, "g": r.log, "s": r.last, "f": r.last + 1} for r in rows],
        )


def _selection(
    table: sa.Table, column: sa.Column[Any], before: datetime | None, place: str
) -> sa.ColumnElement[bool]:
    wanted: list[sa.ColumnElement[bool]] = [sa.true()]
    if before is not None:
        wanted.append(column < before)
    if place:
        node = table.c.node
        wanted.append(sa.or_(node == place, node.startswith(f"{place}/", autoescape=True)))
    return sa.and_(*wanted)
