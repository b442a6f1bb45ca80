"""Readings on disk: committed before they are offered, marked when the broker has acknowledged.

One SQLite file (WAL, synchronous FULL). Its `log` is a UUID made with the file, `seq` counts up by
one and is never used twice, so a receiver that deduplicates on (node, log, seq) counts each once.

    append -> waiting -> acknowledge (broker) -> kept for hours -> gone
                 ^------------- requeue_unconfirmed (a recorder never got it)

Ages are in running time, which this file accumulates over starts: a clock that jumps expires nothing.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
import time
import uuid
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from edge.base.errors import OutboxError
from edge.delivery.messages import Begun, dumps

log = logging.getLogger(__name__)
T = TypeVar("T")
META = "SELECT log, running, dropped, stored, begun, unreadable FROM meta"


@dataclass(frozen=True, slots=True)
class Limits:
    """mib: of all readings; days: a reading waits at most so long; keep_hours: how long it stays
    after the broker's acknowledgement. Days and hours of running time."""

    mib: float = 64.0
    days: float = 30.0
    keep_hours: float = 24.0


class Outbox:
    """Append from one thread, read and acknowledge from another."""

    def __init__(
        self,
        path: Path,
        limits: Limits = Limits(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """A damaged file is set aside (`set_aside` names where) and a new one is started.

        Raises OutboxError where the file cannot be used, or another node uses it."""
        self.path, self._limits, self._clock = path, limits, clock
        self.set_aside: Path | None = None
        self._lock = threading.RLock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._open()
            except sqlite3.DatabaseError as error:
                if not _damage(error):
                    raise
                self._start_anew(error)
        except sqlite3.OperationalError as error:
            raise OutboxError(f"outbox {path} cannot be opened: {_hint(error)}") from error
        except OSError as error:
            raise OutboxError(
                f"outbox {path} cannot be made ({error.strerror}); give another runtime.state"
            ) from error

    def _open(self) -> None:
        self._db = sqlite3.connect(
            self.path, timeout=0.5, isolation_level=None, check_same_thread=False
        )
        _configure(self._db)
        self._db.execute("BEGIN IMMEDIATE")
        _make_tables(self._db)
        row = self._db.execute(META).fetchone()
        self._db.execute("COMMIT")
        if (verdict := self._db.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise sqlite3.DatabaseError(f"{verdict}")
        self.log_id: str = row[0]
        self._before, self._opened = float(row[1]), self._clock()
        self.dropped, self.stored = int(row[2]), row[3]
        self.begun: Begun | None = row[4]
        self.unreadable = int(row[5])
        self._bytes = _whole(self._db, "SELECT COALESCE(SUM(LENGTH(payload)), 0) FROM readings")

    def _start_anew(self, error: Exception) -> None:
        """Move the damaged file away, whole, and start a new log."""
        self._db.close()
        away = _set_aside(self.path)
        log.error("outbox %s is damaged (%s): set aside as %s", self.path, error, away.name)
        self._open()
        self._db.execute("UPDATE meta SET begun = 'damaged'")
        self.set_aside, self.begun = away, "damaged"

    def _do(self, what: str, work: Callable[[], T]) -> T:
        """`work` under the lock, its faults as ours; once more on a new file where this one turned
        out to be damaged."""
        with self._lock:
            try:
                try:
                    return work()
                except sqlite3.DatabaseError as error:
                    if not _damage(error):
                        raise
                    self._start_anew(error)
                    return work()
            except (sqlite3.Error, OSError) as error:
                raise OutboxError(f"outbox {self.path} {what}: {error}") from error

    def _running(self) -> float:
        """Seconds that this file was in use, over all starts."""
        return self._before + self._clock() - self._opened

    def append(self, payload: dict[str, Any]) -> int:
        """Commit one reading; returns its seq. Raises OutboxError when the disk does not take it."""
        text = dumps(payload)

        def work() -> int:
            now = self._running()
            try:
                self._db.execute("BEGIN IMMEDIATE")
                cursor = self._db.execute(
                    "INSERT INTO readings (payload, born, crc) VALUES (?, ?, ?)",
                    (text, now, _crc(text)),
                )
                freed, dropped = _trim(self._db, self._limits, now, self._bytes + len(text))
                self._db.execute(
                    "UPDATE meta SET running = ?, dropped = dropped + ?", (now, dropped)
                )
                self._db.execute("COMMIT")
            except sqlite3.DatabaseError:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
            self._bytes += len(text) - freed
            self.dropped += dropped
            return int(cursor.lastrowid or 0)

        return self._do("takes no reading", work)

    def pending(
        self, above: int = 0, limit: int = 20, up_to: int = 2**62
    ) -> list[tuple[int, dict[str, Any]]]:
        """The oldest readings that no broker has acknowledged, above < seq <= up_to, in order, with
        log and seq set."""

        def work() -> list[tuple[int, dict[str, Any]]]:
            rows = self._db.execute(
                "SELECT seq, payload, crc FROM readings "
                "WHERE acknowledged = 0 AND seq > ? AND seq <= ? ORDER BY seq LIMIT ?",
                (above, up_to, limit),
            ).fetchall()
            found = [(seq, self._read(seq, text, crc)) for seq, text, crc in rows]
            return [(seq, payload) for seq, payload in found if payload is not None]

        return self._do("gives no readings", work)

    def _read(self, seq: int, text: str, crc: int | None) -> dict[str, Any] | None:
        """The payload; a row that is not what was written any more is dropped, and counted."""
        if crc in (None, _crc(text)):
            return {**json.loads(text), "log": self.log_id, "seq": seq}
        log.error("outbox %s: reading %d is damaged and was dropped", self.path, seq)
        self._db.execute("DELETE FROM readings WHERE seq = ?", (seq,))
        self._db.execute("UPDATE meta SET dropped = dropped + 1, unreadable = unreadable + 1")
        self._bytes -= len(text)
        self.dropped += 1
        self.unreadable += 1
        return None

    def acknowledge(self, seq: int, log_id: str | None = None) -> None:
        """The broker has it. log_id: of the file that it came from, where that may have been set
        aside since. Raises OutboxError when the disk does not take the mark; then it is offered
        again."""

        def work() -> None:
            if log_id in (None, self.log_id):
                self._db.execute(
                    "UPDATE readings SET acknowledged = ? WHERE seq = ?", (self._running(), seq)
                )

        self._do("keeps no acknowledgement", work)

    def on_recorder_ack(self, seq: int, log_id: str) -> None:
        """A recorder stored everything up to seq of this log, without a gap."""

        def work() -> None:
            if log_id == self.log_id:
                self._db.execute("UPDATE meta SET stored = ?", (seq,))
                self.stored = seq

        self._do("keeps no acknowledgement", work)

    def requeue_unconfirmed(self, after_seconds: float) -> int:
        """Readings that the broker acknowledged so long ago and the recorder still does not have wait
        again: a broker can lose what it acknowledged. Returns how many; none without a recorder."""

        def work() -> int:
            if self.stored is None:
                return 0
            cursor = self._db.execute(
                "UPDATE readings SET acknowledged = 0 WHERE acknowledged > 0 AND seq > ? "
                "AND acknowledged <= ?",
                (self.stored, self._running() - after_seconds),
            )
            return cursor.rowcount

        return self._do("offers nothing again", work)

    def pending_count(self) -> int:
        """Readings that wait for an acknowledgement."""

        def work() -> int:
            return _whole(self._db, "SELECT COUNT(*) FROM readings WHERE acknowledged = 0")

        return self._do("cannot be counted", work)

    def seq_range(self) -> tuple[int, int]:
        """The first seq that is still here (or the next one to come), and the last that was given."""

        def work() -> tuple[int, int]:
            row = self._db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'readings'")
            last = int((row.fetchone() or (0,))[0])
            first = self._db.execute("SELECT MIN(seq) FROM readings").fetchone()[0]
            return (int(first) if first is not None else last + 1), last

        return self._do("cannot be counted", work)

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def remove(self) -> None:
        """Close and delete; for the outbox of a file source, once everything was acknowledged."""
        self.close()
        for suffix in ("", "-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)


def _whole(db: sqlite3.Connection, question: str) -> int:
    return int(db.execute(question).fetchone()[0])


def _crc(text: str) -> int:
    """Of a reading: SQLite notices what is wrong with its pages, not with what they hold."""
    return zlib.crc32(text.encode("utf-8", "replace"))


def _damage(error: sqlite3.DatabaseError) -> bool:
    """Whether the file itself is broken (SQLITE_CORRUPT, SQLITE_NOTADB): sqlite3 has no class for
    these, but gives no other error this bare class."""
    return type(error) is sqlite3.DatabaseError


def _hint(error: sqlite3.OperationalError) -> str:
    if "locked" in str(error):
        return "another edge-run uses it; stop that one or give another runtime.state"
    return f"{error}; check the folder's rights and the disk"


def _configure(db: sqlite3.Connection) -> None:
    db.text_factory = lambda raw: raw.decode("utf-8", "replace")
    # EXCLUSIVE: two nodes on one outbox would send each other's readings.
    db.execute("PRAGMA locking_mode=EXCLUSIVE")
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")


def _make_tables(db: sqlite3.Connection) -> None:
    db.execute(
        "CREATE TABLE IF NOT EXISTS meta (log TEXT NOT NULL, running REAL NOT NULL DEFAULT 1, "
        "dropped INTEGER NOT NULL DEFAULT 0, stored INTEGER)"
    )
    columns = {row[1] for row in db.execute("PRAGMA table_info(meta)")}
    if "begun" not in columns:  # a file of version 0.1.0
        db.execute("ALTER TABLE meta ADD COLUMN begun TEXT")
        db.execute("ALTER TABLE meta ADD COLUMN unreadable INTEGER NOT NULL DEFAULT 0")
    # acknowledged: running time of the broker's acknowledgement; 0 while it waits.
    db.execute(
        "CREATE TABLE IF NOT EXISTS readings (seq INTEGER PRIMARY KEY AUTOINCREMENT, "
        "payload TEXT NOT NULL, acknowledged REAL NOT NULL DEFAULT 0, "
        "born REAL NOT NULL DEFAULT 0, crc INTEGER)"
    )
    db.execute("CREATE INDEX IF NOT EXISTS waiting ON readings (seq) WHERE acknowledged = 0")
    # What is too old is asked for with every reading, of ninety thousand that are kept.
    db.execute("CREATE INDEX IF NOT EXISTS kept ON readings (acknowledged) WHERE acknowledged > 0")
    db.execute("CREATE INDEX IF NOT EXISTS aged ON readings (born) WHERE acknowledged = 0")
    if db.execute("SELECT COUNT(*) FROM meta").fetchone()[0] == 0:
        db.execute("INSERT INTO meta (log) VALUES (?)", (str(uuid.uuid4()),))


def _trim(db: sqlite3.Connection, limits: Limits, now: float, size: int) -> tuple[int, int]:
    """Bytes freed, and readings dropped that nobody has acknowledged; oldest first."""
    freed = _delete(db, "acknowledged > 0 AND acknowledged < ?", now - 3600 * limits.keep_hours)
    gone = _delete(db, "acknowledged = 0 AND born < ?", now - 86400 * limits.days)
    dropped = len(gone)
    freed += gone
    most = limits.mib * 2**20
    # First what the broker has, then what nobody has; never the one that was just written.
    for state in ("acknowledged > 0", "acknowledged = 0"):
        while size - sum(freed) > most:
            gone = _delete(
                db,
                f"seq IN (SELECT seq FROM readings WHERE {state} AND seq < "
                f"(SELECT MAX(seq) FROM readings) ORDER BY seq LIMIT ?)",
                20,
            )
            if not gone:
                break
            dropped += len(gone) if state.endswith("= 0") else 0
            freed += gone
    return sum(freed), dropped


def _delete(db: sqlite3.Connection, where: str, value: float) -> list[int]:
    """Lengths of the readings that went."""
    rows = db.execute(f"DELETE FROM readings WHERE {where} RETURNING LENGTH(payload)", (value,))
    return [int(row[0]) for row in rows.fetchall()]


def _set_aside(path: Path) -> Path:
    """Move the file and what belongs to it to a name that is free; return that."""
    number = sum(1 for _ in path.parent.glob(f"{path.stem}.damaged-*.sqlite"))
    away = path.with_name(f"{path.stem}.damaged-{number}.sqlite")
    for suffix in ("-wal", "-shm", ""):
        source = path.with_name(path.name + suffix)
        if source.exists():
            source.replace(away.with_name(away.name + suffix))
    return away
