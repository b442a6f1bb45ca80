"""Which quarters of an hour want to be summed: at first all of which there are readings and no sums."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from edge.watch.tables import UtcTime

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.create_table("stale", sa.Column("at", UtcTime, primary_key=True))
    # Moments are text in SQLite: "2026-11-25 12:07:30.000000".
    quarter = (
        "substr(start, 1, 14) || printf('%02d', substr(start, 15, 2) / 15 * 15) || '\\:00.000000'"
    )
    if op.get_bind().dialect.name == "postgresql":
        quarter = "to_timestamp(floor(extract(epoch FROM start) / 900) * 900)"
    # Each place has its row of a quarter, the school under "" too.
    op.execute(
        f"INSERT INTO stale (at) SELECT DISTINCT {quarter} FROM counts "
        f"WHERE {quarter} NOT IN (SELECT at FROM slices WHERE place = '')"
    )


def downgrade() -> None:
    op.drop_table("stale")
