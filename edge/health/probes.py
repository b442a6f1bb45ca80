"""Read temperature, memory and power mode from the kernel's own files."""

from __future__ import annotations

import os
import re
from pathlib import Path


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
