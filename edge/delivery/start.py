"""How an outbox is opened: what it holds is proven, and where that fails, another log is begun.

The order: finish a salvage that was cut off; open; check the pages, the outbox's own row, every row;
hold it against the mark, the machine and what a recorder said. Nothing is offered before that.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from edge.base.machine import is_another
from edge.delivery.life import Life, Log, checksum, read_life, seconds, whole
from edge.delivery.mark import Mark, MarkFile
from edge.delivery.rows import (
    COLUMNS,
    INSERT,
    Row,
    guard,
    insert_life,
    make_tables,
    mended,
    select,
    set_row_aside,
    write_life,
)
from edge.delivery.salvage import finish, salvage

log = logging.getLogger(__name__)

# Little lives in the WAL alone: SQLite ends it at the first frame that is damaged.
CHECKPOINT_PAGES = 32
# Types of a row's text, crc, acknowledged and born.
PLAIN = (str, int, float, float)
# What the machine can bring about; any other error of SQLite's is the file's own.
ENVIRONMENT = ("locked", "is full", "disk I/O error", "unable to open", "readonly", "out of memory")


# From a salt to what tells this machine from others.
Identify = Callable[[str], Mapping[str, str]]


class Damaged(sqlite3.DatabaseError):
    """The file is none of ours, or not as it was written."""


@dataclass(slots=True)
class Opened:
    """An outbox that is open. size: bytes of all texts; set_aside: where a damaged file went."""

    db: sqlite3.Connection
    life: Life
    size: int
    set_aside: Path | None = None


def is_damage(error: Exception, path: Path) -> bool:
    """Tell whether the file itself is broken, not the disk, its rights, or another process."""
    if isinstance(error, UnicodeDecodeError):
        return True  # of SQLite's own words, which name what a changed byte made of a table's name
    if isinstance(error, sqlite3.ProgrammingError) or not isinstance(error, sqlite3.DatabaseError):
        return False  # a defect of ours
    if not isinstance(error, sqlite3.OperationalError):
        return True
    if "readonly" in str(error):  # a changed byte of the header says so as well
        return os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)
    return not any(words in str(error) for words in ENVIRONMENT)


def open_outbox_file(path: Path, marks: MarkFile | None, identify: Identify) -> Opened:
    """Open the file, made where it is missing; what is damaged is salvaged into a new one. marks: None
    for an outbox in memory. Raises sqlite3.Error and OSError."""
    if marks is not None:
        finish(path)
    try:
        return _open(path, marks, identify)
    except (sqlite3.Error, UnicodeDecodeError) as error:
        no_read = "disk I/O error" in str(error) and path.exists()
        if not (is_damage(error, path) or no_read):
            raise
        return open_salvaged(path, marks, identify, error)


def open_salvaged(
    path: Path, marks: MarkFile | None, identify: Identify, error: Exception
) -> Opened:
    """Set the damaged file aside and open a new one that holds what still reads."""
    away = salvage(path, marks.read() if marks else None)
    log.error("outbox %s is damaged (%s): set aside as %s", path, error, away.name)
    opened = _open(path, marks, identify)
    opened.set_aside = away
    return opened


def _open(path: Path, marks: MarkFile | None, identify: Identify) -> Opened:
    db = sqlite3.connect(path, timeout=0.5, isolation_level=None, check_same_thread=False)
    try:
        db.text_factory = lambda raw: raw.decode("utf-8", "replace")
        # EXCLUSIVE: two nodes on one outbox would send each other's readings.
        db.execute("PRAGMA locking_mode=EXCLUSIVE")
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        db.execute(f"PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}")
        db.execute("BEGIN IMMEDIATE")
        make_tables(db)
        if (verdict := db.execute("PRAGMA integrity_check(1)").fetchone()[0]) != "ok":
            raise Damaged(str(verdict))
        life, first_use = _read_own(db)
        life, size = _examine(db, path, life)
        proven = prove(life, marks.read() if marks else None, identify, first_use or not marks)
        if marks and first_use:  # before there is a row that a missing mark would speak against
            marks.write(mark_of(proven))
        write_life(db, proven)
        db.execute("COMMIT")
        if marks:
            marks.write(mark_of(proven))
    except BaseException:
        db.close()
        raise
    if proven.log.log_id != life.log.log_id:
        say_begun(path, proven)
    return Opened(db, proven, size)


def mark_of(life: Life) -> Mark:
    """Make the mark that promises what this life has given."""
    return Mark(life.log.log_id, life.last, life.waiting)


def say_begun(path: Path, life: Life) -> None:
    """Log that another log was begun, and why."""
    log.warning("outbox %s: a new log was begun (%s)", path, life.log.begun)


def _read_own(db: sqlite3.Connection) -> tuple[Life, bool]:
    """The outbox's own row, and whether it is new: in a new file, and in one of version 0.1.0."""
    rows = db.execute("SELECT log, running, dropped, stored, life FROM meta").fetchall()
    holds = db.execute("SELECT EXISTS (SELECT 1 FROM readings)").fetchone()[0]
    if not rows and not holds:
        life = Life()
        insert_life(db, life)
        return life, True
    if len(rows) != 1:
        raise Damaged("its own row is missing")
    log_id, running, dropped, stored, line = rows[0]
    if line is not None:
        known = read_life(line)
        if known is None:
            raise Damaged("its own row is not as it was written")
        return known, False
    try:  # version 0.1.0
        first = Log(str(log_id), stored=None if stored is None else whole(stored))
        older = Life((first,), _sequence(db), running=seconds(running), dropped=whole(dropped))
        return older, True
    except ValueError as error:
        raise Damaged(str(error)) from error


