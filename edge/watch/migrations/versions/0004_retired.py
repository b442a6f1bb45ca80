"""Rooms that were retired, until they count again."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from edge.watch.tables import UtcTime

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "retired",
        sa.Column("node", sa.Text, primary_key=True),
        sa.Column("since", UtcTime, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("retired")
