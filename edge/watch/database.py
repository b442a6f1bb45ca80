"""Connect to the recorder's database, SQLite or PostgreSQL, and bring its tables up to this version."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from threading import Event
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util import CommandError

from edge.base.errors import EdgeError, UsageError
from edge.watch.answer_limit import AnswerLimit
from edge.watch.tables import METADATA

MIGRATIONS = Path(__file__).with_name("migrations")
BUSY_SECONDS, CONNECT_SECONDS = 10, 5
# Below the 30 s after which a broker misses a recorder that waits.
ANSWER_SECONDS = 25.0
# For what takes long by itself: months into which readings move, sums of many rooms.
LONG_ANSWER_SECONDS = 600.0
# What may stand in a PostgreSQL address's query: none of it is a secret.
LIBPQ = {"application_name", "connect_timeout", "host", "hostaddr", "keepalives", "options", "port"}
LIBPQ |= {"sslcert", "sslcrl", "sslkey", "sslmode", "sslrootcert", "target_session_attrs"}
# Between two schools' recorders that start on one new database.
MIGRATION_LOCK = 7_310_441
IN_USE = (
    "what is deleted is gone from its tables, but not yet overwritten in its files; stop what reads it "
    "or make room, and run the same command again"
)
log = logging.getLogger(__name__)


class StoreError(EdgeError):
    """The database is away or took nothing; nothing of the batch is in it. refused: it is there, and
    there is a row that it will never take."""

    def __init__(self, message: str, refused: bool = False) -> None:
        super().__init__(message)
        self.refused = refused


class StoreMovedError(StoreError):
    """SQLite's file is not at its path any more: what is written into it is lost with the last who has
    it open. Only a new process opens what is there now."""


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
    if found.password is not None or any("pass" in key.lower() for key in found.query):
        raise UsageError("--record must hold no password; put it into ~/.pgpass or PGPASSWORD")
    if found.get_backend_name() == "postgresql":
        if not set(found.query) <= LIBPQ:
            raise UsageError(f"--record takes behind ? only {', '.join(sorted(LIBPQ))}")
        return found.set(drivername="postgresql+psycopg")
    if found.get_backend_name() == "sqlite" and found.database:
        return found
    raise UsageError(wrong)


class Database:
    """One database, for one thread; `transaction` opens it."""

    answer_seconds = ANSWER_SECONDS

    def __init__(self, address: str, read_only: bool = False) -> None:
        """Prepare, and open nothing yet. read_only: where rights to read are all there is. Raises
        UsageError where the address cannot be meant."""
        self._address = parse_address(address)
        self.postgresql = self._address.get_backend_name() == "postgresql"
        options: dict[str, Any] = {"timeout": BUSY_SECONDS}
        if self.postgresql:
            options = {"connect_timeout": CONNECT_SECONDS, "options": "-c timezone=UTC"}
            # A database that was made under LC_ALL=C has no encoding, and would give bytes for text.
            options["client_encoding"] = "utf8"
        self.engine = sa.create_engine(self._address, connect_args=options, pool_pre_ping=True)
        self._driver: Any = self.engine.dialect.loaded_dbapi
        self._limit = AnswerLimit(self.engine) if self.postgresql else None
        self._file: tuple[int, int] | None = None  # SQLite's own, by device and inode
        if not self.postgresql:
            sa.event.listen(self.engine, "begin", _begin_sqlite)
            if read_only:
                sa.event.listen(self.engine, "do_connect", _connect_to_read)
            else:
                sa.event.listen(self.engine, "do_connect", _make_closed)
                sa.event.listen(self.engine, "connect", _configure_sqlite)
                sa.event.listen(self.engine, "connect", lambda *_: self._note_file())

    @property
    def name(self) -> str:
        return self._address.render_as_string(hide_password=True)

    @property
    def place(self) -> str:
        """Name it for all who share it, without user, password and options: a server as it is
        addressed, and what lies on this machine by the machine's name."""
        address, here = self._address, socket.gethostname()
        if not self.postgresql:
            return f"{here}:{Path(address.database or '').resolve()}"
        asked = {key: address.query.get(key) for key in ("host", "hostaddr", "port")}
        host = str(address.host or asked["host"] or asked["hostaddr"] or "")
        if host.startswith("/") or host in ("", "localhost", "127.0.0.1", "::1"):
            host = here
        port = address.port or asked["port"] or 5432
        return f"{host}:{port}/{address.database or ''}"

    def require_existing(self) -> None:
        """Raise UsageError where the address is a file that does not exist: what deletes or exports
        should not make one."""
        file = self._address.database or ""
        if not self.postgresql and not Path(file).is_file():
            raise UsageError(f"--record {file} does not exist; give the recorder's own")

    def require_folder(self) -> None:
        """Raise UsageError where SQLite's file would lie in a folder that does not exist: a slip of the
        pen at the start of a recorder, which would wait for it for ever."""
        file = Path(self._address.database or "")
        if not self.postgresql and not file.parent.is_dir():
            raise UsageError(f"--record {file}: there is no folder {file.parent}; make it first")

    def migrate(self, revision: str = "head") -> None:
        """Bring the tables up to this version. Raises StoreError."""
        if not self.postgresql:
            _close_to_others(Path(self._address.database or ""))
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
    def transaction(self, reading: bool = False, seconds: float = 0.0) -> Iterator[sa.Connection]:
        """Commit at the end, or nothing; whatever the database raises becomes a StoreError. seconds:
        for which PostgreSQL may keep silent, 0 for ever; SQLite has its own."""
        engine = self.engine.execution_options(reading=True) if reading else self.engine
        limit: AbstractContextManager[Event | None] = nullcontext()
        if self._limit is not None and seconds:
            limit = self._limit.within(seconds)
        over: Event | None = None
        try:
            with limit as over, engine.begin() as db:
                if over is not None:
                    # Before it: what waits for a lock would go on waiting without who asked for it.
                    db.exec_driver_sql(f"SET LOCAL lock_timeout = {int(800 * seconds)}")
                yield db
                self._check_file()  # before the commit, which would succeed
        # Drivers have errors of their own for a value that no column takes, and for all of a COPY.
        except (
            *(sa.exc.SQLAlchemyError, self._driver.Error),
            *(OverflowError, ValueError, TypeError),
        ) as error:
            cause = getattr(error, "orig", None) or error
            if over is not None and over.is_set():
                silent = f"database {self.name}: no answer within {seconds:g} s"
                raise StoreError(silent) from error
            never = (
                *(sa.exc.DataError, sa.exc.IntegrityError),
                *(self._driver.DataError, self._driver.IntegrityError),
            )
            other = (sa.exc.DBAPIError, sa.exc.TimeoutError, self._driver.Error)
            refused = isinstance(error, never) or not isinstance(error, other)
            raise StoreError(f"database {self.name}: {str(cause)[:200]}", refused) from error

    def _note_file(self) -> None:
        if self._file is None and self._address.database != ":memory:":
            with contextlib.suppress(OSError):
                self._file = _identify(self._address.database or "")

    def _check_file(self) -> None:
        """Raise StoreMovedError where SQLite's file was deleted or another put in its place, and
        StoreError where the disk cannot tell."""
        if self._file is None:
            return
        try:
            found = _identify(self._address.database or "")
        except OSError as error:
            raise StoreError(f"database {self.name}: {error.strerror}") from error
        if found != self._file:
            raise StoreMovedError(
                f"database {self.name}: its file was moved, deleted or replaced while this program had "
                "it open, so nothing more is stored in it; stop every program that has it open, put "
                "the right file there, and start again"
            )

    def overwrite_deleted(self, rewrite: bool) -> None:
        """Leave nothing of what was deleted in the database's files. rewrite: all tables too, which
        takes as long as copying them, and as much room. Raises StoreError."""
        options = {"isolation_level": "AUTOCOMMIT"} if self.postgresql else {"outside": True}
        steps = ["VACUUM"] if rewrite else []
        if self.postgresql:
            steps = [f"VACUUM (FULL, ANALYZE) {name}" for name in METADATA.tables if rewrite]
        else:
            # The journal holds whole pages as they were, until it is emptied.
            steps.append("PRAGMA wal_checkpoint(TRUNCATE)")
        try:
            with self.engine.execution_options(**options).connect() as db:
                done = [db.exec_driver_sql(step) for step in steps]
                if not self.postgresql and done[-1].scalar_one():
                    raise StoreError(f"database {self.name}: {IN_USE}")
        except sa.exc.SQLAlchemyError as error:
            cause = getattr(error, "orig", None) or error
            raise StoreError(f"database {self.name}: {str(cause)[:200]}; {IN_USE}") from error

    def close(self) -> None:
        self.engine.dispose()


