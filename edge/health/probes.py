"""Read temperature and memory from the kernel's own files, and tell them in steps.

A board is warmer and a process larger with every face in view. A figure that is told in steps too large
for one person, and stays until a whole step is behind it, tells of none."""

from __future__ import annotations

import os
from pathlib import Path

TEMPERATURE_STEP, MEMORY_STEP = 5.0, 64
HOTTEST = 200  # degrees Celsius, of a board that answers


class Steps:
    """A figure in steps: what was told last, until a value is a whole step away from it."""

    def __init__(self, step: float, first: float | None) -> None:
        """first: read before the first picture, so that it depends on none."""
        self._step, self._told = step, first

    def tell(self, value: float | None) -> float | None:
        """Return the figure to tell; None where the system gave none."""
        if value is None or self._told is None:
            self._told = value
        elif abs(value - self._told) >= self._step:
            self._told += self._step * int((value - self._told) / self._step)
        return self._told


def temperature_celsius(zones: Path = Path("/sys/class/thermal")) -> float | None:
    """Read the hottest thermal zone, in degrees Celsius; None where there is none that can be true."""
    values = []
    for zone in zones.glob("thermal_zone*/temp"):
        try:
            thousandths = int(zone.read_text())
        except (OSError, ValueError):
            continue  # a zone whose sensor is switched off answers an error
        if abs(thousandths) <= HOTTEST * 1000:  # or -256 degrees, or the largest number there is
            values.append(thousandths / 1000.0)
    return round(max(values), 1) if values else None


def memory_mib(statm: Path = Path("/proc/self/statm")) -> int | None:
    """Read the resident memory of this process, in MiB; None where the system does not say."""
    try:
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20
    except (OSError, ValueError, IndexError):
        return None
