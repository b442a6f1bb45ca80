"""PostgreSQL's partitions of the readings: one a month, so that old months go by dropping a table.

A month's partition is made before its first reading is stored, the next month's with it. Months that
are too far from now have none: an open broker takes any time, and a partition for each would be many
thousand. Their readings stand in STRAYS, PostgreSQL's default partition, are told, and move into their
month's own once that is made.

Uniqueness: PostgreSQL keeps a key over partitions only with the column that divides them, so that its
own is (node, log, seq, start). That (node, log, seq) stands once is kept by `store.write`, which holds
the log's row in LOGS meanwhile and asks for the number in every month.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone

import sqlalchemy as sa

from edge.watch.tables import COUNTS, DERIVED

STRAYS = "counts_strays"
NAME = "counts_%Y_%m"
OLDEST = timedelta(days=3653)  # months that began before have no partition
# Between recorders that make partitions, and those that drop them.
PARTITIONS_LOCK = 7_310_443
# For readers of the table; who waits for a lock holds up all that come after.
LOCK_MS = 2000
REFRESH = timedelta(
    hours=1
)  # how often it is looked whether another recorder made or dropped months
DENIED = ("55P03", "40P01")  # SQLSTATE of a lock that did not come in time, and of a deadlock

log = logging.getLogger(__name__)

WRITTEN = tuple(c.name for c in COUNTS.columns if c.name not in DERIVED)


def month_of(at: datetime) -> datetime:
    """Return the beginning of a moment's month, in UTC."""
    utc = at.astimezone(timezone.utc)
    return utc.replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def months_of(moments: Iterable[datetime]) -> set[datetime]:
    """Return the beginnings of the months of moments in UTC."""
    found = {(at.year, at.month) for at in moments}
    return {datetime(year, month, 1, tzinfo=timezone.utc) for year, month in found}


def after(month: datetime) -> datetime:
    """Return the beginning of the month after one."""
    return month_of(month + timedelta(days=31))


def kept_apart(month: datetime, now: datetime) -> bool:
    """Tell whether a month has a partition of its own as soon as a reading wants it."""
    return month_of(now - OLDEST) <= month <= after(month_of(now))


def existing(db: sa.Connection) -> set[datetime]:
    """List the months that have a partition."""
    names = db.execute(
        sa.text(
            "SELECT relname FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid "
            "WHERE inhparent = CAST('counts' AS regclass) AND relname ~ '^counts_[0-9]{4}_[0-9]{2}$'"
        )
    ).scalars()
    return {datetime.strptime(name, NAME).replace(tzinfo=timezone.utc) for name in names}


def make(db: sa.Connection, month: datetime, source: str) -> None:
    """Make a month's partition of the readings that stand in a table, which keeps them.

    It is filled, then attached: made as a partition at once, it would hold up all who read."""
    name, columns = month.strftime(NAME), ", ".join(f'"{c}"' for c in WRITTEN)
    kinds = "INCLUDING DEFAULTS INCLUDING GENERATED INCLUDING CONSTRAINTS"
    db.exec_driver_sql(f"CREATE TABLE {name} (LIKE {source} {kinds})")
    db.exec_driver_sql(
        f"INSERT INTO {name} ({columns}) SELECT {columns} FROM {source} WHERE {_span(month)}"
    )


def attach(db: sa.Connection, month: datetime) -> None:
    """Make a month's table, which `make` made, a partition, with the indexes that all have."""
    db.exec_driver_sql(
        f"ALTER TABLE counts ATTACH PARTITION {month.strftime(NAME)} "
        f"FOR VALUES FROM ('{month.isoformat()}') TO ('{after(month).isoformat()}')"
    )


def _span(month: datetime) -> str:
    return f"start >= '{month.isoformat()}' AND start < '{after(month).isoformat()}'"


@contextmanager
def short_of_patience(db: sa.Connection) -> Iterator[None]:
    """Wait for locks LOCK_MS at most; then what was done within is undone, and Busy is raised."""
    try:
        with db.begin_nested():
            db.exec_driver_sql(f"SET LOCAL lock_timeout = {LOCK_MS}")
            yield
            db.exec_driver_sql("SET LOCAL lock_timeout = DEFAULT")
    except sa.exc.OperationalError as error:
        if getattr(error.orig, "sqlstate", None) not in DENIED:
            raise
        raise Busy from error


class Busy(Exception):
    """Somebody reads or writes just then what would have to stand still."""


class Months:
    """Which months have a partition, as one recorder knows it."""

    def __init__(self) -> None:
        self._there: set[datetime] = set()
        self._asked: set[datetime] = set()  # since it was looked, made or not
        self._looked: datetime | None = None

    def lacking(self, starts: Iterable[datetime], now: datetime) -> set[datetime]:
        """Return the months to `prepare` before readings that began then are stored: theirs, this one
        and the next. Not empty also where it is time to look what other recorders did."""
        wanted = {month_of(now), after(month_of(now)), *months_of(starts)}
        if self._looked is None or not timedelta() <= now - self._looked < REFRESH:
            self._asked.clear()
        return wanted - self._asked

    def prepare(self, db: sa.Connection, wanted: Collection[datetime], now: datetime) -> None:
        """Make the partitions that lack, also for strays whose month is kept apart by now."""
        db.execute(sa.select(sa.func.pg_advisory_xact_lock(PARTITIONS_LOCK)))
        self._there = existing(db)
        self._looked = now
        self._asked |= set(wanted)
        stray = db.execute(
            sa.text(
                f"SELECT DISTINCT date_trunc('month', start AT TIME ZONE 'UTC') FROM {STRAYS} "
                "WHERE start >= :first AND start < :end"
            ),
            {"first": month_of(now - OLDEST), "end": after(after(month_of(now)))},
        ).scalars()
        months = {*wanted, *(month.replace(tzinfo=timezone.utc) for month in stray)}
        for month in sorted(months - self._there):
            if not kept_apart(month, now):
                continue
            try:
                with short_of_patience(db):
                    make(db, month, STRAYS)
                    db.exec_driver_sql(f"DELETE FROM {STRAYS} WHERE {_span(month)}")
                    attach(db, month)
            except Busy:
                log.warning(
                    "the readings are in use: those of %s stand in %s, and move in an hour",
                    *(month.strftime("%Y-%m"), STRAYS),
                )
                return
            self._there.add(month)

    def strays(self, starts: Collection[datetime]) -> list[datetime]:
        """Return those of the moments whose month has no partition."""
        if months_of(starts) <= self._there:
            return []
        return [start for start in starts if month_of(start) not in self._there]


def drop(db: sa.Connection, months: Iterable[datetime]) -> None:
    """Drop the partitions of months, which `lock_over` gave."""
    for month in months:
        db.exec_driver_sql(f"DROP TABLE {month.strftime(NAME)}")


def lock_over(db: sa.Connection, before: datetime) -> list[datetime]:
    """Lock the table, where there are months of which every reading ended before a moment, and return
    these; none where somebody reads the table just then."""
    over = sorted(month for month in existing(db) if after(month) <= before)
    if not over:
        return []
    try:
        with short_of_patience(db):
            db.exec_driver_sql("LOCK TABLE counts IN ACCESS EXCLUSIVE MODE")
    except Busy:
        return []
    later = 'SELECT 1 FROM {} WHERE "end" >= %s LIMIT 1'
    return [
        month
        for month in over
        if db.exec_driver_sql(later.format(month.strftime(NAME)), (before,)).first() is None
    ]
