"""A damaged outbox -> a new file with every row that still reads; the damaged one is set aside.

The new file is whole on the disk before the damaged one is moved, so a power cut at any moment leaves
one of the two at its place.
"""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from edge.base.files import sync_folder
from edge.delivery.life import Life, Log, read_life
from edge.delivery.mark import Mark
from edge.delivery.pages import find_lives, find_rows, read_pages
from edge.delivery.rows import INSERT, Row, insert_life, make_tables, mended, select

KEPT = 3  # damaged files, the newest ones; each may be as large as an outbox
UUID = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


def salvage(path: Path, mark: Mark | None) -> Path:
    """Put a new file, under a new log, in the place of a damaged one; returns where that went. mark: of
    the damaged one. Raises sqlite3.Error and OSError, and leaves the damaged one at its place then."""
    new = _salvaged(path)
    _unlink(new)
    try:
        _build(path, new, mark)
        away = _free_name(path)
        path.replace(away)
        finish(path)
    except (sqlite3.Error, OSError):
        if path.exists():
            _unlink(new)
        raise
    for old in _asides(path)[:-KEPT]:
        _unlink(old)
    return away


def finish(path: Path) -> None:
    """Do what a salvage left undone when it was cut off; nothing at any other time. Raises OSError."""
    new = _salvaged(path)
    if not new.exists():
        return
    if path.exists():
        _unlink(new)  # not known to be whole: the damaged file is still at its place
        return
    asides = _asides(path)
    for suffix in ("-wal", "-shm"):
        rest = path.with_name(path.name + suffix)
        if rest.exists() and asides:
            rest.replace(asides[-1].with_name(asides[-1].name + suffix))
        rest.unlink(missing_ok=True)  # SQLite would write it into the new file
    new.replace(path)
    sync_folder(path.parent)


def _salvaged(path: Path) -> Path:
    return path.with_name(f"{path.stem}.salvaged.sqlite")


def _asides(path: Path) -> list[Path]:
    """Name the damaged files, oldest first."""
    found = {}
    for aside in path.parent.glob(f"{path.stem}.damaged-*.sqlite"):
        number = aside.stem.rpartition("-")[2]
        if number.isdecimal():
            found[int(number)] = aside
    return [found[number] for number in sorted(found)]


def _free_name(path: Path) -> Path:
    asides = _asides(path)
    number = int(asides[-1].stem.rpartition("-")[2]) + 1 if asides else 0
    return path.with_name(f"{path.stem}.damaged-{number}.sqlite")


def _unlink(path: Path) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _build(path: Path, new: Path, mark: Mark | None) -> None:
    life, older = _find_life(path)
    db = sqlite3.connect(new, isolation_level=None)
    try:
        # It is synced once, when it is whole; until then nobody uses it.
        db.execute("PRAGMA journal_mode=OFF")
        db.execute("PRAGMA synchronous=OFF")
        db.execute("BEGIN")
        make_tables(db)
        named = mark.log_id if mark else older
        known = life or (Life(logs=(Log(named),)) if named else Life())
        seen = set[int]()
        for row in _find_rows(path, known):
            if row.seq in seen:
                (old,) = select(db, "WHERE seq = ?", row.seq)
                if _rank(row, known) < _rank(old, known):
                    continue
            seen.add(row.seq)
            db.execute(INSERT, row.values())
        newest = mark if mark and (life is None or life.last < mark.last) else life
        life = _count(db, known, mark, newest.waiting if newest else None)
        insert_life(db, life)
        db.execute("COMMIT")
    finally:
        db.close()
    handle = os.open(new, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _find_life(path: Path) -> tuple[Life | None, str | None]:
    """The newest own row that reads; and the log of version 0.1.0, which had no such row and no other
    UUID in its file."""
    lives, log_id = [], None
    for page in read_pages(path):
        lives += [life for line in find_lives(page) if (life := read_life(line))]
        if log_id is None and (found := UUID.search(page)):
            log_id = found[0].decode()
    return max(lives, key=lambda life: (life.last, life.running), default=None), log_id


def _find_rows(path: Path, life: Life) -> Iterator[Row]:
    for page in read_pages(path):
        for rowid, text, columns in find_rows(page):
            row = Row(rowid, text, *[*columns, None][:4])
            if row.intact:  # nearly all, and there may be ninety thousand
                yield row
                continue
            message = row.message()
            if message is not None and message.get("log") and type(message.get("seq")) is int:
                row = replace(row, seq=message["seq"])
            if (whole := mended(row, life.log.log_id, life.running)) is not None:
                yield whole


def _rank(row: Row, life: Life) -> tuple[bool, bool]:
    """Which of two states of one row is the newer: that of the log its number lies in, and then the
    acknowledged one; what a recorder lacks is offered again."""
    message = row.message() or {}
    fitting = [log.log_id for log in life.logs if log.first <= row.seq]
    return fitting[-1:] == [message.get("log")], row.acknowledged > 0


def _count(db: sqlite3.Connection, life: Life, mark: Mark | None, before: int | None) -> Life:
    """The new file's own row: everything that may have waited and is not there was dropped. before: so
    many waited, where that is known."""
    waiting, lowest, highest = db.execute(
        "SELECT COUNT(*) FILTER (WHERE acknowledged = 0), MIN(seq), MAX(seq) FROM readings"
    ).fetchone()
    last = max(life.last, highest or 0, mark.last if mark else 0)
    stored = life.log.stored or 0
    # Numbers that are nowhere, above the first that is kept and what a recorder has.
    above = max((lowest or 1) - 1, stored)
    there = db.execute("SELECT COUNT(*) FROM readings WHERE seq > ?", (above,)).fetchone()[0]
    lost = max(0, last - above - there)
    if before is not None:
        lost = min(before, max(before - waiting, lost))
    counted = replace(life, last=last, waiting=waiting, dropped=life.dropped + lost)
    return counted.begin("damaged", last + 1)
