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
    return parse_l4t(_text(file))


def _text(file: Path) -> str:
    """Read a file of NVIDIA's, "" where there is none. What is no UTF-8 in it costs its sign alone."""
    try:
        return file.read_text(encoding="utf-8", errors="replace")
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
    number = re.search(r"pmode:0*(\d{1,9})\b", _text(status))
    if number is None:
        return None
    name = re.search(rf"<\s*POWER_MODEL\s+ID={number[1]}\s+NAME=(\S+)", _text(names))
    return name[1] if name else number[1]
