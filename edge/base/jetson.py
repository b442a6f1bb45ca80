"""Read what NVIDIA's system keeps in files: a Jetson's release, power mode, driver."""

from __future__ import annotations

import re
from pathlib import Path

RELEASE = Path("/etc/nv_tegra_release")
DRIVER = Path("/proc/driver/nvidia")


def parse_l4t(text: str) -> str:
    """Make "R36.4.3" of "# R36 (release), REVISION: 4.3, ..."; "" of other text."""
    found = re.match(r"# (R\d+) \(release\)(?:, REVISION: ([\d.]+))?", text)
    return f"{found[1]}.{found[2] or 0}" if found else ""


def l4t_release(file: Path = RELEASE) -> str:
    """Read the release of this board's L4T, such as "R36.4.3"; "" on other machines."""
    try:
        return parse_l4t(file.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return ""


def nvidia_driver(places: tuple[Path, ...] = (DRIVER, RELEASE)) -> bool:
    """Tell whether this machine has NVIDIA's driver, so that TensorRT is to be expected."""
    return any(place.exists() for place in places)


def power_mode(
    status: Path = Path("/var/lib/nvpmodel/status"), names: Path = Path("/etc/nvpmodel.conf")
) -> str | None:
    """Read a Jetson's power mode by its name, such as "15W"; its number where it has no name; None on
    other machines. From the files that nvpmodel keeps, since the tool itself wants root."""
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
