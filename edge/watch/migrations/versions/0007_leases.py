"""Which recorder stores which part of the nodes, and until when it has to say so again."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from edge.watch.tables import UtcTime

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    # share: the sites, joined by +, "" for all; parts: into how many their nodes are divided. Recorders
    # that divide them otherwise have rows of their own.
    # holder: one process, by host and number, "" for none yet; until: by the database's clock, so that
    # recorders' clocks need not agree.
    op.create_table(
        "leases",
        sa.Column("share", sa.Text, primary_key=True),
        sa.Column("parts", sa.BigInteger, primary_key=True),
        sa.Column("part", sa.BigInteger, primary_key=True),
        sa.Column("holder", sa.Text, nullable=False),
        sa.Column("until", UtcTime, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("leases")
