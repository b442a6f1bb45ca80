"""How the node does: stage latencies, temperature, memory; read from the kernel's own files."""

from __future__ import annotations

import os
import re
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np


class Stages:
    """Wall time of each stage over the last `keep` pictures."""

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
        """Median and 95th percentile, or None before the first picture."""
        times = self._times.get(stage)
        if not times:
            return None
        p50, p95 = np.percentile(np.fromiter(times, dtype=float), [50, 95])
        return round(1000 * float(p50), 2), round(1000 * float(p95), 2)

    def names(self) -> list[str]:
        return list(self._times)


def temperature_celsius(zones: Path = Path("/sys/class/thermal")) -> float | None:
    """The hottest thermal zone, or None where there is none."""
    values = []
    for zone in zones.glob("thermal_zone*/temp"):
        try:
            values.append(int(zone.read_text()) / 1000.0)
        except (OSError, ValueError):
            continue  # a zone whose sensor is switched off answers an error
    return round(max(values), 1) if values else None


def memory_mib(statm: Path = Path("/proc/self/statm")) -> int | None:
    """Resident memory of this process."""
    try:
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20
    except (OSError, ValueError, IndexError):
        return None


def power_mode(
    status: Path = Path("/var/lib/nvpmodel/status"), names: Path = Path("/etc/nvpmodel.conf")
) -> str | None:
    """A Jetson's power mode by its name, such as "15W"; its number where it has no name; None on other
    machines. Read from the files that nvpmodel keeps, since the tool itself wants root."""
    try:
        number = re.search(r"pmode:(\d+)", status.read_text())
        if number is None:
            return None
        mode = int(number[1])
        text = names.read_text()
    except OSError:
        return None
    name = re.search(rf"<\s*POWER_MODEL\s+ID={mode}\s+NAME=(\S+)", text)
    return name[1] if name else str(mode)
