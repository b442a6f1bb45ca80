"""Messages > a database: SQLite or PostgreSQL, each reading once, and how far each log is stored.

`write` is one transaction. A reading is new when its log is not stored so far and its seq is not there;
the row of its log is locked meanwhile, so recorders that share the load agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy.dialects import postgresql, sqlite

from edge.base.clock import parse_rfc3339
from edge.base.errors import EdgeError, UsageError
from edge.delivery.messages import Counts, Health, Status
from edge.watch.messages import Message
from edge.watch.tables import COUNTS, HEALTH, LOGS, STATUSES

MIGRATIONS = Path(__file__).with_name("migrations")
BUSY_SECONDS, CONNECT_SECONDS = 10, 5
MOST_DAYS = 36_500
STEP = 1000  # readings looked at in one question
# Between two schools' recorders that start on one new database.
MIGRATION_LOCK = 7_310_441

Log = tuple[str, str]  # node, log


class StoreError(EdgeError):
    """The database is away or took nothing; nothing of the batch is in it. refused: it is there, and
    there is a row that it will never take."""

    refused = False


@dataclass(slots=True)
class Written:
    """What a batch became. new, known: readings stored, and passed over since they were there; whole:
    by log, the seq up to which everything is stored."""

    new: int = 0
    known: int = 0
    whole: dict[Log, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Progress:
    first: int
    whole: int
    highest: int


def database(url: str) -> sa.URL:
    """The address of a database; a bare path is SQLite's. Raises UsageError."""
    wrong = (
        "--record must be sqlite:///FILE, FILE.sqlite or postgresql://[USER@]HOST[:PORT]/DATABASE"
    )
    if "://" not in url:
        if not url.endswith((".sqlite", ".db")):
            raise UsageError(wrong)
        return sa.URL.create("sqlite", database=url)
    try:
        found = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError) as error:
        raise UsageError(wrong) from error
    if found.password is not None:
        raise UsageError("--record must hold no password; put it into ~/.pgpass or PGPASSWORD")
    if found.get_backend_name() == "postgresql":
        return found.set(drivername="postgresql+psycopg")
    if found.get_backend_name() == "sqlite" and found.database:
        return found
    raise UsageError(wrong)


