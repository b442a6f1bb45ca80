"""PostgreSQL: readings in a partition a month; they are copied, and the table that was goes at the end.

All in the migrations' one transaction: killed, nothing of it is there. It wants as much room on the
disk as the table has, and nobody reads or writes readings meanwhile.
"""

from __future__ import annotations

from datetime import datetime, timezone

import sqlalchemy as sa
from alembic import op

from edge.watch.partitions import STRAYS, WRITTEN, attach, kept_apart, make
from edge.watch.tables import APART

revision = "0008"
down_revision = "0007"

WHOLE = "counts_whole"  # the table as it was


def upgrade() -> None:
    db = op.get_bind()
    if db.dialect.name != "postgresql":
        return
    op.execute(f"ALTER TABLE counts RENAME TO {WHOLE}")
    for name in ("pkey", "start", "apart"):
        op.execute(f"ALTER INDEX counts_{name} RENAME TO {WHOLE}_{name}")
    kinds = "INCLUDING DEFAULTS INCLUDING GENERATED INCLUDING CONSTRAINTS"
    op.execute(f"CREATE TABLE counts (LIKE {WHOLE} {kinds}) PARTITION BY RANGE (start)")
    op.create_primary_key("counts_pkey", "counts", ["node", "log", "seq", "start"])
    op.create_index("counts_start", "counts", ["start"])
    op.create_index("counts_apart", "counts", ["node", "start"], postgresql_where=sa.text(APART))
    now = datetime.now(timezone.utc)
    found = db.execute(
        sa.text(f"SELECT DISTINCT date_trunc('month', start AT TIME ZONE 'UTC') FROM {WHOLE}")
    ).scalars()
    months = sorted(month.replace(tzinfo=timezone.utc) for month in found)
    kept = [month for month in months if kept_apart(month, now)]
    for month in kept:
        make(db, month, WHOLE)
        attach(db, month)
    op.execute(f"CREATE TABLE {STRAYS} PARTITION OF counts DEFAULT")
    # Of times that no partition is made for: clocks that were wrong.
    columns = ", ".join(f'"{name}"' for name in WRITTEN)
    strays = sa.text(
        f"INSERT INTO {STRAYS} ({columns}) SELECT {columns} FROM {WHOLE} "
        "WHERE NOT date_trunc('month', start AT TIME ZONE 'UTC') = ANY(:kept)"
    )
    db.execute(strays, {"kept": [month.replace(tzinfo=None) for month in kept]})
    _keep_rights(db)
    op.execute(f"DROP TABLE {WHOLE}")
    op.execute("ANALYZE counts")


def _keep_rights(db: sa.Connection) -> None:
    """Whoever could read or write the table still can, such as Grafana's role."""
    rights = db.execute(
        sa.text(
            "SELECT CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END, "
            "privilege_type, is_grantable FROM pg_class, aclexplode(relacl) "
            "WHERE pg_class.oid = CAST(:whole AS regclass) AND grantee <> relowner"
        ),
        {"whole": WHOLE},
    ).all()
    for role, right, passed_on in rights:
        more = " WITH GRANT OPTION" if passed_on else ""
        op.execute(f"GRANT {right} ON counts TO {role}{more}")


def downgrade() -> None:
    if op.get_bind().dialect.name != "postgresql":
        return
    kinds = "INCLUDING DEFAULTS INCLUDING GENERATED INCLUDING CONSTRAINTS"
    columns = ", ".join(f'"{name}"' for name in WRITTEN)
    op.execute(f"CREATE TABLE {WHOLE} (LIKE counts {kinds})")
    op.execute(f"INSERT INTO {WHOLE} ({columns}) SELECT {columns} FROM counts")
    op.execute("DROP TABLE counts")
    op.execute(f"ALTER TABLE {WHOLE} RENAME TO counts")
    op.create_primary_key("counts_pkey", "counts", ["node", "log", "seq", "start"])
    op.create_index("counts_start", "counts", ["start"])
    op.create_index("counts_apart", "counts", ["node", "start"], postgresql_where=sa.text(APART))
