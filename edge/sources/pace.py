"""Choose which of a source's pictures are analysed: evenly in time, by camera.analyse_per_second.

A camera gives 15 to 60 pictures a second, and a room of seated people is counted as well from a few.
The others are never converted: they are left out by design, and are no dropped frames.
"""

from __future__ import annotations

import logging

log = logging.getLogger(__name__)

# A longer gap between two pictures is no pace: the camera was away, or a file has a cut.
LONGEST_GAP_SECONDS = 3.0
# So long the pictures are counted before they are called fewer than asked for, and so much fewer.
SETTLED_SECONDS, FEWER = 5.0, 0.9


class Pace:
    """Says of each picture, in order, whether it is due.

    The picture nearest to its moment is taken, so that the spacing neither drifts nor beats against
    the camera's; after a gap the spacing starts anew, and nothing is made up for."""

    def __init__(self, rate: float | None = None, kind: str = "", warn: bool = False) -> None:
        """rate: pictures a second, None for every one; kind: of the source, for the log; warn: whether
        a source that gives fewer is worth a line: not where nobody asked for that many."""
        self._rate, self._kind, self._warn = rate, kind, warn
        self._last: float | None = None
        self._step = 0.0  # usual seconds from a picture to the next
        self._next = float("-inf")
        self._pictures, self._seconds = 0, 0.0

    def restart(self) -> None:
        """Take the next picture, whenever it comes: the device was opened again."""
        self._next, self._last = float("-inf"), None

    def due(self, time: float) -> bool:
        """Tell whether the picture of this moment (seconds) is analysed."""
        if self._rate is None:
            return True
        self._arrived(time)
        if time + self._step / 2 < self._next:
            return False
        spacing = 1.0 / self._rate
        # From when it was due rather than when it came; but never a second one for the same moment.
        late = time - self._next
        self._next = (self._next if late < spacing else time) + spacing
        return True

    def _arrived(self, time: float) -> None:
        gap = 0.0 if self._last is None else time - self._last
        self._last = time
        if not 0 < gap <= LONGEST_GAP_SECONDS:
            return
        self._step = gap if self._step == 0 else self._step + 0.1 * (gap - self._step)
        if not self._warn or self._rate is None:
            return
        self._pictures, self._seconds = self._pictures + 1, self._seconds + gap
        if self._seconds >= SETTLED_SECONDS:
            found = self._pictures / self._seconds
            self._pictures, self._seconds = 0, 0.0
            if found < FEWER * self._rate:
                self._warn = False
                log.warning(
                    "the %s gives %s pictures a second, camera.analyse_per_second asks for %s: every "
                    "one is analysed",
                    self._kind,
                    f"{found:.3g}",
                    f"{self._rate:g}",
                )
