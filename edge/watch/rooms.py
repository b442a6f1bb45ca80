"""What is known of every node now; held in memory, bounded.

No message is kept: what a node says becomes short text and numbers that can be true here, whatever its
message held, so that no view has to expect anything else.
"""

from __future__ import annotations

import heapq
import math
import threading
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from functools import lru_cache
from operator import attrgetter
from typing import Any

from edge.base.clock import parse_rfc3339
from edge.delivery.messages import Counts, Faces, Health, Status
from edge.watch.habits import Habits
from edge.watch.lines import SHORT, printable
from edge.watch.messages import Message
from edge.watch.minutes import MOST_LABELS, REST, Minutes, Window, add_cells

REMEMBERED = 500  # readings of a node, against being counted twice
MOST_REMEMBERED = 1_500_000  # of all nodes together, in equal parts
MOST_NODES = 20_000  # a flood of made-up names costs no more memory than this
MOST_PEOPLE = 1_000  # of one room; a message that says more is not shown
MOST_SECONDS = 3600.0  # of a window, as the schema has it
LEAST_SECONDS = 0.001  # what a message's times can tell
SILENT_WINDOWS = 3  # without a reading for so many windows, and at least SILENT_SECONDS: late
SILENT_SECONDS = 30.0
OFF = timedelta(minutes=10)  # a room that is off is a card for so long, and then one of a line
SETTLE = timedelta(seconds=10)  # by then a broker has sent each status that it keeps
GONE = timedelta(days=1)  # a room that is off and was not heard for so long is put away
IMPOSSIBLE = "impossible number of people"


@dataclass(frozen=True, slots=True)
class Shown:
    """What the newest window shows. people: on average; hidden: "<5" for a suppressed small count;
    unseen: how the camera does, where nothing was seen; counts: people by label."""

    log: str
    seq: int
    window_seconds: float
    clock_synced: bool | None
    people: float | None
    hidden: str | None
    unseen: str | None
    counts: Mapping[str, int] | None


@dataclass(slots=True)
class Room:
    """What one node said last. known: our own clock's time of its first message; heard: of its last
    sign of life, or where only retained messages came, the time in them; None: not known."""

    node: str
    known: datetime
    heard: datetime | None = None
    counted: datetime | None = None  # our own clock's time of the last reading
    said: str = "unknown"
    reason: str | None = None
    # Our own clock's time from which on a sign of life means more than what it said last: it said
    # nothing yet, or goodbye, or what it said may have been missed. None while that holds.
    unsaid: datetime | None = None
    shown: Shown | None = None
    temperature: float | None = None  # Celsius
    waiting: int | None = None  # readings in its outbox
    lost: int | None = None
    behind: Mapping[str, int] = field(default_factory=dict)  # recorder -> readings that it lacks
    labels: tuple[str, ...] = ()

    def state(self, now: datetime) -> str:
        """Return its status, or `silent` where a node that says online has not counted for too long."""
        if self.said not in ("online", "degraded"):
            return self.said
        since = self.counted or self.heard or self.known
        late = (now - max(since, self.known)).total_seconds() > self.patience
        return "silent" if late else self.said

    @property
    def patience(self) -> float:
        """How many seconds without a reading outdate what it said last."""
        window = self.shown.window_seconds if self.shown else 0.0
        return max(SILENT_SECONDS, SILENT_WINDOWS * window)

    def present(self, now: datetime) -> bool:
        """Tell whether its last reading speaks of now: a node that has gone sees nobody."""
        counted = self.counted
        if self.said in ("stopped", "lost"):
            return False
        return counted is not None and (now - counted).total_seconds() <= self.patience

    def gone(self, now: datetime) -> bool:
        """Tell whether it is to be put away: off and not heard for long."""
        if self.state(now) not in ("lost", "stopped", "silent", "unknown"):
            return False
        heard = self.heard or self.known
        if self.said == "stopped":  # the time is the node's own
            return now - heard > GONE
        return now - max(heard, self.known) > GONE


_facts = attrgetter(*(field.name for field in fields(Room)))


