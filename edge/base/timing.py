"""Measure what each stage of the node takes, and say durations."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


class Stages:
    """Keeps the wall time of each stage over the last `keep` frames."""

    def __init__(self, keep: int = 1000) -> None:
        self._keep = keep
        self._times: dict[str, deque[float]] = {}

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.note(stage, time.perf_counter() - started)

    def note(self, stage: str, seconds: float) -> None:
        self._times.setdefault(stage, deque(maxlen=self._keep)).append(seconds)

    def milliseconds(self, stage: str) -> tuple[float, float] | None:
        """Return median and 95th percentile, or None before the first frame."""
        times = self._times.get(stage)
        if not times:
            return None
        p50, p95 = np.percentile(np.fromiter(times, dtype=float), [50, 95])
        return round(1000 * float(p50), 2), round(1000 * float(p95), 2)

    def names(self) -> list[str]:
        return list(self._times)


def format_duration(seconds: float) -> str:
    """Format `45 s`, `9 min`, `1 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
