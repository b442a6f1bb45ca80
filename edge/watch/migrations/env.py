"""What Alembic runs: the steps that a database lacks, on the connection that `store.migrate` gives."""

from __future__ import annotations

from alembic import context

from edge.watch.tables import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    render_as_batch=True,  # SQLite alters a table by copying it
)
context.run_migrations()
