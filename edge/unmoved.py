"""Notice faces that are in view and not counted, since they do not move: a state for `health`.

It changes only while as many people as the minimum group are alive, whose counts are published anyway:
else it would tell whether anybody is there. It begins after a minute and ends after ten without one.
"""

from __future__ import annotations

from collections.abc import Sequence

from edge.records import Track

BEGIN_SECONDS, END_SECONDS = 60.0, 600.0
LONGEST_STEP = 2.0  # a longer time without a picture tells nothing


class Unmoved:
    """told: whether there are such faces."""

    def __init__(self) -> None:
        self.told = False
        self._since: dict[int, float] = {}  # by track: uncounted from then on
        self._without, self._before = 0.0, 0.0

    def look(self, tracks: Sequence[Track], min_group: int, time: float) -> None:
        """Take note of one picture's tracks, at `time` seconds."""
        step, self._before = min(max(time - self._before, 0.0), LONGEST_STEP), time
        left_out = {t.id for t in tracks if not t.life.counts(min_group)}
        self._since = {n: self._since.get(n, time) for n in left_out}
        if min_group > 1 and len(tracks) - len(left_out) < min_group:
            return
        if any(time - since >= BEGIN_SECONDS for since in self._since.values()):
            self.told, self._without = True, 0.0
            return
        self._without += step
        if self._without >= END_SECONDS:
            self.told = False
