"""What is known of every node now, and of its last hours by the minute; held in memory, bounded."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from edge.base.clock import parse_rfc3339
from edge.delivery.messages import Counts, Faces, Health, Status
from edge.watch.messages import Message

KEEP_MINUTES = 240
MOST_LABELS = 40  # that the page shows; a bundle has eight or so
REMEMBERED = 500  # readings of a node, against being counted twice
MOST_NODES = 20_000  # a flood of made-up names costs no more memory than this
SILENT_WINDOWS = (
    3  # without a reading for so many windows, and at least SILENT_SECONDS, a node is late
)
SILENT_SECONDS = 30.0


@dataclass(slots=True)
class Minute:
    """One minute of one node. seconds: covered by its windows; shown: of them, those with counts;
    suppressed: those of small counts; unseen: those without a picture."""

    seconds: float = 0.0
    shown: float = 0.0
    by_label: Counter[str] = field(default_factory=Counter)
    suppressed: float = 0.0
    unseen: float = 0.0


@dataclass(frozen=True, slots=True)
class WindowCounts:
    """One window's reading, from the broker or from a recorder's table."""

    key: tuple[str, int]
    start: datetime
    seconds: float
    people: float | None
    suppressed: bool
    person_seconds: Mapping[str, int] | None


@dataclass(slots=True)
class Room:
    """What one node said last; `heard` is our own clock's time of it."""

    node: str
    heard: datetime
    counted: datetime | None = None  # our own clock's time of the last reading
    status: Status | None = None
    counts: Counts | None = None
    health: Health | None = None
    # Keys of the last readings: a broker may send one twice.
    seen: OrderedDict[tuple[str, int], None] = field(default_factory=OrderedDict)
    minutes: OrderedDict[datetime, Minute] = field(default_factory=OrderedDict)

    def state(self, now: datetime) -> str:
        """Return its status, or `silent` where a node that says online has not counted for too long."""
        said = self.status.state if self.status else "unknown"
        if said not in ("online", "degraded"):
            return said
        late = (now - (self.counted or self.heard)).total_seconds() > self.patience
        return "silent" if late else said

    @property
    def patience(self) -> float:
        """How many seconds without a reading outdate what it said last."""
        window = self.counts.window_seconds if self.counts else 0.0
        return max(SILENT_SECONDS, SILENT_WINDOWS * window)

    def present(self, now: datetime) -> bool:
        """Tell whether its last reading speaks of now."""
        counted = self.counted
        return counted is not None and (now - counted).total_seconds() <= self.patience


class Rooms:
    """Every node by its name; written by the receiver's thread, read by others under `lock`."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.rooms: dict[str, Room] = {}
        self.refused: Counter[str] = Counter()  # messages, by reason
        self.messages = 0
        self.labels: list[str] = []  # of all nodes' counts, in the order in which they came first

    def refuse(self, reason: str) -> None:
        with self.lock:
            self.refused[reason] += 1

    def hear(self, message: Message, now: datetime, retained: bool = False) -> None:
        """Take in a message. retained: it was said some time ago."""
        with self.lock:
            self.messages += 1
            room = self.rooms.get(message.node)
            if room is None:
                if len(self.rooms) >= MOST_NODES:
                    self.refused["too many nodes"] += 1
                    return
                room = self.rooms[message.node] = Room(message.node, now)
            payload = message.payload
            gone = isinstance(payload, Status) and payload.state in ("lost", "stopped")
            if not (gone or retained):
                room.heard = now
            if isinstance(payload, Counts):
                room.counted = now
                self._count(room, payload, now)
            elif isinstance(payload, Status):
                room.status = payload
            elif isinstance(payload, Health):
                room.health = payload

    def remember(self, row: Mapping[str, Any], now: datetime) -> None:
        """Take in a reading that a recorder stored before this start; row: by column of its table."""
        with self.lock:
            room = self.rooms.get(row["node"])
            if room is None:
                room = self.rooms[row["node"]] = Room(row["node"], row["received"])
            window = WindowCounts(
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
        key, start = (m.log, m.seq), parse_rfc3339(m.start)
        window = WindowCounts(key, start, m.window_seconds, mean, suppressed, m.person_seconds)
        self._add(room, window, now)

    def _add(self, room: Room, window: WindowCounts, now: datetime) -> None:
        """Add a window to the minute in which it began."""
        if window.key in room.seen:
            return
        room.seen[window.key] = None
        if len(room.seen) > REMEMBERED:
            room.seen.popitem(last=False)
        for label in window.person_seconds or ():
            if label not in self.labels and len(self.labels) < MOST_LABELS:
                self.labels.append(label)
        if not now - timedelta(minutes=KEEP_MINUTES) <= window.start <= now + timedelta(minutes=5):
            return
        minute = room.minutes.setdefault(window.start.replace(second=0, microsecond=0), Minute())
        minute.seconds += window.seconds
        if window.people is not None and window.person_seconds is not None:
            minute.shown += window.seconds
            for label, amount in window.person_seconds.items():
                if label in minute.by_label or len(minute.by_label) < MOST_LABELS:
                    minute.by_label[label] += amount
        elif window.suppressed:
            minute.suppressed += window.seconds
        else:
            minute.unseen += window.seconds
        oldest = now - timedelta(minutes=KEEP_MINUTES + 1)
        for at in [at for at in room.minutes if at < oldest]:
            del room.minutes[at]
