"""The recorder's tables as SQLAlchemy reads and writes them; `migrations/` makes them."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import sqlalchemy as sa


class UtcTime(sa.types.TypeDecorator[datetime]):
    """A moment in UTC: with its zone in PostgreSQL; SQLite knows none, and gets it back here."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:
        return value if value is None else value.astimezone(timezone.utc)

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            return value.replace(tzinfo=timezone.utc)
        return value.astimezone(timezone.utc)  # PostgreSQL gives it in the session's zone


METADATA = sa.MetaData()

# How far each log is stored: everything up to `whole`, but what never comes (below `first`). What of it
# ends at `deleted_until` or before and is not there was deleted. A log of a place that was forgotten
# stands under a hash of its name.
LOGS = sa.Table(
    "logs",
    METADATA,
    sa.Column("node", sa.Text, primary_key=True),
    sa.Column("log", sa.Text, primary_key=True),
    sa.Column("first", sa.BigInteger),
    sa.Column("whole", sa.BigInteger),
    sa.Column("highest", sa.BigInteger),
    sa.Column("deleted_until", UtcTime),
)

# The rows of COUNTS that stand apart: `log` is LOG~HASH, since another reading has their number in LOG.
APART = "log LIKE '%~%'"

# A row a window. counts and person_seconds: people and time by label; null for a suppressed small count
# (fewer than min_group people) and where nothing was seen. counting: null of a node that did not say.
COUNTS = sa.Table(
    "counts",
    METADATA,
    sa.Column("node", sa.Text, primary_key=True),
    sa.Column("log", sa.Text, primary_key=True),
    sa.Column("seq", sa.BigInteger, primary_key=True),
    sa.Column("start", UtcTime, primary_key=True),
    sa.Column("end", UtcTime),
    sa.Column("received", UtcTime),
    sa.Column("time_base", sa.Text),
    sa.Column("clock_synced", sa.Boolean),
    sa.Column("historical", sa.Boolean),
    sa.Column("min_group", sa.BigInteger),
    sa.Column("suppressed", sa.Boolean),
    sa.Column("faces_mean", sa.Float),
    sa.Column("faces_max", sa.BigInteger),
    sa.Column("counts", sa.JSON(none_as_null=True)),
    sa.Column("person_seconds", sa.JSON(none_as_null=True)),
    sa.Column("seen", sa.Float),
    sa.Column("frames", sa.BigInteger),
    sa.Column("dropped", sa.BigInteger),
    sa.Column("low_confidence", sa.Float),
    sa.Column("camera", sa.Text),
    sa.Column("counting", sa.Text),
)

HEALTH = sa.Table(
    "health",
    METADATA,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("node", sa.Text),
    sa.Column("received", UtcTime),
    sa.Column("session", sa.Text),
    sa.Column("n", sa.BigInteger),
    sa.Column("temperature_celsius", sa.Float),
    sa.Column("outbox_pending", sa.BigInteger),
    sa.Column("outbox_dropped", sa.BigInteger),
    sa.Column("message", sa.JSON),
)

# A row a change.
STATUSES = sa.Table(
    "statuses",
    METADATA,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("node", sa.Text),
    sa.Column("received", UtcTime),
    sa.Column("session", sa.Text),
    sa.Column("state", sa.Text),
    sa.Column("reason", sa.Text),
)

# Rooms that are no more, until they count again.
RETIRED = sa.Table(
    "retired",
    METADATA,
    sa.Column("node", sa.Text, primary_key=True),
    sa.Column("since", UtcTime),
)

# Sums of a quarter of an hour, of a node, a site, or under "" of all; see history.py. people: on
# average over what was shown, by label.
SLICES = sa.Table(
    "slices",
    METADATA,
    sa.Column("place", sa.Text, primary_key=True),
    sa.Column("at", UtcTime, primary_key=True),
    sa.Column("seconds", sa.Float),
    sa.Column("shown", sa.Float),
    sa.Column("suppressed", sa.Float),
    sa.Column("unseen", sa.Float),
    sa.Column("people", sa.JSON),
)