class Store:
    """One database, for one thread."""

    def __init__(self, url: str) -> None:
        """Opens nothing yet. Raises UsageError where the address cannot be meant."""
        self._url = database(url)
        self._postgresql = self._url.get_backend_name() == "postgresql"
        options: dict[str, Any] = {"timeout": BUSY_SECONDS}
        if self._postgresql:
            options = {"connect_timeout": CONNECT_SECONDS, "options": "-c timezone=UTC"}
        self.engine = sa.create_engine(self._url, connect_args=options, pool_pre_ping=True)
        if not self._postgresql:
            sa.event.listen(self.engine, "connect", self._careful)
            sa.event.listen(self.engine, "begin", self._begin)
        self._insert = postgresql.insert if self._postgresql else sqlite.insert

    @property
    def name(self) -> str:
        return self._url.render_as_string(hide_password=True)

    @staticmethod
    def _careful(connection: Any, record: Any) -> None:
        # The driver would commit each change of a table by itself, and a kill leave half of them.
        connection.isolation_level = None
        # What was acknowledged must be on the disk, and what was deleted must not.
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "secure_delete=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @staticmethod
    def _begin(connection: sa.Connection) -> None:
        reading = connection.get_execution_options().get("reading")
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")

    def migrate(self) -> None:
        """Bring the tables up to this version. Raises StoreError."""
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        with self._transaction() as db:
            if self._postgresql:
                db.execute(sa.select(sa.func.pg_advisory_xact_lock(MIGRATION_LOCK)))
            config.attributes["connection"] = db
            try:
                command.upgrade(config, "head")
            except CommandError as error:
                raise StoreError(
                    f"database {self.name} is of another version of this kit ({error}); use that one"
                ) from error

    def _transaction(self, reading: bool = False) -> _Transaction:
        return _Transaction(self, reading)

    def there(self) -> None:
        """Raises UsageError where the address is a file that does not exist: what deletes or exports
        should not make one."""
        file = self._url.database or ""
        if not self._postgresql and not Path(file).is_file():
            raise UsageError(f"--record {file} does not exist; give the recorder's own")

    def write(self, batch: Sequence[Message], received: datetime) -> Written:
        """Store all or nothing. Raises StoreError."""
        written = Written()
        counts = [h.payload for h in batch if isinstance(h.payload, Counts)]
        healths = [h.payload for h in batch if isinstance(h.payload, Health)]
        statuses = [h.payload for h in batch if isinstance(h.payload, Status)]
        with self._transaction() as db:
            keys = {(m.node, m.log) for m in counts} | {(m.node, m.log) for m in healths}
            logs = self._lock(db, keys)
            for health in healths:
                at = logs[health.node, health.log]
                at.first = max(at.first, health.outbox_first)
            self._write_counts(db, counts, logs, received, written)
            for key, at in logs.items():
                _advance(db, key, at)
                written.whole[key] = at.whole
            self._keep(db, logs)
            self._write_health(db, healths, received)
            self._write_statuses(db, statuses, received)
        return written

    def _lock(self, db: sa.Connection, keys: Iterable[Log]) -> dict[Log, _Progress]:
        """The logs' rows, made where they are missing, held until the transaction ends."""
        ordered = sorted(keys)  # in one order, so that two recorders never wait for each other
        if not ordered:
            return {}
        db.execute(
            self._insert(LOGS).on_conflict_do_nothing(),
            [{"node": n, "log": g, "first": 1, "whole": 0, "highest": 0} for n, g in ordered],
        )
        rows = db.execute(
            sa.select(LOGS)
            .where(sa.tuple_(LOGS.c.node, LOGS.c.log).in_(ordered))
            .order_by(LOGS.c.node, LOGS.c.log)
            .with_for_update()
        )
        return {(r.node, r.log): _Progress(r.first, r.whole, r.highest) for r in rows}

    def _write_counts(
        self,
        db: sa.Connection,
        counts: Sequence[Counts],
        logs: dict[Log, _Progress],
        received: datetime,
        written: Written,
    ) -> None:
        fresh = {(m.node, m.log, m.seq): m for m in counts if m.seq > logs[m.node, m.log].whole}
        known = self._stored(db, list(fresh))
        rows = [_row(m, received) for key, m in fresh.items() if key not in known]
        if rows:
            db.execute(sa.insert(COUNTS), rows)
        for row in rows:
            at = logs[row["node"], row["log"]]
            at.highest = max(at.highest, row["seq"])
        written.new, written.known = len(rows), len(counts) - len(rows)

    @staticmethod
    def _stored(db: sa.Connection, keys: Sequence[tuple[str, str, int]]) -> set[tuple[Any, ...]]:
        found: set[tuple[Any, ...]] = set()
        columns = (COUNTS.c.node, COUNTS.c.log, COUNTS.c.seq)
        for start in range(0, len(keys), STEP):
            some = keys[start : start + STEP]
            rows = db.execute(sa.select(*columns).where(sa.tuple_(*columns).in_(some)))
            found |= {tuple(row) for row in rows}
        return found

    @staticmethod
    def _keep(db: sa.Connection, logs: dict[Log, _Progress]) -> None:
        if not logs:
            return
        own = sa.and_(LOGS.c.node == sa.bindparam("n"), LOGS.c.log == sa.bindparam("g"))
        db.execute(
            sa.update(LOGS).where(own),
            [
                {"n": n, "g": g, "first": at.first, "whole": at.whole, "highest": at.highest}
                for (n, g), at in logs.items()
            ],
        )

    def _write_health(
        self, db: sa.Connection, healths: Sequence[Health], received: datetime
    ) -> None:
        rows = [
            {
                "node": m.node,
                "received": received,
                "session": m.session,
                "n": m.n,
                "temperature_celsius": m.temperature_celsius,
                "outbox_pending": m.outbox_pending,
                "outbox_dropped": m.outbox_dropped,
                "message": m.model_dump(mode="json", by_alias=True),
            }
            for m in healths
        ]
        if rows:
            db.execute(self._insert(HEALTH).on_conflict_do_nothing(), rows)

    @staticmethod
    def _write_statuses(db: sa.Connection, statuses: Sequence[Status], received: datetime) -> None:
        """Changes only: a retained status comes again with every connection."""
        for m in statuses:
            last = db.execute(
                sa.select(STATUSES.c.session, STATUSES.c.state, STATUSES.c.reason)
                .where(STATUSES.c.node == m.node)
                .order_by(STATUSES.c.id.desc())
                .limit(1)
            ).first()
            now = {"session": m.session, "state": m.state, "reason": m.reason}
            if last is None or tuple(last) != tuple(now.values()):
                db.execute(sa.insert(STATUSES).values(node=m.node, received=received, **now))

    def forget(self, older_than: timedelta | None, place: str, now: datetime) -> int:
        """Delete what a place (site, site/room or site/room/node; "" for all) said before that age, or
        ever; readings by the time of counting. Their logs count as stored so far, or the nodes would
        send them again. Returns how many readings went. Raises StoreError."""
        before = None if older_than is None else now - older_than
        with self._transaction() as db:
            gone = 0
            self._count_as_stored(db, _said(COUNTS, COUNTS.c.end, before, place))
            for table, column in (
                (COUNTS, COUNTS.c.end),
                (HEALTH, HEALTH.c.received),
                (STATUSES, STATUSES.c.received),
            ):
                rows = db.execute(
                    sa.delete(table).where(_said(table, column, before, place))
                ).rowcount
                gone += rows if table is COUNTS else 0
        return gone

    @staticmethod
    def _count_as_stored(db: sa.Connection, which: sa.ColumnElement[bool]) -> None:
        last = sa.func.max(COUNTS.c.seq).label("last")
        question = sa.select(COUNTS.c.node, COUNTS.c.log, last).where(which)
        rows = db.execute(question.group_by(COUNTS.c.node, COUNTS.c.log)).all()
        own = sa.and_(LOGS.c.node == sa.bindparam("n"), LOGS.c.log == sa.bindparam("g"))
        behind = LOGS.c.whole < sa.bindparam("s")
        if rows:
            db.execute(
                sa.update(LOGS)
                .where(own, behind)
                .values(whole=sa.bindparam("s"), first=sa.bindparam("f")),
                [{"n": r.node, "g": r.log, "s": r.last, "f": r.last + 1} for r in rows],
            )

    def readings(self, since: datetime | None = None) -> Iterable[dict[str, Any]]:
        """Stored readings in the order of their time, as dicts by column. Raises StoreError."""
        question = sa.select(COUNTS).order_by(COUNTS.c.start, COUNTS.c.node)
        if since is not None:
            question = question.where(COUNTS.c.start >= since)
        with self._transaction(reading=True) as db:
            rows = db.execution_options(yield_per=STEP).execute(question)
            for row in rows.mappings():
                yield dict(row)

    def close(self) -> None:
        self.engine.dispose()


