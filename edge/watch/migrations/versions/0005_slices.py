"""Sums by the quarter of an hour, of each room, each site and all; the page makes them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from edge.watch.tables import UtcTime

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "slices",
        sa.Column("place", sa.Text, primary_key=True),
        sa.Column("at", UtcTime, primary_key=True),
        sa.Column("seconds", sa.Float, nullable=False),
        sa.Column("shown", sa.Float, nullable=False),
        sa.Column("suppressed", sa.Float, nullable=False),
        sa.Column("unseen", sa.Float, nullable=False),
        sa.Column("people", sa.JSON, nullable=False),
    )
    op.create_index("slices_at", "slices", ["at"])


def downgrade() -> None:
    op.drop_table("slices")
