"""How much work the node takes on: less while the board throttles itself, more when it is cool.

Level 0 looks at every picture, 1 at every second, 2 at every third, 3 also scales the detector's
picture to half (a face then needs twice the pixels; only where its backend takes any size).
One level up after HOT_SECONDS of throttling, one down after COOL_SECONDS without.
"""

from __future__ import annotations

import re
from pathlib import Path

HOT_SECONDS, COOL_SECONDS = 10.0, 60.0
READ_SECONDS = 2.0
STRIDES = (1, 2, 3, 3)
HALVED = 3


# Cooling devices that take work away: a Jetson's clocks and alerts, a PC's processor states. Others, a
# fan or a dimmed display, say nothing of heat.
SLOWING = re.compile(r"cpufreq|devfreq|gpu|throttle-alert|^processor$")


def throttled(devices: Path = Path("/sys/class/thermal")) -> bool:
    """Tell whether the kernel slows something down for heat or power: a cooling device of that kind
    is in use. Read from sysfs, which every release has."""
    for device in devices.glob("cooling_device*"):
        try:
            kind = (device / "type").read_text().strip().lower()
            state = int((device / "cur_state").read_text())
        except (OSError, ValueError):
            continue
        if state > 0 and SLOWING.search(kind):
            return True
    return False


class Throttle:
    """`level` is what it decided, by the time of every Frame or Tick."""

    def __init__(self, highest: int = HALVED, devices: Path = Path("/sys/class/thermal")) -> None:
        """highest: level that is never passed."""
        self.level, self._highest, self._devices = 0, highest, devices
        self.throttled = False
        self._read_at = self._since = float("-inf")
        self._count = 0

    def update(self, now: float) -> None:
        """Take the time of a Frame or a Tick (seconds), and decide."""
        if now - self._read_at >= READ_SECONDS:
            self._read_at = now
            self._decide(now, throttled(self._devices))

    def should_process(self) -> bool:
        """Tell whether this picture is worked on; the others only count."""
        self._count += 1
        return self._count % STRIDES[self.level] == 0

    def _decide(self, now: float, hot: bool) -> None:
        if hot != self.throttled or self._since == float("-inf"):
            self.throttled, self._since = hot, now
        elif hot and now - self._since >= HOT_SECONDS and self.level < self._highest:
            self.level, self._since = self.level + 1, now
        elif not hot and now - self._since >= COOL_SECONDS and self.level > 0:
            self.level, self._since = self.level - 1, now
