"""What is known of every node now, and of its last hours by the minute; held in memory, bounded."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

from edge.payload import Counts, Faces, Health, Info, Status
from edge.watch.messages import Heard, moment

KEEP_MINUTES = 240
REMEMBERED = 500  # readings of a node, against being counted twice
MOST_NODES = 20_000  # a flood of made-up names costs no more memory than this
SILENT_WINDOWS = (
    3  # without a reading for so many windows, and at least SILENT_SECONDS, a node is late
)
SILENT_SECONDS = 30.0


@dataclass(slots=True)
class Minute:
    """One minute of one node. seconds: that its windows cover; people_seconds: of shown windows;
    suppressed, unseen: seconds of windows that say nothing."""

    seconds: float = 0.0
    people_seconds: float = 0.0
    by_label: Counter[str] = field(default_factory=Counter)
    suppressed: float = 0.0
    unseen: float = 0.0


@dataclass(frozen=True, slots=True)
class Windowed:
    """A reading, from the broker or from a recorder's table."""

    key: tuple[str, int]
    start: datetime
    seconds: float
    people: float | None
    suppressed: bool
    person_seconds: Mapping[str, int] | None


@dataclass(slots=True)
class Room:
    """The last that was heard of one node; `heard` is our own clock's time of it."""

    node: str
    heard: datetime
    status: Status | None = None
    counts: Counts | None = None
    health: Health | None = None
    info: Info | None = None
    # Keys of the last readings: a broker may send one twice.
    seen: OrderedDict[tuple[str, int], None] = field(default_factory=OrderedDict)
    minutes: OrderedDict[datetime, Minute] = field(default_factory=OrderedDict)

    def state(self, now: datetime) -> str:
        """status, or `silent` where a node that says online has not counted for too long."""
        said = self.status.state if self.status else "unknown"
        if said not in ("online", "degraded"):
            return said
        window = self.counts.window_seconds if self.counts else SILENT_SECONDS / SILENT_WINDOWS
        patience = max(SILENT_SECONDS, SILENT_WINDOWS * window)
        return "silent" if (now - self.heard).total_seconds() > patience else said


class Rooms:
    """Fed by the receiver's thread, read by others under `lock`."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.rooms: dict[str, Room] = {}
        self.refused: Counter[str] = Counter()  # what was no message, by reason
        self.messages = 0
        self.labels: list[str] = []  # of all nodes' counts, in the order in which they came first

    def refuse(self, reason: str) -> None:
        with self.lock:
            self.refused[reason] += 1

    def hear(self, heard: Heard, now: datetime) -> None:
        """Take a message in."""
        with self.lock:
            self.messages += 1
            room = self.rooms.get(heard.node)
            if room is None:
                if len(self.rooms) >= MOST_NODES:
                    self.refused["too many nodes"] += 1
                    return
                room = self.rooms[heard.node] = Room(heard.node, now)
            message = heard.message
            if not (isinstance(message, Status) and message.state in ("lost", "stopped")):
                room.heard = now
            if isinstance(message, Counts):
                self._count(room, message, now)
            elif isinstance(message, Status):
                room.status = message
            elif isinstance(message, Health):
                room.health = message
            else:
                room.info = message

    def remember(self, row: Mapping[str, Any], now: datetime) -> None:
        """A reading that a recorder stored before this start; row: by column of its table."""
        with self.lock:
            room = self.rooms.get(row["node"])
            if room is None:
                room = self.rooms[row["node"]] = Room(row["node"], row["received"])
            window = Windowed(
                (row["log"], row["seq"]),
                row["start"],
                (row["end"] - row["start"]).total_seconds(),
                row["faces_mean"],
                row["suppressed"],
                row["person_seconds"],
            )
            self._add(room, window, now)

    def _count(self, room: Room, m: Counts, now: datetime) -> None:
        last = room.counts
        # A file's windows follow its own time; what comes late never replaces what is newer.
        if last is None or m.log != last.log or m.seq > last.seq:
            room.counts = m
        mean = m.faces.mean if isinstance(m.faces, Faces) else None
        suppressed = isinstance(m.faces, str)
        key, start = (m.log, m.seq), moment(m.start)
        window = Windowed(key, start, m.window_seconds, mean, suppressed, m.person_seconds)
        self._add(room, window, now)

    def _add(self, room: Room, window: Windowed, now: datetime) -> None:
        self.labels += [n for n in window.person_seconds or () if n not in self.labels]
        _add(room, window, now)


def _add(room: Room, window: Windowed, now: datetime) -> None:
    """To the minute in which it began."""
    if window.key in room.seen:
        return
    room.seen[window.key] = None
    if len(room.seen) > REMEMBERED:
        room.seen.popitem(last=False)
    if not now - timedelta(minutes=KEEP_MINUTES) <= window.start <= now + timedelta(minutes=5):
        return
    minute = room.minutes.setdefault(window.start.replace(second=0, microsecond=0), Minute())
    minute.seconds += window.seconds
    if window.people is not None and window.person_seconds is not None:
        minute.people_seconds += window.people * window.seconds
        minute.by_label.update(window.person_seconds)
    elif window.suppressed:
        minute.suppressed += window.seconds
    else:
        minute.unseen += window.seconds
    while len(room.minutes) > KEEP_MINUTES:
        room.minutes.pop(min(room.minutes))


def utc_now() -> datetime:
    return datetime.now(timezone.utc)
