"""What was deleted of a log, by time; statuses by time; readings whose number another one has."""

from __future__ import annotations

from datetime import datetime, timezone

import sqlalchemy as sa
from alembic import op

from edge.watch.tables import APART, UtcTime

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("logs", sa.Column("deleted_until", UtcTime))
    # Before, a number that was stored or skipped was passed over unread. What is not there now may have
    # been deleted, and must not come back.
    logs = sa.table("logs", sa.column("deleted_until", UtcTime))
    op.execute(sa.update(logs).values(deleted_until=datetime.now(timezone.utc)))
    op.create_index("statuses_received", "statuses", ["received"])
    where = sa.text(APART)
    op.create_index(
        "counts_apart", "counts", ["node", "start"], sqlite_where=where, postgresql_where=where
    )


def downgrade() -> None:
    op.drop_index("counts_apart", "counts")
    op.drop_index("statuses_received", "statuses")
    with op.batch_alter_table("logs") as table:
        table.drop_column("deleted_until")
