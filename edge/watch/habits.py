"""When each room usually counts, by the quarter of an hour over the week: what is off every evening
needs no look.

In UTC: for a week after the clocks change, a room is expected an hour off.
"""

from __future__ import annotations

from array import array
from datetime import datetime, timedelta

QUARTER_SECONDS = 900
DAY, WEEK = 96, 672  # quarters
OLDEST, AHEAD = timedelta(days=15), timedelta(minutes=5)


def quarter(at: datetime) -> int:
    """Number the quarter of an hour of a moment, from 1970 on."""
    return int(at.timestamp()) // QUARTER_SECONDS


class Habits:
    """By node, the last week in which each quarter of the week had a reading: 1.3 kB a node."""

    def __init__(self) -> None:
        self._weeks: dict[str, array[int]] = {}
        self._first: dict[str, int] = {}

    def note(self, node: str, at: datetime, now: datetime) -> None:
        """Remember that a node counted at a moment; one too old or in the future is passed over."""
        if not now - OLDEST <= at <= now + AHEAD:
            return
        place = quarter(at)
        weeks = self._weeks.get(node)
        if weeks is None:
            weeks = self._weeks[node] = array("H", bytes(2 * WEEK))
        week, slot = divmod(place, WEEK)
        weeks[slot] = max(weeks[slot], week)
        self._first[node] = min(place, self._first.get(node, place))

    def expected(self, node: str, now: datetime) -> bool:
        """Tell whether a node should count now: it counted in this quarter of an hour and in the next
        one a week ago, or yesterday where it is not known for a week. What is not known for a day is
        expected."""
        place = quarter(now)
        known = place - self._first.get(node, place)
        if known < DAY:
            return True
        then = place - (WEEK if known >= WEEK else DAY)
        return self._counted(node, then) and self._counted(node, then + 1)

    def _counted(self, node: str, place: int) -> bool:
        week, slot = divmod(place, WEEK)
        # A later week stands there where this week's own is over or has begun.
        return self._weeks[node][slot] >= week