def _sequence(db: sqlite3.Connection) -> int:
    """The highest number that SQLite gave; raises Damaged."""
    row = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'readings'").fetchone()
    try:
        return whole(row[0]) if row else 0
    except ValueError as error:
        raise Damaged(str(error)) from error


def _examine(db: sqlite3.Connection, path: Path, life: Life) -> tuple[Life, int]:
    """Read every row once: mend or set aside what is not as it was written, count what is missing."""
    strange, size, waiting, highest, older = [], 0, 0, 0, False
    # Plain columns: there may be ninety thousand.
    for seq, text, acknowledged, born, crc, check in db.execute(
        f"SELECT {COLUMNS} FROM readings NOT INDEXED ORDER BY seq"
    ):
        if (type(text), type(crc), type(acknowledged), type(born)) != PLAIN or (
            crc != checksum(text) or check != guard(seq, acknowledged, born, crc)
        ):
            strange.append(seq)
            continue
        size += len(text)
        waiting += acknowledged == 0
        highest = seq
    aside = lost = 0
    for seq in strange:
        (row,) = select(db, "WHERE seq = ?", seq)
        older = older or row.guard is None
        good = mended(row, life.log.log_id, life.running)
        if good is None:
            aside, lost = aside + 1, lost + row.waits
            put_aside(db, path, row, life.running)
            continue
        db.execute(INSERT, good.values())
        size += len(good.payload)
        waiting += good.waits
        highest = max(highest, good.seq)
    if older:  # version 0.1.0 counted in SQLite's own table
        highest = max(highest, _sequence(db))
    else:
        lost = max(lost, life.waiting - waiting)
    life = replace(
        life,
        last=max(life.last, highest),
        waiting=waiting,
        dropped=life.dropped + lost,
        unreadable=life.unreadable + aside,
    )
    return life, size


def put_aside(db: sqlite3.Connection, path: Path, row: Row, now: float) -> None:
    """Set a row aside and say so."""
    log.error("outbox %s: reading %d is damaged and was set aside", path, row.seq)
    set_row_aside(db, row, now)


def prove(life: Life, mark: Mark | None, identify: Identify, markless: bool) -> Life:
    """Return the life that goes on: under a new log where the old one may be another's, or may have
    lost its end. markless: no mark is no sign of loss.

    Version 0.1.0 wrote no mark: an update begins no new log, since nothing speaks for a loss, and
    a recorder's `ack` still tells of one."""
    lost = 0
    if mark is not None and mark.last > life.last:
        lost = min(mark.last - life.last, mark.waiting)
    known = mark is not None and any(g.log_id == mark.log_id for g in life.logs)
    last = max(life.last, mark.last if mark else 0)
    ahead = mark is not None and (mark.last > life.last or (not known and mark.last > 0))
    unproven = mark is None and life.last > 0
    life = replace(life, last=last, dropped=life.dropped + lost)
    machine = identify(life.salt)
    if ahead or (unproven and not markless):
        life = life.begin("incomplete", last + 1)
    elif is_another(life.machine, machine):
        life = life.begin("other-machine", last + 1)
    since = life.last if life.agreed else life.since
    return replace(life, machine=machine, since=since, agreed=False)
