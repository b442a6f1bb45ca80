"""Site and room, derived from the node's name; the smallest cell that was published, null before."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    postgresql = op.get_bind().dialect.name == "postgresql"
    # SQLite takes only columns that are computed when they are read into a table that is there.
    rest = "substr(node, instr(node, '/') + 1)"
    site = "split_part(node, '/', 1)" if postgresql else "substr(node, 1, instr(node, '/') - 1)"
    room = (
        "split_part(node, '/', 2)" if postgresql else f"substr({rest}, 1, instr({rest}, '/') - 1)"
    )
    for name, text in (("site", site), ("room", room)):
        op.add_column("counts", sa.Column(name, sa.Text, sa.Computed(text, persisted=postgresql)))
    op.add_column("counts", sa.Column("min_cell", sa.BigInteger))


def downgrade() -> None:
    for name in ("min_cell", "room", "site"):
        op.execute(f"ALTER TABLE counts DROP COLUMN {name}")
