"""How people were counted: null in what was stored before, whose nodes did not say."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("counts", sa.Column("counting", sa.Text))


def downgrade() -> None:
    with op.batch_alter_table("counts") as table:
        table.drop_column("counting")
