"""Readings on disk: committed before they are offered, marked when the broker has acknowledged.

One SQLite file (WAL, synchronous FULL). Its `log` is a UUID made with the file, `seq` counts up by
one and is never used twice, so a receiver that deduplicates on (node, log, seq) counts each once.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edge.errors import OutboxError
from edge.payload import dumps

KEEP_ACKNOWLEDGED = 10_000
MAX_READINGS = 200_000


class Outbox:
    """Append from one thread, read and acknowledge from another."""

    def __init__(self, path: Path) -> None:
        """Raises OutboxError where the file cannot be used, or another node uses it."""
        self.path = path
        self.dropped = 0
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(
                path, timeout=0.5, isolation_level=None, check_same_thread=False
            )
            # EXCLUSIVE: two nodes on one outbox would send each other's readings.
            self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute("CREATE TABLE IF NOT EXISTS meta (log TEXT NOT NULL)")
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS readings (seq INTEGER PRIMARY KEY AUTOINCREMENT, "
                "payload TEXT NOT NULL, acknowledged INTEGER NOT NULL DEFAULT 0)"
            )
            row = self._db.execute("SELECT log FROM meta").fetchone()
            if row is None:
                row = (str(uuid.uuid4()),)
                self._db.execute("INSERT INTO meta VALUES (?)", row)
            self._db.execute("COMMIT")
        except sqlite3.OperationalError as error:
            busy = "locked" in str(error)
            hint = (
                "another edge-run uses it; stop that one or give another runtime.state"
                if busy
                else f"{error}; check the folder's rights and the disk"
            )
            raise OutboxError(f"outbox {path} cannot be opened: {hint}") from error
        except sqlite3.DatabaseError as error:
            raise OutboxError(
                f"outbox {path} is damaged ({error}); move it away and start again"
            ) from error
        except OSError as error:
            raise OutboxError(
                f"outbox {path} cannot be made ({error.strerror}); give another runtime.state"
            ) from error
        self.log: str = row[0]

    def append(self, payload: dict[str, Any]) -> int:
        """Commit one reading; returns its seq. Raises OutboxError when the disk does not take it."""
        with self._errors("takes no reading"), self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                cursor = self._db.execute(
                    "INSERT INTO readings (payload) VALUES (?)", (dumps(payload),)
                )
                seq = int(cursor.lastrowid or 0)
                self.dropped += self._db.execute(
                    "DELETE FROM readings WHERE seq <= ? AND acknowledged = 0",
                    (seq - MAX_READINGS,),
                ).rowcount
                self._db.execute(
                    "DELETE FROM readings WHERE seq <= ? AND acknowledged = 1",
                    (seq - KEEP_ACKNOWLEDGED,),
                )
                self._db.execute("COMMIT")
            except sqlite3.OperationalError:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        return seq

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise OutboxError(f"outbox {self.path} {what}: {error}") from error

    def pending(self, above: int = 0, limit: int = 20) -> list[tuple[int, dict[str, Any]]]:
        """The oldest readings that no broker has acknowledged, in order, with log and seq set."""
        with self._errors("gives no readings"), self._lock:
            rows = self._db.execute(
                "SELECT seq, payload FROM readings WHERE acknowledged = 0 AND seq > ? "
                "ORDER BY seq LIMIT ?",
                (above, limit),
            ).fetchall()
        return [(seq, {**json.loads(text), "log": self.log, "seq": seq}) for seq, text in rows]

    def acknowledge(self, seq: int) -> None:
        """Raises OutboxError when the disk does not take the mark; then it is offered again."""
        with self._errors("keeps no acknowledgement"), self._lock:
            self._db.execute("UPDATE readings SET acknowledged = 1 WHERE seq = ?", (seq,))

    def depth(self) -> int:
        """Readings that wait for an acknowledgement."""
        with self._errors("cannot be counted"), self._lock:
            row = self._db.execute(
                "SELECT COUNT(*) FROM readings WHERE acknowledged = 0"
            ).fetchone()
        return int(row[0])

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def remove(self) -> None:
        """Close and delete; for the outbox of a file source, once everything was acknowledged."""
        self.close()
        for suffix in ("", "-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
