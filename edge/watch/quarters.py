"""Quarters of an hour, of which sums are kept. Which of them want to be summed stands in the table
`stale`, in the same transaction as what changed: no reading that came late, or went, is left out.

A day or a week begins at a quarter in every zone of today, so that both are drawn from these sums.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import datetime, timedelta, timezone

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from edge.watch.tables import SLICES, STALE

QUARTER = timedelta(minutes=15)
# Between recorders that change readings, who share it, and one that makes sums of them.
SLICES_LOCK = 7_310_442
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def quarter_of(at: datetime) -> datetime:
    """Return the beginning of a moment's quarter of an hour."""
    return EPOCH + (at - EPOCH) // QUARTER * QUARTER


def mark(db: sa.Connection, times: Iterable[datetime]) -> None:
    """Note that the readings of the quarters of some moments changed."""
    touched = sorted({quarter_of(at) for at in times})
    if touched:
        _lock(db)
        db.execute(_insert(db).on_conflict_do_nothing(), [{"at": at} for at in touched])


def forget_sums(
    db: sa.Connection, before: datetime | None, now: datetime, nodes: Collection[str] | None
) -> None:
    """Delete the sums that hold what some nodes (None: all) said before a moment (None: ever), or was
    dated after now: theirs, their sites' and the school's; what is left of them is summed again."""
    _lock(db)
    if before is None and nodes is None:
        for table in (SLICES, STALE):
            db.execute(sa.delete(table))
        return
    at, which = SLICES.c.at, list[sa.ColumnElement[bool]]()
    if before is not None:
        which.append(sa.or_(at < before, at > now))
    if nodes is not None:
        which.append(at.in_(sa.select(at).where(SLICES.c.place.in_(nodes))))
    again = sa.select(at).where(*which).distinct()
    db.execute(_insert(db).from_select(["at"], again).on_conflict_do_nothing())
    if nodes is not None:
        sites = {node.partition("/")[0] for node in nodes}
        which.append(SLICES.c.place.in_({*nodes, *sites, ""}))
    elif before is not None:
        # Of these nothing is left; of the quarter in which that moment lies, perhaps.
        db.execute(sa.delete(STALE).where(STALE.c.at < quarter_of(before)))
    db.execute(sa.delete(SLICES).where(*which))


def _lock(db: sa.Connection) -> None:
    if db.dialect.name == "postgresql":
        db.execute(sa.select(sa.func.pg_advisory_xact_lock_shared(SLICES_LOCK)))


def _insert(db: sa.Connection) -> postgresql.Insert | sqlite.Insert:
    made = postgresql.insert if db.dialect.name == "postgresql" else sqlite.insert
    return made(STALE)
