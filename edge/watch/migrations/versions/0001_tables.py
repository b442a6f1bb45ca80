"""Counts, health and status of every node, and how far each log is stored."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from edge.watch.tables import UtcTime

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "logs",
        sa.Column("node", sa.Text, primary_key=True),
        sa.Column("log", sa.Text, primary_key=True),
        sa.Column("first", sa.BigInteger, nullable=False),
        sa.Column("whole", sa.BigInteger, nullable=False),
        sa.Column("highest", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "counts",
        sa.Column("node", sa.Text, primary_key=True),
        sa.Column("log", sa.Text, primary_key=True),
        sa.Column("seq", sa.BigInteger, primary_key=True),
        # In the key, since PostgreSQL divides a table by a column of it (0008).
        sa.Column("start", UtcTime, primary_key=True),
        sa.Column("end", UtcTime, nullable=False),
        sa.Column("received", UtcTime, nullable=False),
        sa.Column("time_base", sa.Text, nullable=False),
        sa.Column("clock_synced", sa.Boolean),
        sa.Column("historical", sa.Boolean, nullable=False),
        sa.Column("min_group", sa.BigInteger, nullable=False),
        sa.Column("suppressed", sa.Boolean, nullable=False),
        sa.Column("faces_mean", sa.Float),
        sa.Column("faces_max", sa.BigInteger),
        sa.Column("counts", sa.JSON),
        sa.Column("person_seconds", sa.JSON),
        sa.Column("seen", sa.Float, nullable=False),
        sa.Column("frames", sa.BigInteger),
        sa.Column("dropped", sa.BigInteger),
        sa.Column("low_confidence", sa.Float),
        sa.Column("camera", sa.Text, nullable=False),
    )
    op.create_index("counts_start", "counts", ["start"])
    op.create_table(
        "health",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("node", sa.Text, nullable=False),
        sa.Column("received", UtcTime, nullable=False),
        sa.Column("session", sa.Text, nullable=False),
        sa.Column("n", sa.BigInteger, nullable=False),
        sa.Column("temperature_celsius", sa.Float),
        sa.Column("outbox_pending", sa.BigInteger, nullable=False),
        sa.Column("outbox_dropped", sa.BigInteger, nullable=False),
        sa.Column("message", sa.JSON, nullable=False),
        sa.UniqueConstraint("node", "session", "n"),
    )
    op.create_index("health_received", "health", ["received"])
    op.create_table(
        "statuses",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("node", sa.Text, nullable=False),
        sa.Column("received", UtcTime, nullable=False),
        sa.Column("session", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("reason", sa.Text),
    )
    op.create_index("statuses_node", "statuses", ["node", "id"])


def downgrade() -> None:
    for name in ("statuses", "health", "counts", "logs"):
        op.drop_table(name)
