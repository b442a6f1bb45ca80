"""Readings on disk: committed before they are offered, marked when the broker has acknowledged.

One SQLite file (WAL, synchronous FULL) with a high-water mark beside it. `seq` counts up by one and
is never used twice in a file, `log` is a UUID of one life of it, so a receiver that deduplicates on
(node, log, seq) counts each once. When another log is begun stands in docs/operate.md.

    append -> waiting -> acknowledge (broker) -> kept for hours -> gone
                 ^------------- requeue_unconfirmed (a recorder never got it)

Where recorders are named, a reading is kept until all of them have it, within the limits of what waits.

Ages are in running time, which this file accumulates over starts: a clock that jumps expires nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edge.delivery.messages import Begun, dumps
from edge.delivery.outbox_file import OutboxFile
from edge.delivery.rows import (
    INSERT,
    Row,
    count_lacked,
    make_row,
    relabel,
    requeue,
    select,
    trim,
)
from edge.delivery.start import Identify, put_aside, say_begun


@dataclass(frozen=True, slots=True)
class Limits:
    """mib: of all readings; days: a reading waits at most so long; keep_hours: how long it stays
    after the broker's acknowledgement. Days and hours of running time. recorders: names of those that
    must have it before it goes, () for no one in particular."""

    mib: float = 64.0
    days: float = 30.0
    keep_hours: float = 24.0
    recorders: tuple[str, ...] = ()


class Outbox:
    """Append from one thread, read and acknowledge from another."""

    def __init__(
        self,
        path: Path,
        limits: Limits = Limits(),
        clock: Callable[[], float] = time.monotonic,
        identify: Identify | None = None,
    ) -> None:
        """What still reads of a damaged file goes into a new one; `set_aside` names where the damaged
        one went. identify: what tells this machine from others, by a salt; None asks the machine.

        Raises OutboxError where the file cannot be used, or another node uses it."""
        self.path, self._limits = path, limits
        self._file = OutboxFile(path, clock, identify)
        # What was there may have been offered in an earlier run; what comes has not.
        self._offered = self._file.life.last

    @property
    def log_id(self) -> str:
        """The present log."""
        return self._file.life.log.log_id

    @property
    def begun(self) -> Begun | None:
        """Why the present log was begun; None for a first one."""
        return self._file.life.log.begun

    @property
    def stored(self) -> int | None:
        """Up to which seq of the present log the recorder that spoke last has it; None before any."""
        return self._file.life.log.stored

    @property
    def recorders(self) -> tuple[str, ...]:
        """Names of the recorders that must have a reading before it goes."""
        return self._limits.recorders

    def stored_by(self, recorder: str) -> int | None:
        """Up to which seq of the present log a named recorder has it; None before it spoke."""
        return self._file.life.log.stored_by.get(recorder)

    def behind(self, seconds: float) -> dict[str, int]:
        """How many readings each named recorder lacks that lacks one that is older than that."""
        file, named = self._file, self._limits.recorders
        before = file.running() - seconds
        return file.do("cannot be counted", lambda: count_lacked(file.db, file.life, named, before))

    @property
    def dropped(self) -> int:
        """Readings lost, over all starts."""
        return self._file.life.dropped

    @property
    def unreadable(self) -> int:
        """Readings set aside since their bytes had changed, over all starts."""
        return self._file.life.unreadable

    @property
    def set_aside(self) -> Path | None:
        """Where a damaged file went since the start."""
        return self._file.set_aside

    def append(self, payload: dict[str, Any]) -> int:
        """Commit one reading; returns its seq. Raises OutboxError when the disk does not take it."""
        file, limits = self._file, self._limits

        def work() -> int:
            life, now = file.life, file.running()
            seq = life.last + 1
            text = dumps({**payload, "log": life.log.log_id, "seq": seq})
            before = (now - 3600 * limits.keep_hours, now - 86400 * limits.days)
            size = file.size + len(text)
            with file.change() as db:
                db.execute(INSERT, make_row(seq, text, now).values())
                lacked = life.lacked(limits.recorders) if limits.recorders else []
                surplus = int(size - limits.mib * 2**20)
                freed, unsent, missed = trim(db, seq, before, surplus, lacked)
                dropped = life.dropped + unsent + missed
                life = replace(life, last=seq, running=now, dropped=dropped)
                file.keep(replace(life, waiting=max(0, life.waiting + 1 - unsent)))
            file.size = size - freed
            file.mark()
            return seq

        return file.do("takes no reading", work)

    def pending(
        self, above: int = 0, limit: int = 20, up_to: int = 2**62
    ) -> list[tuple[int, dict[str, Any]]]:
        """The oldest readings that no broker has acknowledged, above < seq <= up_to, in order, with
        log and seq set."""
        file = self._file

        def work() -> list[tuple[int, dict[str, Any]]]:
            if file.marked < file.life.last:
                file.mark()
            where = "WHERE acknowledged = 0 AND seq > ? AND seq <= ? ORDER BY seq LIMIT ?"
            found = []
            for row in list(select(file.db, where, above, min(up_to, file.marked), limit)):
                message = row.message() if row.intact else None
                if message is None:
                    _put_aside(file, row)
                else:
                    found.append((row.seq, message))
                    self._offered = max(self._offered, row.seq)
            return found

        return file.do("gives no readings", work)

    def reject(self, seq: int) -> None:
        """Set a reading aside that is no message of this kit, whatever its checksum says."""

        def work() -> None:
            for row in list(select(self._file.db, "WHERE seq = ?", seq)):
                _put_aside(self._file, row)

        self._file.do("sets no reading aside", work)

    def acknowledge(self, seq: int, log_id: str | None = None) -> None:
        """The broker has it. log_id: that it was offered under, where another may have been begun
        since. Raises OutboxError when the disk does not take the mark; then it is offered again."""
        file = self._file

        def work() -> None:
            for row in list(select(file.db, "WHERE seq = ?", seq)):
                message = row.message() if row.intact else None
                if message is None or log_id not in (None, message["log"]):
                    continue
                now, left = file.running(), max(0, file.life.waiting - row.waits)
                with file.change() as db:
                    db.execute(INSERT, make_row(seq, row.payload, row.born, now).values())
                    file.keep(replace(file.life, waiting=left, running=now))
                self._offered = max(self._offered, seq)

        file.do("keeps no acknowledgement", work)

    def on_recorder_ack(self, seq: int, log_id: str, recorder: str = "") -> None:
        """A recorder stored everything up to seq of this log, without a gap. Where it has more than
        was ever offered, the numbers above are another's: a new log takes what came since. recorder:
        its name, "" of an older one, which stands for none of those that are named."""
        file, named = self._file, self._limits.recorders

        def work() -> None:
            life = file.life
            if log_id == life.log.log_id and seq > self._offered:
                _begin_ahead(file)
            elif (now := life.acknowledged_by_recorder(log_id, seq, recorder, named)) != life:
                with file.change():
                    file.keep(now)

        file.do("keeps no acknowledgement", work)

    def requeue_unconfirmed(self, after_seconds: float, recorders: Collection[str] = ()) -> int:
        """Readings that the broker acknowledged so long ago and not all of these recorders have wait
        again: a broker can lose what it acknowledged. recorders: of those that are named; of none the
        one that spoke last. Returns how many; none without a recorder."""
        file = self._file

        def work() -> int:
            life = file.life
            with file.change() as db:
                lacked = life.lacked(recorders)
                count = requeue(db, lacked, file.running() - after_seconds)
                if count:
                    waiting = life.waiting + count
                    file.keep(replace(life, waiting=waiting, running=file.running()))
            if count:
                file.mark()
            return count

        return file.do("offers nothing again", work)

    def pending_count(self) -> int:
        """Readings that wait for an acknowledgement."""
        return self._file.life.waiting

    def seq_range(self) -> tuple[int, int]:
        """The first seq of the present log that is still here (or the next one to come), and the last
        that was given."""
        file = self._file

        def work() -> tuple[int, int]:
            life = file.life
            first = file.db.execute(
                "SELECT MIN(seq) FROM readings WHERE seq >= ?", (life.log.first,)
            ).fetchone()[0]
            return (int(first) if first is not None else life.last + 1), life.last

        return file.do("cannot be counted", work)

    def close(self) -> None:
        self._file.close()

    def remove(self) -> None:
        """Close and delete; for the outbox of a file source, once everything was acknowledged."""
        self._file.remove()


def _put_aside(file: OutboxFile, row: Row) -> None:
    life = file.life
    with file.change() as db:
        put_aside(db, file.path, row, file.running())
        counted = replace(life, unreadable=life.unreadable + 1, dropped=life.dropped + 1)
        file.keep(replace(counted, waiting=max(0, life.waiting - 1)))


def _begin_ahead(file: OutboxFile) -> None:
    life = file.life.begin("recorder-ahead", file.life.since + 1)
    with file.change() as db:
        relabel(db, life.log, file.running())
        question = "SELECT COUNT(*) FROM readings WHERE acknowledged = 0"
        file.keep(replace(life, waiting=db.execute(question).fetchone()[0]))
    file.mark()
    say_begun(file.path, file.life)
