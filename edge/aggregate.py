"""Expressions -> Reading: what is counted, for how long, and what small groups keep to themselves.

A picture stands for the time until the next one (at most `max_gap_seconds`), so every figure is an
average over time, not over pictures. Windows start at multiples of their length, in UTC for a
camera and in file time for a file. A window that was not watched from its start is never published.

With a minimum group, people are the faces that are alive (`edge/liveness.py`): a picture on the wall
must neither fill a group nor a cell. A face that comes to life counts from where it was first seen in
the window. Without one, every face counts that is not still.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edge.records import OTHER, UNCLASSIFIED, Counting, Expression, Frame, Life, Reading, Tick


def round_half_up(value: float) -> int:
    # 1e-9: 4.9999999999 from a sum of float durations is the 5 that it was meant to be.
    return math.floor(value + 0.5 + 1e-9)


def largest_remainder(shares: Sequence[float], total: int) -> list[int]:
    """Round shares to integers that add up to total: each share's floor, the rest to the largest
    remainders, ties in order. shares must be non-negative with |sum - total| below len(shares)."""
    floors = [math.floor(share + 1e-9) for share in shares]
    rest = [round(share - whole, 9) for share, whole in zip(shares, floors, strict=True)]
    order = sorted(range(len(shares)), key=lambda i: -rest[i])
    for i in order[: max(total - sum(floors), 0)]:
        floors[i] += 1
    return floors


def merge_small_cells(counts: dict[str, int], min_cell: int) -> dict[str, int]:
    """Put every cell from 1 to min_cell - 1 into `other`.

    Where `other` would itself be such a cell, the smallest remaining cell joins it (the last in
    label order of equals), so that no published cell speaks of fewer than min_cell people.
    """
    merged = {label for label, count in counts.items() if 0 < count < min_cell}
    other = sum(counts[label] for label in merged)
    while 0 < other < min_cell:
        left = [label for label, count in counts.items() if count and label not in merged]
        if not left:
            break
        smallest = min(reversed(left), key=lambda label: counts[label])
        merged.add(smallest)
        other += counts[smallest]
    cells = {label: 0 if label in merged else count for label, count in counts.items()}
    return {**cells, OTHER: other}


@dataclass(frozen=True, slots=True)
class _Person:
    """One face of a picture: its track and place there, its share of each cell (they add up to 1), and
    whether it was read with low confidence."""

    track: tuple[int, int]
    cells: tuple[float, ...]
    unsure: bool


@dataclass(slots=True)
class _Sample:
    """One picture's content: who counts, who would if he came to life, and the moment up to which its
    time has been credited."""

    time: float
    since: float
    people: list[_Person]
    pending: list[_Person]
    camera: str


@dataclass(slots=True)
class _Tally:
    """Time by cell, and that of low confidence, in person-seconds."""

    cells: list[float]
    unsure: float = 0.0

    def credit(self, people: Iterable[_Person], span: float) -> None:
        for person in people:
            for i, share in enumerate(person.cells):
                self.cells[i] += share * span
            self.unsure += span * person.unsure

    def take(self, other: _Tally) -> None:
        self.cells = [a + b for a, b in zip(self.cells, other.cells, strict=True)]
        self.unsure += other.unsure


@dataclass(slots=True)
class _Open:
    """The window being filled; start and end on the frames' clock, label_start in UTC or file time.

    pending: time of faces that have not shown life, by track. moments: by who was pending, the fewest
    and the most people in view, those left out."""

    start: float
    end: float
    label_start: float
    seconds: float
    tally: _Tally
    covered: float = 0.0
    pending: dict[tuple[int, int], _Tally] = field(default_factory=dict)
    moments: dict[frozenset[tuple[int, int]], tuple[int, int]] = field(default_factory=dict)
    frames: int = 0
    dropped: int = 0
    cameras: set[str] = field(default_factory=set)
    discarded: bool = False  # a command fell into it: it counts nobody

    @property
    def fewest(self) -> int | None:
        """People in view at least; None before the first picture."""
        return min((fewest for fewest, _ in self.moments.values()), default=None)

    @property
    def most(self) -> int:
        return max((most for _, most in self.moments.values()), default=0)

    def note(self, people: int, pending: Iterable[_Person]) -> None:
        """Remember how many were in view at a moment."""
        self._join(frozenset(person.track for person in pending), people, people)

    def come_to_life(self, track: tuple[int, int]) -> None:
        """Count a track from where it was first seen at this place."""
        if (earlier := self.pending.pop(track, None)) is not None:
            self.tally.take(earlier)
        for pending in [key for key in self.moments if track in key]:
            fewest, most = self.moments.pop(pending)
            self._join(pending - {track}, fewest + 1, most + 1)

    def _join(self, pending: frozenset[tuple[int, int]], fewest: int, most: int) -> None:
        old = self.moments.get(pending, (fewest, most))
        self.moments[pending] = min(fewest, old[0]), max(most, old[1])


class Window:
    """Fill windows from frames and ticks; `add` and `tick` return the readings that closed."""

    def __init__(
        self,
        labels: Sequence[str],
        seconds: float = 10.0,
        min_group: int = 5,
        min_cell: int = 2,
        low_confidence: float = 0.4,
        max_gap_seconds: float = 2.0,
        file_start: float | None = None,
        counting: Counting = "expected",
    ) -> None:
        """file_start: None for a camera, whose windows follow UTC; for a file the UTC at which its
        time 0 is placed, and windows follow file time. counting: "expected" adds up probabilities,
        "dominant" counts each person for the most probable class. Other arguments as in node.yaml."""
        self.cells = [*labels, UNCLASSIFIED]
        self.seconds = seconds  # of the windows that open from now on
        self.min_group, self.min_cell = min_group, min_cell
        self.low_confidence, self.max_gap = low_confidence, max_gap_seconds
        self.file_start, self.counting = file_start, counting
        self._open: _Open | None = None
        self._last_sample: _Sample | None = None

    def add(self, frame: Frame, expressions: Sequence[Expression]) -> list[Reading]:
        """Count one frame's people, one Expression each."""
        closed = self._advance(frame)
        people, pending = [], []
        for expression in expressions:
            p = expression.probabilities
            unsure = p is not None and bool(p.max() < self.low_confidence)
            person = _Person((expression.track_id, expression.place), self._shares(p), unsure)
            if expression.life.counts(self.min_group):
                people.append(person)
            elif expression.life is Life.UNPROVEN:
                pending.append(person)
        camera = "live" if self.file_start is None else "file"
        self._last_sample = _Sample(frame.time, frame.time, people, pending, camera)
        window = self._open
        if window is not None and frame.time >= window.start and not window.discarded:
            window.frames += 1
            window.dropped += frame.dropped
            for person in people:
                window.come_to_life(person.track)
        return closed

    def tick(self, tick: Tick) -> list[Reading]:
        """Let time pass without a picture."""
        closed = self._advance(tick)
        if self._open is not None:
            self._open.cameras.add(tick.camera)
        return closed

    def discard(self) -> None:
        """Make the window in progress say nothing of anybody: a command that cuts into it could
        otherwise carve out a moment."""
        self._last_sample = None
        if self._open is not None:
            self._open.discarded = True
            self._open.covered, self._open.frames, self._open.dropped = 0.0, 0, 0
            self._open.tally = _Tally([0.0] * len(self.cells))
            self._open.pending, self._open.moments = {}, {}

    def relabel(self, labels: Sequence[str]) -> None:
        """Count by other labels from the next window on; the one in progress says nothing."""
        self.cells = [*labels, UNCLASSIFIED]
        self.discard()

    def people_now(self) -> int:
        """Count the faces in the last frame that are not still."""
        sample = self._last_sample
        return len(sample.people) + len(sample.pending) if sample is not None else 0

    def _shares(self, p: NDArray[np.float32] | None) -> tuple[float, ...]:
        """Return what a face adds to each cell; what was not read is `unclassified`."""
        shares = [0.0] * len(self.cells)
        if p is None:
            shares[-1] = 1.0
        elif self.counting == "dominant":
            shares[int(p.argmax())] = 1.0
        else:
            total = float(p.sum(dtype=np.float64))  # in float32 they add up to nearly 1
            shares[:-1] = [float(share) / total for share in p]
        return tuple(shares)

    def _advance(self, item: Frame | Tick) -> list[Reading]:
        if self._open is None:
            self._open = self._next(item.time, item)
        closed = []
        while item.time >= self._open.end - 1e-9:
            self._credit_until(self._open.end)
            closed.append(self._close(self._open))
            self._open = self._next(self._open.end, item)
        self._credit_until(item.time)
        return closed

    def _next(self, time: float, item: Frame | Tick) -> _Open:
        """The window that opens at `time` or, when that is off the grid, at the next multiple."""
        offset = item.utc - item.time if self.file_start is None else 0.0
        nearest = round((time + offset) / self.seconds) * self.seconds
        slack = min(1.0, self.seconds / 4)
        same = self._open is not None and self._open.seconds == self.seconds
        if same and abs(nearest - (time + offset)) <= slack:
            # The clock was nudged: stay without a gap, end on the grid again.
            label, start = nearest, time
        else:
            label = math.ceil((time + offset) / self.seconds - 1e-9) * self.seconds
            start = label - offset
        end = label + self.seconds - offset
        return _Open(start, end, label, self.seconds, _Tally([0.0] * len(self.cells)))

    def _credit_until(self, time: float) -> None:
        """Credit the last picture with the time up to `time`, as far as it lies in the window."""
        sample, window = self._last_sample, self._open
        if sample is None or window is None or window.discarded:
            return
        until = min(time, sample.time + self.max_gap)
        span = until - max(sample.since, window.start)
        if span <= 0:
            return
        sample.since = until
        window.covered += span
        window.tally.credit(sample.people, span)
        for person in sample.pending:
            empty = _Tally([0.0] * len(self.cells))
            window.pending.setdefault(person.track, empty).credit([person], span)
        window.note(len(sample.people), sample.pending)
        window.cameras.add(sample.camera)

    def _close(self, window: _Open) -> Reading:
        origin = self.file_start or 0.0
        start = window.label_start + origin
        seen = min(1.0, window.covered / (window.end - window.start))
        normal = "live" if self.file_start is None else "file"
        faults = sorted(window.cameras - {normal})
        camera = normal if not faults else "interrupted" if window.covered else faults[0]
        fewest, times, total = window.fewest, window.tally.cells, sum(window.tally.cells)
        suppressed = self.min_group > 1 and fewest is not None and fewest < self.min_group
        mean = counts = person_seconds = unsure = None
        if fewest is not None:
            # The published mean and the sum of the counts are rounded from one number, so that a
            # reader who rounds the mean gets the sum.
            mean = round_half_up(100 * total / window.covered) / 100
        if mean is not None and not suppressed:
            people = [time / window.covered for time in times]
            cells = largest_remainder(people, round_half_up(mean))
            seconds = largest_remainder(times, round_half_up(total))
            counts = dict(zip(self.cells, cells, strict=True))
            person_seconds = dict(zip(self.cells, seconds, strict=True))
            doubtful = window.tally.unsure / window.covered
            if self.min_group > 1:
                counts, person_seconds = self._protect(counts, person_seconds)
                doubtful = self._protect_share(doubtful, sum(people))
            unsure = round(doubtful / sum(people), 2) if total else 0.0
        return Reading(
            start=start,
            end=start + window.seconds,
            faces_mean=mean,
            faces_max=window.most if mean is not None else None,
            counts=counts,
            person_seconds=person_seconds,
            suppressed=suppressed,
            seen=round(seen, 3),
            frames=None if suppressed else window.frames,
            dropped=None if suppressed else window.dropped,
            low_confidence=unsure,
            camera=camera,
        )

    def _protect(
        self, counts: dict[str, int], person_seconds: dict[str, int]
    ) -> tuple[dict[str, int], dict[str, int]]:
        """Small cells into `other`, and so the time of a label whose count is not shown. Where no count
        stands in `other`, that time is the passing look of a few: it goes to the largest cell, or one
        person's short smile would stand in `other`, or be missing from the sum."""
        shown = merge_small_cells(counts, self.min_cell)
        times = {label: time if shown[label] else 0 for label, time in person_seconds.items()}
        rest = sum(person_seconds.values()) - sum(times.values())
        home = OTHER if shown[OTHER] else max(counts, key=lambda label: shown[label])
        times = {**times, OTHER: 0}
        return shown, {**times, home: times[home] + rest}

    def _protect_share(self, part: float, whole: float) -> float:
        """Of `whole` people, `part` as far as it and the rest are no small cells."""
        if round_half_up(part) < self.min_cell:
            return 0.0
        return whole if round_half_up(whole - part) < self.min_cell else part
