"""What an outbox knows of itself, and how it is sealed against bytes that change on the disk.

A *log* belongs to one life of one outbox. Where that is in doubt, another log is begun: numbers go on
counting up within the file, so a row's seq never changes, and what was offered under the older log
keeps it.
"""

from __future__ import annotations

import json
import uuid
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, get_args

from edge.delivery.messages import LARGEST, Begun

LOGS = 8  # that are remembered: rows of older ones have long gone
LONGEST = 1e10  # seconds of running time: three hundred years


def checksum(text: str) -> int:
    """Return the CRC-32 of a text."""
    return zlib.crc32(text.encode("utf-8", "replace"))


def seal(content: Mapping[str, Any]) -> str:
    """Write content as one line of JSON with its checksum behind it."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return f"{text} {checksum(text):08x}"


def unseal(line: object) -> dict[str, Any] | None:
    """Read what `seal` wrote; None for anything else."""
    if not isinstance(line, str):
        return None
    text, _, check = line.rpartition(" ")
    if check != f"{checksum(text):08x}":
        return None
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


@dataclass(frozen=True, slots=True)
class Log:
    """log_id: its UUID; first: its lowest seq; begun: why, None for a first one; stored: up to which
    seq the recorder has it that spoke last, None before one did; stored_by: the same of each that the
    node's settings name, since it spoke."""

    log_id: str
    first: int = 1
    begun: Begun | None = None
    stored: int | None = None
    stored_by: Mapping[str, int] = field(default_factory=dict)

    def stored_for(self, recorders: Collection[str]) -> int | None:
        """Up to which seq all of these recorders have it, of none whoever spoke last; None where nobody
        is waited for."""
        if not recorders:
            return self.stored
        return min(self.stored_by.get(name, 0) for name in recorders)


def whole(value: object, least: int = 0, most: int = LARGEST) -> int:
    """Return a whole number within its bounds; raises ValueError."""
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{value!r} is no number from {least} to {most}")
    return value


def seconds(value: object) -> float:
    """Return a running time; raises ValueError."""
    if type(value) not in (int, float) or not 0 <= float(value) <= LONGEST:  # type: ignore[arg-type]
        raise ValueError(f"{value!r} is no running time")
    return float(value)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Life:
    """The outbox's own row, rewritten with every change and within its transaction.

    logs: oldest first, the last is the present one; last: the highest seq that was given; waiting:
    rows that no broker acknowledged; running: seconds in use, over all starts; dropped: readings
    lost; unreadable: rows set aside; since: up to here the numbers are held to be this life's own;
    agreed: a recorder's `ack` bore that out in the last run; machine: its identity, hashed with salt,
    see edge/base/machine.py.
    """

    logs: tuple[Log, ...] = field(default_factory=lambda: (Log(str(uuid.uuid4())),))
    last: int = 0
    waiting: int = 0
    running: float = 1.0
    dropped: int = 0
    unreadable: int = 0
    since: int = 0
    agreed: bool = True
    salt: str = field(default_factory=lambda: uuid.uuid4().hex)
    machine: Mapping[str, str] = field(default_factory=dict)

    @property
    def log(self) -> Log:
        """The present log."""
        return self.logs[-1]

    def begin(self, begun: Begun, first: int) -> Life:
        """Begin another log, which holds the rows from `first` on."""
        older = tuple(log for log in self.logs if log.first < first)
        logs = (*older, Log(str(uuid.uuid4()), first, begun))[-LOGS:]
        return replace(self, logs=logs, since=self.last, agreed=True)

    def acknowledged_by_recorder(
        self, log_id: str, seq: int, recorder: str = "", named: Collection[str] = ()
    ) -> Life:
        """Note up to where a recorder stored one of the logs. named: by the settings; what others have
        is kept of the last that spoke alone."""
        logs = []
        for log in self.logs:
            if log.log_id == log_id:
                by = {name: of for name, of in log.stored_by.items() if name in named}
                if recorder in named:
                    by[recorder] = seq
                log = replace(log, stored=seq, stored_by=by)
            logs.append(log)
        known = replace(self, logs=tuple(logs))
        if log_id != self.log.log_id:
            return known
        return replace(known, since=max(self.since, seq), agreed=True)

    def lacked(self, recorders: Collection[str]) -> list[tuple[int, int]]:
        """The numbers, above < seq <= up_to, that not all of these recorders have, or of none the one
        that spoke last; the newest log first."""
        found, end = [], self.last
        for log in reversed(self.logs):
            stored = log.stored_for(recorders)
            if stored is not None and max(stored, log.first - 1) < end:
                found.append((max(stored, log.first - 1), end))
            end = log.first - 1
        return found

    def sealed(self) -> str:
        """Write it as one line. `recorders` is a key of its own, which older versions pass over."""
        logs = [[g.log_id, g.first, g.begun, g.stored] for g in self.logs]
        rest = {name: getattr(self, name) for name in self.__slots__[1:]}
        by = {g.log_id: dict(g.stored_by) for g in self.logs if g.stored_by}
        return seal({"logs": logs, **rest, "recorders": by})


def read_life(line: object) -> Life | None:
    """Read what `Life.sealed` wrote; None for anything else."""
    content = unseal(line)
    if content is None:
        return None
    try:
        by = content.get("recorders", {})
        logs = tuple(
            Log(
                str(log_id),
                whole(first, 1),
                begun if begun in get_args(Begun) else None,
                None if stored is None else whole(stored),
                {str(name): whole(seq) for name, seq in by.get(str(log_id), {}).items()},
            )
            for log_id, first, begun, stored in content["logs"]
        )
        return Life(
            logs=logs[-LOGS:] or (Log(str(uuid.uuid4())),),
            last=whole(content["last"]),
            waiting=whole(content["waiting"]),
            running=seconds(content["running"]),
            dropped=whole(content["dropped"]),
            unreadable=whole(content["unreadable"]),
            since=whole(content["since"]),
            agreed=content["agreed"] is True,
            salt=str(content["salt"]),
            machine={str(kind): str(value) for kind, value in content["machine"].items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
