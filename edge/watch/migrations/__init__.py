"""The recorder's tables, version by version (Alembic)."""
