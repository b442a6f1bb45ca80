"""The outbox's file and its mark, as one thing: transactions, damage that shows later, running time."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from edge.base.errors import OutboxError
from edge.base.machine import identity
from edge.delivery.life import Life
from edge.delivery.mark import MarkFile, mark_path
from edge.delivery.rows import write_life
from edge.delivery.start import (
    Identify,
    Opened,
    is_damage,
    mark_of,
    open_outbox_file,
    open_salvaged,
)

log = logging.getLogger(__name__)
T = TypeVar("T")

IN_USE = "another edge-run uses it; stop that one or give another runtime.state"


class OutboxFile:
    """What an outbox keeps on the disk, for one thread at a time within `do`.

    db, life: the file and its own row; size: bytes of all texts; marked: the mark covers up to this
    seq; set_aside: where a damaged file went since the start.
    """

    def __init__(
        self, path: Path, clock: Callable[[], float], identify: Identify | None = None
    ) -> None:
        """identify: as of `Outbox`. Raises OutboxError."""
        self.path, self._clock = path, clock
        self._identify = identify or (lambda salt: identity(path.parent, salt))
        self._lock = threading.RLock()
        self._marks: MarkFile | None = None
        self.set_aside: Path | None = None
        try:
            if str(path) == ":memory:":
                self._identify = lambda salt: {}
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._marks = MarkFile(mark_path(path))
            self._use(open_outbox_file(path, self._marks, self._identify))
        except (sqlite3.Error, UnicodeDecodeError) as error:
            self._close_mark()
            raise OutboxError(f"outbox {path} cannot be opened: {_hint(error)}") from error
        except BlockingIOError as error:
            raise OutboxError(f"outbox {path} cannot be opened: {IN_USE}") from error
        except OSError as error:
            self._close_mark()
            raise OutboxError(
                f"outbox {path} cannot be made ({error.strerror}); give another runtime.state"
            ) from error

    def _use(self, opened: Opened) -> None:
        self.db, self.life, self.size = opened.db, opened.life, opened.size
        self.set_aside = opened.set_aside or self.set_aside
        self.marked = self.life.last
        self._before, self._since = self.life.running, self._clock()

    def running(self) -> float:
        """Return the seconds that this file was in use, over all starts."""
        return self._before + self._clock() - self._since

    def do(self, what: str, work: Callable[[], T]) -> T:
        """Call `work` under the lock, once more on a new file where this one turns out to be damaged.
        Its faults become OutboxError, with `what` in its words."""
        with self._lock:
            try:
                try:
                    return work()
                except (sqlite3.Error, UnicodeDecodeError) as error:
                    if self._marks is None or not is_damage(error, self.path):
                        raise
                    self.salvage(error)
                    return work()
            except (sqlite3.Error, UnicodeDecodeError, OSError) as error:
                raise OutboxError(f"outbox {self.path} {what}: {error}") from error

    def salvage(self, error: Exception) -> None:
        """Set this file aside for a new one with what still reads. Raises sqlite3.Error and OSError."""
        self.db.close()
        self._use(open_salvaged(self.path, self._marks, self._identify, error))

    @contextmanager
    def change(self) -> Iterator[sqlite3.Connection]:
        """One transaction, which `keep` commits; rolled back when it fails."""
        self.db.execute("BEGIN IMMEDIATE")
        try:
            yield self.db
        finally:
            if self.db.in_transaction:
                self.db.execute("ROLLBACK")

    def keep(self, life: Life) -> None:
        """Commit a transaction, with what the outbox knows of itself after it."""
        write_life(self.db, life)
        self.db.execute("COMMIT")
        self.life = life

    def mark(self) -> None:
        """Put the mark on the disk; where that fails, what it does not cover is not offered yet."""
        try:
            if self._marks:
                self._marks.write(mark_of(self.life))
        except OSError as error:
            log.error("outbox %s: its mark cannot be written (%s)", self.path, error.strerror)
        else:
            self.marked = self.life.last

    def close(self) -> None:
        """Close the file and its mark."""
        with self._lock:
            self.db.close()
            self._close_mark()

    def _close_mark(self) -> None:
        if self._marks:
            self._marks.close()

    def remove(self) -> None:
        """Close and delete."""
        self.close()
        for suffix in ("", "-wal", "-shm", "-mark"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)


def _hint(error: Exception) -> str:
    if "locked" in str(error):
        return IN_USE
    return f"{error}; check the folder's rights and the disk"
