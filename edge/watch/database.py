"""Connect to the recorder's database, SQLite or PostgreSQL, and bring its tables up to this version."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util import CommandError

from edge.base.errors import EdgeError, UsageError

MIGRATIONS = Path(__file__).with_name("migrations")
BUSY_SECONDS, CONNECT_SECONDS = 10, 5
# Between two schools' recorders that start on one new database.
MIGRATION_LOCK = 7_310_441


class StoreError(EdgeError):
    """The database is away or took nothing; nothing of the batch is in it. refused: it is there, and
    there is a row that it will never take."""

    def __init__(self, message: str, refused: bool = False) -> None:
        super().__init__(message)
        self.refused = refused


def parse_address(text: str) -> sa.URL:
    """Read the address of a database; a bare path is SQLite's. Raises UsageError."""
    wrong = (
        "--record must be sqlite:///FILE, FILE.sqlite or postgresql://[USER@]HOST[:PORT]/DATABASE"
    )
    if "://" not in text:
        if not text.endswith((".sqlite", ".db")):
            raise UsageError(wrong)
        return sa.URL.create("sqlite", database=text)
    try:
        found = sa.make_url(text)
    except (sa.exc.ArgumentError, ValueError) as error:
        raise UsageError(wrong) from error
    if found.password is not None:
        raise UsageError("--record must hold no password; put it into ~/.pgpass or PGPASSWORD")
    if found.get_backend_name() == "postgresql":
        return found.set(drivername="postgresql+psycopg")
    if found.get_backend_name() == "sqlite" and found.database:
        return found
    raise UsageError(wrong)


class Database:
    """One database, for one thread; `transaction` opens it."""

    def __init__(self, address: str) -> None:
        """Prepare, and open nothing yet. Raises UsageError where the address cannot be meant."""
        self._address = parse_address(address)
        self.postgresql = self._address.get_backend_name() == "postgresql"
        options: dict[str, Any] = {"timeout": BUSY_SECONDS}
        if self.postgresql:
            options = {"connect_timeout": CONNECT_SECONDS, "options": "-c timezone=UTC"}
        self.engine = sa.create_engine(self._address, connect_args=options, pool_pre_ping=True)
        if not self.postgresql:
            sa.event.listen(self.engine, "connect", _configure_sqlite)
            sa.event.listen(self.engine, "begin", _begin_sqlite)

    @property
    def name(self) -> str:
        return self._address.render_as_string(hide_password=True)

    def require_existing(self) -> None:
        """Raise UsageError where the address is a file that does not exist: what deletes or exports
        should not make one."""
        file = self._address.database or ""
        if not self.postgresql and not Path(file).is_file():
            raise UsageError(f"--record {file} does not exist; give the recorder's own")

    def migrate(self, revision: str = "head") -> None:
        """Bring the tables up to this version. Raises StoreError."""
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        with self.transaction() as db:
            if self.postgresql:
                db.execute(sa.select(sa.func.pg_advisory_xact_lock(MIGRATION_LOCK)))
            config.attributes["connection"] = db
            try:
                command.upgrade(config, revision)
            except CommandError as error:
                raise StoreError(
                    f"database {self.name} is of another version of this kit ({error}); use that one"
                ) from error

    @contextmanager
    def transaction(self, reading: bool = False) -> Iterator[sa.Connection]:
        """Commit at the end, or nothing; whatever the database raises becomes a StoreError."""
        engine = self.engine.execution_options(reading=True) if reading else self.engine
        try:
            with engine.begin() as db:
                yield db
        # Drivers have errors of their own for a value that no column takes.
        except (sa.exc.SQLAlchemyError, OverflowError, ValueError, TypeError) as error:
            cause = getattr(error, "orig", None) or error
            never = (sa.exc.DataError, sa.exc.IntegrityError)
            bound = not isinstance(error, sa.exc.DBAPIError | sa.exc.TimeoutError)
            refused = isinstance(error, never) or bound
            raise StoreError(f"database {self.name}: {str(cause)[:200]}", refused) from error

    def close(self) -> None:
        self.engine.dispose()


def _configure_sqlite(connection: Any, record: Any) -> None:
    # The driver would commit each change of a table by itself, and a kill leave half of them.
    connection.isolation_level = None
    # What was acknowledged must be on the disk, and what was deleted must not.
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "secure_delete=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: sa.Connection) -> None:
    reading = connection.get_execution_options().get("reading")
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")
