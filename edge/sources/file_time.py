"""Make a clock that never steps back, and never leaps, of the stamps that a video file gives."""

from __future__ import annotations

import statistics
from collections import deque

# A longer gap between two pictures is a cut: a camera's clock was set, or two recordings were joined.
MAX_GAP_SECONDS = 60.0
# A stamp that steps back further is one too; less is the order in which some files hold pictures.
MAX_BACK_SECONDS = 1.0
# OpenCV gives -9.2e15 s where there is no stamp.
NO_STAMP_SECONDS = 1e12
STEPS = 9


class FileTime:
    """Give each picture its moment, seconds from the first one's.

    cuts: how many gaps were longer than MAX_GAP_SECONDS, or stepped back: there, time goes on evenly.
    """

    def __init__(self, frames_per_second: float) -> None:
        """frames_per_second: as the container says, which may be anything."""
        usual = 1.0 <= frames_per_second < 1000
        self._steps = deque([1.0 / (frames_per_second if usual else 30.0)], STEPS)
        self._base: float | None = None  # the stamp of moment 0
        self._stamp = 0.0
        self.moment: float | None = None
        self.cuts = 0

    @property
    def step(self) -> float:
        """Return the usual seconds from a picture to the next."""
        return max(1e-3, statistics.median(self._steps))

    def take(self, stamp: float) -> float:
        """Return the moment of the picture with this stamp (seconds; may be wrong, or NaN for none).

        It is above that of the picture before, by at most MAX_GAP_SECONDS."""
        even = 0.0 if self.moment is None else self.moment + self.step
        if not abs(stamp) < NO_STAMP_SECONDS:  # NaN too
            self.moment = even
            return even
        gap, self._stamp = stamp - self._stamp, stamp
        if self._base is None:
            self._base = stamp - even
        elif not -MAX_BACK_SECONDS <= gap <= MAX_GAP_SECONDS:
            self.cuts += 1
            self._base = stamp - even
        elif gap > 0:
            self._steps.append(gap)
        moment = stamp - self._base
        # Some files give no stamps but 0, or ones that step back a little.
        self.moment = moment if self.moment is None or moment > self.moment else even
        return self.moment
