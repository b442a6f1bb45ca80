"""The rows of an outbox: their table, what proves that they are as they were written, which ones go.

    seq | payload  the message as JSON, its log and seq within | acknowledged | born | crc | guard

crc is the text's; guard that of the other columns, so that neither a row's number nor whether it waits
changes unseen. SQLite notices what is wrong with its pages, not with what they hold.
"""

from __future__ import annotations

import json
import sqlite3
import struct
import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from edge.delivery.life import LONGEST, Life, Log, checksum

ASIDE = 100  # unreadable rows that are kept to be looked at
COLUMNS = "seq, payload, acknowledged, born, crc, guard"
INSERT = f"INSERT OR REPLACE INTO readings ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)"
# acknowledged: running time of the broker's acknowledgement; 0 while it waits. born: running time.
# Version 0.1.0 knows neither `guard` nor `life`, and reads all the rest: an update can be rolled back.
TABLES = (
    "CREATE TABLE IF NOT EXISTS meta (log TEXT NOT NULL, running REAL NOT NULL DEFAULT 1, "
    "dropped INTEGER NOT NULL DEFAULT 0, stored INTEGER)",
    "CREATE TABLE IF NOT EXISTS readings (seq INTEGER PRIMARY KEY AUTOINCREMENT, "
    "payload TEXT NOT NULL, acknowledged REAL NOT NULL DEFAULT 0, "
    "born REAL NOT NULL DEFAULT 0, crc INTEGER)",
    "CREATE INDEX IF NOT EXISTS waiting ON readings (seq) WHERE acknowledged = 0",
    # What is too old is asked for with every reading, of ninety thousand that are kept.
    "CREATE INDEX IF NOT EXISTS kept ON readings (acknowledged) WHERE acknowledged > 0",
    "CREATE INDEX IF NOT EXISTS aged ON readings (born) WHERE acknowledged = 0",
    "CREATE TABLE IF NOT EXISTS unreadable (at REAL, seq INTEGER, payload BLOB)",
)
ADDED = (("meta", "life", "TEXT"), ("readings", "guard", "INTEGER"))


def make_tables(db: sqlite3.Connection) -> None:
    """Make what is missing, also in a file of version 0.1.0."""
    for statement in TABLES:
        db.execute(statement)
    for table, column, kind in ADDED:
        known = {row[1] for row in db.execute(f"PRAGMA table_info({table})")}
        if column not in known:
            db.execute(f"ALTER TABLE {table} ADD COLUMN {column} {kind}")


def insert_life(db: sqlite3.Connection, life: Life) -> None:
    """Make the outbox's own row, in a new file."""
    db.execute("INSERT INTO meta (log) VALUES (?)", (life.log.log_id,))
    write_life(db, life)


def write_life(db: sqlite3.Connection, life: Life) -> None:
    """Write the outbox's own row, within a transaction; version 0.1.0 reads the other columns."""
    db.execute(
        "UPDATE meta SET log = ?, running = ?, dropped = ?, stored = ?, life = ?",
        (life.log.log_id, life.running, life.dropped, life.log.stored, life.sealed()),
    )


def guard(seq: int, acknowledged: float, born: float, crc: int) -> int:
    """Return the checksum of a row's other columns."""
    return zlib.crc32(struct.pack(">qddq", seq, acknowledged, born, crc))


@dataclass(frozen=True, slots=True)
class Row:
    """One row as it lies there, of any type. seq: its rowid."""

    seq: int
    payload: Any
    acknowledged: Any
    born: Any
    crc: Any
    guard: Any

    @property
    def guarded(self) -> bool:
        """Tell whether number and state are as they were written."""
        try:
            return bool(self.guard == guard(self.seq, self.acknowledged, self.born, self.crc))
        except struct.error:
            return False

    @property
    def intact(self) -> bool:
        """Tell whether everything is as it was written."""
        return self.content_intact and self.guarded

    @property
    def content_intact(self) -> bool:
        """Tell whether the text is."""
        return isinstance(self.payload, str) and self.crc == checksum(self.payload)

    @property
    def waits(self) -> bool:
        """Tell whether it waits for a broker's acknowledgement, as far as can be known."""
        return not (self.guarded and self.acknowledged > 0)

    def message(self) -> dict[str, Any] | None:
        """Return the message, None where the text is not as it was written, or no object."""
        if not self.content_intact:
            return None
        try:
            content = json.loads(self.payload)
        except (ValueError, RecursionError):
            return None
        return content if isinstance(content, dict) else None

    def values(self) -> tuple[Any, ...]:
        """Return the columns in the table's order."""
        return (self.seq, self.payload, self.acknowledged, self.born, self.crc, self.guard)


def make_row(seq: int, text: str, born: float, acknowledged: float = 0.0) -> Row:
    """Make a row with its checksums."""
    crc = checksum(text)
    return Row(seq, text, acknowledged, born, crc, guard(seq, acknowledged, born, crc))


def mended(row: Row, log_id: str, now: float) -> Row | None:
    """Return a row of version 0.1.0, or one whose state changed, as it should be; None for one whose
    text is not what was written, or names another number. log_id: of rows that name no log; now:
    running time, for one that is not known."""
    message = row.message()
    if message is None or not 0 < row.seq < 2**53:
        return None
    # Version 0.1.0 kept no log and no seq in the text.
    older = not message.get("log")
    if not older and message.get("seq") != row.seq:
        return None
    text = row.payload
    if older:
        text = _text({**message, "log": log_id, "seq": row.seq})
    known = row.guarded or (older and row.guard is None)
    acknowledged, born = row.acknowledged, row.born
    if not (known and _time(acknowledged) and _time(born)):
        acknowledged, born = 0.0, now
    return make_row(row.seq, text, float(born), float(acknowledged))


