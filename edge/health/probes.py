"""Read temperature and memory from the kernel's own files."""

from __future__ import annotations

import os
from pathlib import Path


def temperature_celsius(zones: Path = Path("/sys/class/thermal")) -> float | None:
    """Read the hottest thermal zone, in degrees Celsius; None where there is none."""
    values = []
    for zone in zones.glob("thermal_zone*/temp"):
        try:
            values.append(int(zone.read_text()) / 1000.0)
        except (OSError, ValueError):
            continue  # a zone whose sensor is switched off answers an error
    return round(max(values), 1) if values else None


def memory_mib(statm: Path = Path("/proc/self/statm")) -> int | None:
    """Read the resident memory of this process, in MiB; None where the system does not say."""
    try:
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20
    except (OSError, ValueError, IndexError):
        return None