class _Transaction:
    """One, committed at its end; whatever the database raises in it becomes a StoreError."""

    def __init__(self, store: Store, reading: bool) -> None:
        self._store = store
        self._engine = store.engine.execution_options(reading=True) if reading else store.engine
        self._begun: Any = None

    def __enter__(self) -> sa.Connection:
        try:
            self._begun = self._engine.begin()
            connection: sa.Connection = self._begun.__enter__()
        except sa.exc.SQLAlchemyError as error:
            raise self._ours(error) from error
        return connection

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            self._begun.__exit__(kind, error, trace)
        except sa.exc.SQLAlchemyError as late:
            raise self._ours(late) from late
        # Drivers have errors of their own for a value that no column takes.
        if isinstance(error, sa.exc.SQLAlchemyError | OverflowError | ValueError | TypeError):
            raise self._ours(error) from error

    def _ours(self, error: BaseException) -> StoreError:
        cause = getattr(error, "orig", None) or error
        ours = StoreError(f"database {self._store.name}: {str(cause)[:200]}")
        never = (sa.exc.DataError, sa.exc.IntegrityError)
        bound = not isinstance(error, sa.exc.DBAPIError | sa.exc.TimeoutError)
        ours.refused = isinstance(error, never) or bound
        return ours


def _said(
    table: sa.Table, column: sa.Column[Any], before: datetime | None, place: str
) -> sa.ColumnElement[bool]:
    """What a place ("" for all) said before a moment (None for ever), by that column."""
    wanted: list[sa.ColumnElement[bool]] = [sa.true()]
    if before is not None:
        wanted.append(column < before)
    if place:
        node = table.c.node
        wanted.append(sa.or_(node == place, node.startswith(f"{place}/", autoescape=True)))
    return sa.and_(*wanted)


def _row(m: Counts, received: datetime) -> dict[str, Any]:
    shown = None if m.faces is None or isinstance(m.faces, str) else m.faces
    return {
        "node": m.node,
        "log": m.log,
        "seq": m.seq,
        "start": parse_rfc3339(m.start),
        "end": parse_rfc3339(m.end),
        "received": received,
        "time_base": m.time_base,
        "clock_synced": m.clock_synced,
        "historical": m.historical,
        "min_group": m.min_group,
        "suppressed": isinstance(m.faces, str),
        "faces_mean": shown.mean if shown else None,
        "faces_max": shown.max if shown else None,
        "counts": m.counts,
        "person_seconds": m.person_seconds,
        "seen": m.quality.seen,
        "frames": m.quality.frames,
        "dropped": m.quality.dropped,
        "low_confidence": m.quality.low_confidence,
        "camera": m.quality.camera,
    }


def _advance(db: sa.Connection, key: Log, at: _Progress) -> None:
    """Move `whole` over what is stored without a gap; what lies below `first` never comes."""
    at.whole = max(at.whole, at.first - 1)
    while at.whole < at.highest:
        rows = db.execute(
            sa.select(COUNTS.c.seq)
            .where(COUNTS.c.node == key[0], COUNTS.c.log == key[1], COUNTS.c.seq > at.whole)
            .order_by(COUNTS.c.seq)
            .limit(STEP)
        ).scalars()
        before = at.whole
        for seq in rows:
            if seq != at.whole + 1:
                return
            at.whole = seq
        if at.whole == before:
            return
