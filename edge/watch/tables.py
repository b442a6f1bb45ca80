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

# A row a window; each column's comment is its description (edge/watch/columns.md).
COUNTS = sa.Table(
    "counts",
    METADATA,
    sa.Column("node", sa.Text, primary_key=True, comment="the node's whole name, site/room/node"),
    sa.Column("site", sa.Text, comment="the first part of node: the school; derived from it"),
    sa.Column("room", sa.Text, comment="the second part of node: the room; derived from it"),
    sa.Column(
        "log",
        sa.Text,
        primary_key=True,
        comment="UUID of the node's outbox; LOG~HASH where another reading has its seq",
    ),
    sa.Column("seq", sa.BigInteger, primary_key=True, comment="number of the reading in its log"),
    sa.Column("start", UtcTime, primary_key=True, comment="when the window began, UTC"),
    sa.Column("end", UtcTime, comment="when the window ended, UTC"),
    sa.Column("received", UtcTime, comment="when the recorder stored it, UTC"),
    sa.Column(
        "time_base", sa.Text, comment="utc for the node's clock, file for a recording's own time"
    ),
    sa.Column(
        "clock_synced",
        sa.Boolean,
        comment="whether the node's clock was synchronised; null where it does not know",
    ),
    sa.Column(
        "historical", sa.Boolean, comment="true for what came later than its window, as after a cut"
    ),
    sa.Column("min_group", sa.BigInteger, comment="fewest people of whom counts are published"),
    sa.Column(
        "min_cell",
        sa.BigInteger,
        comment="fewest people in a published cell; null where it was stored before that was kept",
    ),
    sa.Column(
        "suppressed", sa.Boolean, comment="true where fewer than min_group people hide the counts"
    ),
    sa.Column(
        "faces_mean",
        sa.Float,
        comment="people in view, on average; null where hidden or nothing was seen",
    ),
    sa.Column("faces_max", sa.BigInteger, comment="most people in view at once; null likewise"),
    sa.Column("counts", sa.JSON(none_as_null=True), comment="people by label; null likewise"),
    sa.Column(
        "person_seconds",
        sa.JSON(none_as_null=True),
        comment="person-seconds by label; null likewise",
    ),
    sa.Column("seen", sa.Float, comment="share of the window covered by pictures, 0 to 1"),
    sa.Column("frames", sa.BigInteger, comment="frames that were looked at; null where hidden"),
    sa.Column("dropped", sa.BigInteger, comment="frames that were passed over; null where hidden"),
    sa.Column(
        "low_confidence",
        sa.Float,
        comment="share of the people's time too unsure to count, 0 to 1; null where hidden",
    ),
    sa.Column("camera", sa.Text, comment="how the camera did in the window, such as live"),
    sa.Column(
        "counting", sa.Text, comment="how people were counted; null of a node that did not say"
    ),
)

# Derived by the database: nothing writes them.
DERIVED = ("site", "room")

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

# Which recorder stores a part of the nodes of some sites (share), until when; see lease.py.
LEASES = sa.Table(
    "leases",
    METADATA,
    sa.Column("share", sa.Text, primary_key=True),
    sa.Column("parts", sa.BigInteger, primary_key=True),
    sa.Column("part", sa.BigInteger, primary_key=True),
    sa.Column("holder", sa.Text),
    sa.Column("until", UtcTime),
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

# Quarters whose sums are not of what is stored now.
STALE = sa.Table("stale", METADATA, sa.Column("at", UtcTime, primary_key=True))