def _text(message: dict[str, Any]) -> str:
    # Not by `dumps`: what an older version kept may hold what no message of today may.
    return json.dumps(message, ensure_ascii=False, separators=(",", ":"))


def _time(value: object) -> bool:
    return type(value) in (int, float) and 0 <= float(value) <= LONGEST  # type: ignore[arg-type]


def select(db: sqlite3.Connection, where: str, *values: Any) -> Iterator[Row]:
    """Yield the rows that a condition holds for, which may end with an order and a limit."""
    for columns in db.execute(f"SELECT {COLUMNS} FROM readings {where}", values):
        yield Row(*columns)


def set_row_aside(db: sqlite3.Connection, row: Row, now: float) -> None:
    """Move a row that does not read to where somebody may look at it; only the last ones are kept."""
    raw = row.payload if isinstance(row.payload, (str, bytes)) else str(row.payload)
    db.execute("INSERT INTO unreadable VALUES (?, ?, CAST(? AS BLOB))", (now, row.seq, raw))
    db.execute(
        "DELETE FROM unreadable WHERE rowid <= (SELECT MAX(rowid) FROM unreadable) - ?", (ASIDE,)
    )
    db.execute("DELETE FROM readings WHERE seq = ?", (row.seq,))


def requeue(db: sqlite3.Connection, lacked: Sequence[tuple[int, int]], before: float) -> int:
    """Have rows wait again that the broker acknowledged before that running time, of numbers that a
    recorder lacks, see `Life.lacked`; returns how many."""
    count = 0
    for above, up_to in lacked:
        where = "WHERE acknowledged > 0 AND acknowledged <= ? AND seq > ? AND seq <= ?"
        for row in [r for r in select(db, where, before, above, up_to) if r.intact]:
            db.execute(INSERT, make_row(row.seq, row.payload, row.born).values())
            count += 1
    return count


def count_lacked(
    db: sqlite3.Connection, life: Life, recorders: Collection[str], before: float
) -> dict[str, int]:
    """Return how many numbers each of these recorders lacks that are still here, of those that lack one
    which was born before that running time."""
    found: dict[str, int] = {}
    for name in recorders:
        first = db.execute("SELECT COALESCE(MIN(seq), ?) FROM readings", (2**53,)).fetchone()[0]
        count, old = 0, False
        for above, up_to in life.lacked([name]):
            count += max(0, up_to - max(above, first - 1))
            # The oldest are the first in the table: one look, though a recorder lacks all of them.
            asked = "SELECT born FROM readings WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT 1"
            oldest = db.execute(asked, (above, up_to)).fetchone()
            old = old or (oldest is not None and oldest[0] <= before)
        if old:
            found[name] = count
    return found


def relabel(db: sqlite3.Connection, log: Log, now: float) -> None:
    """Put all rows from the log's first number on under it, where they wait."""
    for row in list(select(db, "WHERE seq >= ?", log.first)):
        whole = mended(row, log.log_id, now)
        if whole is not None:
            text = _text({**json.loads(whole.payload), "log": log.log_id})
            db.execute(INSERT, make_row(whole.seq, text, whole.born).values())


def trim(
    db: sqlite3.Connection,
    newest: int,
    before: tuple[float, float],
    surplus: int,
    lacked: Sequence[tuple[int, int]] = (),
) -> tuple[int, int, int]:
    """Delete what is too old or too much, oldest first, never the newest; returns bytes freed, readings
    dropped that nobody has acknowledged, and dropped ones that the broker has, but not all recorders.

    before: running time before which a row was acknowledged, and born, to be too old; surplus: bytes
    of text that are too much; lacked: numbers that recorders named by the settings lack, see
    `Life.lacked`, which stay as long as what waits."""
    lacks = " OR ".join(f"seq > {above} AND seq <= {up_to}" for above, up_to in lacked) or "0"
    # Which rows, and when they are too old, in the order in which they make room: what all have, what
    # the broker has, what nobody has.
    states = (
        (f"acknowledged > 0 AND NOT ({lacks})", "acknowledged < :taken"),
        (f"acknowledged > 0 AND ({lacks})", "acknowledged < :taken AND born < :born"),
        ("acknowledged = 0", "born < :born"),
    )
    values = {"taken": before[0], "born": before[1], "newest": newest}
    gone = [_delete(db, f"{which} AND {old} AND seq < :newest", values) for which, old in states]
    for lengths, (which, _) in zip(gone, states, strict=True):
        while surplus > sum(map(sum, gone)):
            first = (
                f"SELECT seq FROM readings WHERE {which} AND seq < :newest ORDER BY seq LIMIT 20"
            )
            more = _delete(db, f"seq IN ({first})", values)
            if not more:
                break
            lengths += more
    _, missed, unsent = gone
    return sum(map(sum, gone)), len(unsent), len(missed)


def _delete(db: sqlite3.Connection, where: str, values: dict[str, float]) -> list[int]:
    """Delete rows; returns the lengths of their texts."""
    rows = db.execute(
        f"DELETE FROM readings WHERE {where} RETURNING COALESCE(LENGTH(payload), 0)", values
    )
    return [int(row[0]) for row in rows.fetchall()]
