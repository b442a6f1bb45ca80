"""Every node's windows by the minute over the last hours, and their sum over the school; bounded.

A minute of a node never changes: it is replaced. So a reader takes references under the lock and
computes without it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

KEEP_MINUTES = 240
AHEAD = timedelta(minutes=5)  # by which a node's clock may be ahead
MOST_LABELS = 40  # that a minute or the page holds, REST included; a bundle has ten or so
REST = "other labels"  # the sum of those that are not shown by name
# Of all nodes together; beyond it the oldest minutes go. A thousand rooms have 241,000.
MOST_ROOM_MINUTES = 400_000


@dataclass(frozen=True, slots=True)
class Window:
    """One window's reading, from the broker or from a recorder's table. people: on average; None where
    it is hidden or nothing was seen."""

    log: str
    seq: int
    start: datetime
    seconds: float
    people: float | None
    suppressed: bool
    person_seconds: Mapping[str, int] | None


@dataclass(frozen=True, slots=True)
class Minute:
    """One minute of one node. seconds: covered by its windows; shown: of them, those with counts;
    suppressed: those of small counts; unseen: those without a picture; by_label: person-seconds."""

    seconds: float = 0.0
    shown: float = 0.0
    suppressed: float = 0.0
    unseen: float = 0.0
    by_label: Mapping[str, int] = field(default_factory=dict)

    def plus(self, window: Window) -> Minute:
        """Return this minute with one window more."""
        seconds = self.seconds + window.seconds
        if window.people is not None and window.person_seconds is not None:
            sums = dict(self.by_label)
            add_cells(sums, window.person_seconds)
            return replace(self, seconds=seconds, shown=self.shown + window.seconds, by_label=sums)
        if window.suppressed:
            return replace(self, seconds=seconds, suppressed=self.suppressed + window.seconds)
        return replace(self, seconds=seconds, unseen=self.unseen + window.seconds)

    def join(self, other: Minute) -> Minute:
        """Return both as one longer time."""
        sums = dict(self.by_label)
        add_cells(sums, other.by_label)
        return Minute(
            self.seconds + other.seconds,
            self.shown + other.shown,
            self.suppressed + other.suppressed,
            self.unseen + other.unseen,
            sums,
        )


@dataclass(frozen=True, slots=True)
class Sum:
    """One minute of many nodes. people: on average by label; hidden, unseen: the shares of the time in
    which small counts were suppressed, and nothing was seen."""

    people: Mapping[str, float]
    hidden: float
    unseen: float


def add_cells(sums: dict[str, int], cells: Mapping[str, int]) -> None:
    """Add cells to sums by label; what comes after so many labels is added up under REST."""
    for label, amount in cells.items():
        if label not in sums and len(sums) >= MOST_LABELS - 1:
            label = REST
        sums[label] = sums.get(label, 0) + amount


def sum_up(parts: Iterable[Minute], labels: frozenset[str]) -> Sum | None:
    """Add up one minute of many nodes; None where no time of it was covered. labels: those with a sum
    of their own."""
    seconds = hidden = unseen = 0.0
    people: dict[str, float] = {}
    for part in parts:
        seconds += part.seconds
        hidden += part.suppressed
        unseen += part.unseen
        for label, amount in part.by_label.items():
            # People on average over what this room's windows of the minute show.
            name = label if label in labels else REST
            people[name] = people.get(name, 0.0) + amount / part.shown
    return Sum(people, hidden / seconds, unseen / seconds) if seconds else None


class Minutes:
    """Minutes by time and node; one thread adds, any may read."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._parts: dict[datetime, dict[str, Minute]] = {}
        self.change = 0  # how often a minute was changed
        self._changes: dict[datetime, int] = {}  # by minute, the last of them
        self._room_minutes = 0
        # Sums over the school with the change and the labels for which they were made.
        self._sums: dict[datetime, tuple[int, frozenset[str], Sum | None]] = {}
        # By node, the minute from which on person-seconds were added up, and the sums.
        self._recent: dict[str, tuple[datetime, dict[str, int]]] = {}

    def add(self, node: str, window: Window, now: datetime) -> None:
        """Add a window to the minute in which it began; one too old or in the future is passed over."""
        if not now - timedelta(minutes=KEEP_MINUTES) <= window.start <= now + AHEAD:
            return
        at = window.start.replace(second=0, microsecond=0)
        with self._lock:
            if at not in self._parts:
                self._forget(now)
                self._parts[at] = {}
            parts = self._parts[at]
            self._room_minutes += node not in parts
            parts[node] = parts.get(node, Minute()).plus(window)
            self.change += 1
            self._changes[at] = self.change
            first, sums = self._recent.get(node, (at, {}))
            if node in self._recent and at >= first and window.people is not None:
                sums = dict(sums)
                add_cells(sums, window.person_seconds or {})
                self._recent[node] = first, sums

    def _forget(self, now: datetime) -> None:
        """Delete what is too old, in a future that a clock set back has left, or too much."""
        oldest, newest = now - timedelta(minutes=KEEP_MINUTES + 1), now + AHEAD
        wrong = [at for at in self._parts if not oldest <= at <= newest]
        kept = sorted(self._parts.keys() - set(wrong))
        left = self._room_minutes - sum(len(self._parts[at]) for at in wrong)
        while left > MOST_ROOM_MINUTES:
            wrong.append(kept.pop(0))
            left -= len(self._parts[wrong[-1]])
        for at in wrong:
            del self._parts[at]
            self._changes.pop(at, None)
            self._sums.pop(at, None)
        self._room_minutes = left

    def span(self, now: datetime) -> list[datetime]:
        """List the minutes that are held, in order, at most KEEP_MINUTES and a few."""
        oldest = (now - timedelta(minutes=KEEP_MINUTES)).replace(second=0, microsecond=0)
        with self._lock:
            return sorted(at for at in self._parts if oldest <= at <= now + AHEAD)

    def of(self, node: str) -> dict[datetime, Minute]:
        """Return a node's minutes, in no order."""
        with self._lock:
            return {at: parts[node] for at, parts in self._parts.items() if node in parts}

    def places(self, place: str, now: datetime) -> dict[datetime, dict[str, Minute]]:
        """Return the minutes of a node, of a site's nodes, or of all under "", in order."""
        span = self.span(now)
        with self._lock:
            found = {at: dict(self._parts.get(at, {})) for at in span}
        if place:
            inside = f"{place}/"
            found = {
                at: {n: part for n, part in parts.items() if n == place or n.startswith(inside)}
                for at, parts in found.items()
            }
        return {at: parts for at, parts in found.items() if parts}

    def changed(self, after: int) -> set[datetime]:
        """Return the minutes that changed after so many changes."""
        with self._lock:
            return {at for at, change in self._changes.items() if change > after}

    def since(self, node: str, since: datetime) -> Mapping[str, int]:
        """Sum a node's person-seconds by label from the first whole minute after a moment on."""
        first = since.replace(second=0, microsecond=0) + timedelta(minutes=1)
        with self._lock:
            made = self._recent.get(node)
            if made is not None and made[0] == first:
                return made[1]
            sums: dict[str, int] = {}
            for at, parts in self._parts.items():
                if at >= first and node in parts:
                    add_cells(sums, parts[node].by_label)
            self._recent[node] = first, sums
        return sums

    def school(self, at: datetime, labels: frozenset[str]) -> Sum | None:
        """Add up one minute over all nodes; computed again only where it has changed."""
        with self._lock:
            change = self._changes.get(at, 0)
            made = self._sums.get(at)
            if made is not None and made[0] == change and made[1] == labels:
                return made[2]
            parts = list(self._parts.get(at, {}).values())
        found = sum_up(parts, labels)
        with self._lock:
            if at in self._parts:
                self._sums[at] = (change, labels, found)
        return found
