"""The high-water mark beside the outbox: how far its numbers went, on the disk before anybody hears.

    commit the reading -> write the mark -> offer the reading

An outbox that comes back older than its mark lost readings whose numbers others may have: SQLite ends
a WAL without a word at the first frame that is damaged, and cards lose what they were told to flush.
A process killed between commit and mark leaves a mark that promises less, which is no sign of loss.
"""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

from edge.delivery.life import seal, unseal, whole

SLOT = 512  # a sector, which a disk writes whole or not at all
SLOTS = 2  # written in turn, so that one is always whole


@dataclass(frozen=True, slots=True)
class Mark:
    """log_id: the present log; last: the highest seq given; waiting: rows that no broker has."""

    log_id: str
    last: int
    waiting: int


def mark_path(database: Path) -> Path:
    """Name the file that belongs to a database."""
    return database.with_name(database.name + "-mark")


class MarkFile:
    """Two slots of one sector each, overwritten in place: no write needs room on a full disk. One
    process has it, from before it looks at the outbox until it is done with it."""

    def __init__(self, path: Path) -> None:
        """Open or make it; raises OSError, BlockingIOError where another process has it open.

        SQLite's own lock ends with its connection, and a salvage closes that: this one does not."""
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._turn = 0
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.close()
            raise

    def read(self) -> Mark | None:
        """Return the newest mark that is whole, None where there is none."""
        marks = []
        for slot in range(SLOTS):
            try:
                raw = os.pread(self._handle, SLOT, slot * SLOT)
            except OSError:
                continue  # a sector that the disk cannot give
            content = unseal(raw.rstrip(b"\0\n ").decode("utf-8", "replace"))
            if content is None:
                continue
            try:
                turn = whole(content["turn"])
                mark = Mark(str(content["log"]), whole(content["last"]), whole(content["waiting"]))
            except (KeyError, ValueError):
                continue
            marks.append((turn, mark))
        if not marks:
            return None
        self._turn, newest = max(marks, key=lambda found: found[0])
        return newest

    def write(self, mark: Mark) -> None:
        """Put it on the disk before returning; raises OSError."""
        turn = self._turn + 1
        line = seal({"turn": turn, "log": mark.log_id, "last": mark.last, "waiting": mark.waiting})
        slot = line.encode().ljust(SLOT - 1) + b"\n"
        os.pwrite(self._handle, slot, turn % SLOTS * SLOT)
        os.fdatasync(self._handle)
        self._turn = turn

    def close(self) -> None:
        """Close the file; it may be closed already."""
        if self._handle >= 0:
            os.close(self._handle)
        self._handle = -1