def _identify(path: str) -> tuple[int, int]:
    """Which file is at a path, by device and inode; zeros for none. Raises OSError."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return 0, 0
    return found.st_dev, found.st_ino


def _make_closed(dialect: Any, record: Any, places: list[str], options: Any) -> None:
    """Make the file for its owner alone, whichever thread is the first to open it; SQLite would make it
    with whatever rights the process gives."""
    if places[0] != ":memory:":
        with contextlib.suppress(OSError):
            os.close(os.open(places[0], os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))


def _close_to_others(file: Path) -> None:
    """Take from an older file what everybody else may do; SQLite gives the journal's files the same
    rights."""
    for path in (file, *(file.with_name(f"{file.name}{end}") for end in ("-wal", "-shm"))):
        try:
            mode = path.stat().st_mode & 0o777
            if mode & 0o007:
                path.chmod(mode & 0o770)
                log.warning("%s was open to every user of this machine; now it is not", path)
        except FileNotFoundError:
            continue
        except OSError as error:
            log.warning("%s is open to every user of this machine (%s)", path, error.strerror)


def _connect_to_read(dialect: Any, record: Any, places: list[str], options: Any) -> Any:
    """Open a file that this user may not write, perhaps in a folder where nothing may be made."""
    driver, file = dialect.loaded_dbapi, Path(places[0])

    def connect(more: str) -> Any:
        address = f"file:{quote(str(file.resolve()))}?mode=ro{more}"
        db = driver.connect(address, timeout=BUSY_SECONDS, uri=True, isolation_level=None)
        db.execute("SELECT 1 FROM sqlite_master").fetchall()
        return db

    try:
        return connect("")
    except driver.OperationalError:
        wal = file.with_name(f"{file.name}-wal")
        if wal.exists() and wal.stat().st_size:
            raise driver.OperationalError(
                f"its journal {wal.name} cannot be read here; copy both to where files may be made"
            ) from None
        # SQLite wants to make the index of the journal, which a file without one does not need.
        return connect("&immutable=1")


def _configure_sqlite(connection: Any, record: Any) -> None:
    # The driver would commit each change of a table by itself, and a kill leave half of them.
    connection.isolation_level = None
    # What was acknowledged must be on the disk, and what was deleted must not.
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "secure_delete=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: sa.Connection) -> None:
    options = connection.get_execution_options()
    if options.get("outside"):
        return  # what SQLite does outside of transactions alone
    reading = options.get("reading")
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")
