"""Expressions -> Reading: what is counted, for how long, and what small groups keep to themselves.

A picture stands for the time until the next one (at most `max_gap_seconds`), so every figure is an
average over time, not over pictures. Windows start at multiples of their length, in UTC for a
camera and in file time for a file. A window that was not watched from its start is never published.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from edge.records import OTHER, UNCLASSIFIED, Expression, Frame, Reading, Tick


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


@dataclass(slots=True)
class _Sample:
    """One picture's content: people by cell, how many of them were read with low confidence, and
    the moment up to which its time has been credited."""

    time: float
    since: float
    cells: list[int]
    unsure: int
    camera: str

    @property
    def people(self) -> int:
        return sum(self.cells)


@dataclass(slots=True)
class _Open:
    """The window being filled; start and end on the frames' clock, label_start in UTC or file time."""

    start: float
    end: float
    label_start: float
    seconds: float
    cells: list[float]
    covered: float = 0.0
    unsure: float = 0.0
    fewest: int | None = None
    most: int = 0
    frames: int = 0
    dropped: int = 0
    cameras: set[str] = field(default_factory=set)
    discarded: bool = False  # a command fell into it: it counts nobody


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
    ) -> None:
        """file_start: None for a camera, whose windows follow UTC; for a file the UTC at which its
        time 0 is placed, and windows follow file time. Other arguments as in node.yaml."""
        self.cells = [*labels, UNCLASSIFIED]
        self.seconds = seconds  # of the windows that open from now on
        self.min_group, self.min_cell = min_group, min_cell
        self.low_confidence, self.max_gap = low_confidence, max_gap_seconds
        self.file_start = file_start
        self._open: _Open | None = None
        self._last_sample: _Sample | None = None

    def add(self, frame: Frame, expressions: Sequence[Expression]) -> list[Reading]:
        """Count one frame's people, one Expression each."""
        closed = self._advance(frame)
        cells = [0] * len(self.cells)
        unsure = 0
        for expression in expressions:
            p = expression.probabilities
            if p is None:
                cells[-1] += 1
                continue
            cells[int(p.argmax())] += 1
            unsure += bool(p.max() < self.low_confidence)
        camera = "live" if self.file_start is None else "file"
        self._last_sample = _Sample(frame.time, frame.time, cells, unsure, camera)
        if self._open is not None and frame.time >= self._open.start and not self._open.discarded:
            self._open.frames += 1
            self._open.dropped += frame.dropped
            self._open.most = max(self._open.most, sum(cells))
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
            self._open.discarded, self._open.fewest = True, None
            self._open.covered, self._open.most, self._open.unsure = 0.0, 0, 0.0
            self._open.frames = self._open.dropped = 0
            self._open.cells = [0.0] * len(self.cells)

    def relabel(self, labels: Sequence[str]) -> None:
        """Count by other labels from the next window on; the one in progress says nothing."""
        self.cells = [*labels, UNCLASSIFIED]
        self.discard()

    def people_now(self) -> int:
        """Count the people in the last frame."""
        return self._last_sample.people if self._last_sample is not None else 0

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
        return _Open(start, end, label, self.seconds, [0.0] * len(self.cells))

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
        window.unsure += span * sample.unsure
        window.cells = [c + span * n for c, n in zip(window.cells, sample.cells, strict=True)]
        window.fewest = (
            sample.people if window.fewest is None else min(window.fewest, sample.people)
        )
        window.most = max(window.most, sample.people)
        window.cameras.add(sample.camera)

    def _close(self, window: _Open) -> Reading:
        origin = self.file_start or 0.0
        start = window.label_start + origin
        seen = min(1.0, window.covered / (window.end - window.start))
        normal = "live" if self.file_start is None else "file"
        faults = sorted(window.cameras - {normal})
        camera = normal if not faults else "interrupted" if window.covered else faults[0]
        suppressed = (
            self.min_group > 1 and window.fewest is not None and window.fewest < self.min_group
        )
        mean = counts = person_seconds = unsure = None
        if window.fewest is not None:
            # The published mean and the sum of the counts are rounded from one number, so that a
            # reader who rounds the mean gets the sum.
            mean = round_half_up(100 * sum(window.cells) / window.covered) / 100
        if mean is not None and not suppressed:
            people = [time / window.covered for time in window.cells]
            cells = largest_remainder(people, round_half_up(mean))
            times = largest_remainder(window.cells, round_half_up(sum(window.cells)))
            counts = dict(zip(self.cells, cells, strict=True))
            person_seconds = dict(zip(self.cells, times, strict=True))
            if self.min_group > 1:
                counts, person_seconds = self._protect(counts, person_seconds)
            total = sum(window.cells)
            unsure = round(window.unsure / total, 2) if total else 0.0
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
        """Small cells into `other`. The time of a label whose count is not shown goes there too, or
        one person's short smile would stand in person_seconds under its name."""
        shown = merge_small_cells(counts, self.min_cell)
        times = {label: time if shown[label] else 0 for label, time in person_seconds.items()}
        return shown, {**times, OTHER: sum(person_seconds.values()) - sum(times.values())}