class Rooms:
    """Every node by its name; written by the receiver's thread, read by others through `snapshot`."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.rooms: dict[str, Room] = {}
        self.minutes = Minutes()
        self.habits = Habits()
        self.retired: frozenset[str] = frozenset()  # replaced as a whole
        self.refused: Counter[str] = Counter()  # messages, by reason
        self.messages = 0
        # Keys of each node's last readings, as hashes: a broker may send one twice.
        self.seen: dict[str, OrderedDict[int, None]] = {}
        # A room has one vote, shared by its labels: a node that makes up forty outvotes nobody.
        self._votes: dict[str, float] = {}
        self._labels: list[str] | None = []

    @property
    def labels(self) -> list[str]:
        """The labels that are shown by name, in the order in which they came first, and REST last."""
        with self.lock:
            if self._labels is None:
                most = heapq.nlargest(MOST_LABELS - 1, self._votes, key=lambda x: self._votes[x])
                chosen = set(most)
                self._labels = [label for label in self._votes if label in chosen]
                if len(chosen) < len(self._votes) and REST not in chosen:
                    self._labels.append(REST)
            return list(self._labels)

    def snapshot(self, inside: tuple[str, ...] = ("",)) -> list[Room]:
        """Copy the rooms as they stand, by name. inside: how their names begin."""
        with self.lock:
            # `copy.copy` takes several times as long, and there may be thousands.
            found = [Room(*_facts(r)) for n, r in self.rooms.items() if n.startswith(inside)]
        return sorted(found, key=lambda room: room.node)

    def trouble(self, room: Room, now: datetime) -> bool:
        """Tell whether somebody should have a look: a room that was switched off, by its own word or as
        at every such hour, is in order."""
        state = room.state(now)
        if state in ("online", "starting", "stopped") or room.node in self.retired:
            return False
        return state not in ("lost", "silent") or self.habits.expected(room.node, now)

    def off(self, room: Room, now: datetime) -> bool:
        """Tell whether a room is switched off and not heard for some minutes."""
        if room.state(now) not in ("stopped", "lost", "silent") or self.trouble(room, now):
            return False
        return room.heard is None or now - room.heard > OFF

    def refuse(self, reason: str) -> None:
        """Count a message that is not shown."""
        with self.lock:
            self.refused[reason] += 1

    def hear(self, message: Message, now: datetime, retained: bool = False) -> None:
        """Take in a message. retained: it was said some time ago."""
        with self.lock:
            self.messages += 1
            room = self._room(message.node, now)
            if room is None:
                self.refused["too many nodes"] += 1
                return
            payload = message.payload
            gone = isinstance(payload, Status) and payload.state in ("lost", "stopped")
            if not (gone or retained):
                room.heard = now
            elif isinstance(payload, Status) and retained:
                room.heard = room.heard or _past(payload.time, now)
            if isinstance(payload, Status):
                room.said, room.unsaid = payload.state, now if gone else None
                room.reason = None if payload.reason is None else printable(payload.reason, SHORT)
            elif isinstance(payload, Health):
                room.temperature = _celsius(payload.temperature_celsius)
                room.waiting, room.lost = payload.outbox_pending, payload.outbox_dropped
                behind = sorted(payload.recorders_behind.items())
                room.behind = {printable(name, SHORT): n for name, n in behind}
            elif isinstance(payload, Counts):
                self._count(room, payload, now)

    def doubt(self, now: datetime) -> None:
        """Take note that messages may have been missed from now on: what each room said last may hold
        no more. A broker that keeps statuses tells them anew."""
        with self.lock:
            for room in self.rooms.values():
                room.unsaid = now

    def unsaid(self, now: datetime) -> list[str]:
        """Name the rooms that live and of which no status is known that holds, by name."""
        with self.lock:
            return sorted(
                room.node
                for room in self.rooms.values()
                if room.unsaid is not None
                and room.heard is not None
                and room.heard > room.unsaid
                and now - room.unsaid >= SETTLE
                and (now - room.heard).total_seconds() <= room.patience
            )

    def remember(self, row: Mapping[str, Any], now: datetime) -> None:
        """Take in a reading that a recorder stored before this start, the newest first, while others
        come. row: by column of its table."""
        with self.lock:
            room = self._room(row["node"], row["received"])
            if room is None:
                return
            room.heard = max(room.heard or row["received"], row["received"])
            window = stored_window(row)
            if possible(window):
                self.habits.note(room.node, window.start, now)
                self._add(room, window, now, old=True)

    def _room(self, node: str, now: datetime) -> Room | None:
        room = self.rooms.get(node)
        if room is None and len(self.rooms) < MOST_NODES:
            room = self.rooms[node] = Room(node, now, unsaid=now)
        return room

    def _count(self, room: Room, m: Counts, now: datetime) -> None:
        faces = m.faces if isinstance(m.faces, Faces) else None
        mean, suppressed = faces.mean if faces else None, isinstance(m.faces, str)
        start, person_seconds = parse_rfc3339(m.start), cells(m.person_seconds)
        length = m.window_seconds
        window = Window(m.log, m.seq, start, length, mean, suppressed, person_seconds)
        counts = cells(m.counts) if faces else None
        if not possible(window) or sum(counts.values() if counts else ()) > MOST_PEOPLE:
            self.refused[IMPOSSIBLE] += 1
            return
        room.counted = now
        self.habits.note(room.node, start, now)
        last = room.shown
        # What comes late never replaces what is newer; a number that is given again proves no age.
        if last is None or not m.historical or (m.log == last.log and m.seq > last.seq):
            unseen = printable(m.quality.camera, SHORT) if m.faces is None else None
            # The rule's number, not the text that came.
            hidden = f"<{m.min_group}" if suppressed else None
            room.shown = Shown(
                m.log, m.seq, length, m.clock_synced, mean, hidden, unseen, counts
            )  # fmt: skip
        self._add(room, window, now)

    def _add(self, room: Room, window: Window, now: datetime, old: bool = False) -> None:
        """Add a window to its minute, once. old: it is older than all that came so far."""
        seen = self.seen.setdefault(room.node, OrderedDict())
        # With its time: a number that is given twice, as by a restored card, is another reading.
        key = hash((window.log, window.seq, window.start))
        if key in seen:
            return
        remembered = min(REMEMBERED, MOST_REMEMBERED // len(self.rooms))
        if not old or len(seen) < remembered:
            seen[key] = None
            seen.move_to_end(key, last=not old)
        while len(seen) > remembered:
            seen.popitem(last=False)
        if window.person_seconds and not (old and room.labels):
            self._vote(room, tuple(window.person_seconds))
        self.minutes.add(room.node, window, now)

    def _vote(self, room: Room, labels: tuple[str, ...]) -> None:
        if labels == room.labels:
            return
        for label in room.labels:
            self._votes[label] -= 1 / len(room.labels)
        for label in labels:
            self._votes[label] = self._votes.get(label, 0.0) + 1 / len(labels)
        for label in set(room.labels) - set(labels):
            if self._votes[label] < 1e-9:
                del self._votes[label]
        room.labels, self._labels = labels, None


def possible(window: Window) -> bool:
    """Tell whether a window can be true of a room: no more people than MOST_PEOPLE, for a length that a
    message's times can tell."""
    if not LEAST_SECONDS <= window.seconds <= MOST_SECONDS:
        return False
    most = MOST_PEOPLE * max(1.0, window.seconds)
    persons = sum((window.person_seconds or {}).values())
    return (window.people or 0.0) <= MOST_PEOPLE and persons <= most


def stored_window(row: Any) -> Window:
    """Return the window of a stored reading. row: by column of its table."""
    return Window(
        row["log"],
        row["seq"],
        row["start"],
        (row["end"] - row["start"]).total_seconds(),
        row["faces_mean"],
        row["suppressed"],
        cells(row["person_seconds"]),
    )


def cells(given: Mapping[str, int] | None) -> dict[str, int] | None:
    """Make labels text that is safe to show, and few."""
    if given is None:
        return None
    if len(given) < MOST_LABELS and all(_label(label) == label for label in given):
        return dict(given)
    found: dict[str, int] = {}
    for label, amount in given.items():
        add_cells(found, {_label(label): amount})
    return found


@lru_cache(maxsize=1024)
def _label(text: str) -> str:
    """A start reads hundreds of thousands of rows with the same few."""
    return printable(text, SHORT)


def _celsius(value: float | None) -> float | None:
    """What a board can have; None for anything else."""
    return value if value is not None and math.isfinite(value) and abs(value) <= 200 else None


def _past(text: str | None, now: datetime) -> datetime | None:
    """Read a time of a message; None where it is none, or not past."""
    try:
        found = None if text is None else parse_rfc3339(text)
    except ValueError:
        return None
    return found if found is not None and found <= now else None
