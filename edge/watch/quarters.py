"""Quarters of an hour, of which sums are kept; a recorder takes those back whose readings changed."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta, timezone

import sqlalchemy as sa

from edge.watch.progress import STEP
from edge.watch.tables import SLICES

QUARTER = timedelta(minutes=15)
# Between a recorder that takes sums back and a page that makes them.
SLICES_LOCK = 7_310_442
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def quarter_of(at: datetime) -> datetime:
    """Return the beginning of a moment's quarter of an hour."""
    return EPOCH + (at - EPOCH) // QUARTER * QUARTER


def take_back(db: sa.Connection, times: Iterable[datetime], postgresql: bool) -> None:
    """Delete the sums of the quarters in which readings were stored after all."""
    touched = {quarter_of(at) for at in times}
    if not touched:
        return
    if postgresql:
        db.execute(sa.select(sa.func.pg_advisory_xact_lock_shared(SLICES_LOCK)))
    ordered = sorted(touched)
    for start in range(0, len(ordered), STEP):
        db.execute(sa.delete(SLICES).where(SLICES.c.at.in_(ordered[start : start + STEP])))
