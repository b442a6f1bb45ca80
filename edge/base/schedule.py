"""When a node may look, as a school writes it: `mon-fri 08:00-16:00`, in the machine's local time.

Outside of all entries nothing is looked at. A clock that is not plausible counts as outside: a node
that does not know the time does not look.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from edge.base.clock import plausible

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


@dataclass(frozen=True, slots=True)
class Hours:
    """days: 0 is Monday; start, end: minutes of the day, end after start."""

    days: frozenset[int]
    start: int
    end: int

    def holds(self, moment: datetime) -> bool:
        minute = 60 * moment.hour + moment.minute
        return moment.weekday() in self.days and self.start <= minute < self.end


def parse(text: str) -> Hours:
    """Raises ValueError with what was expected."""
    pattern = r"(\w{3})(?:-(\w{3}))? (\d\d):(\d\d)-(\d\d):(\d\d)"
    found = re.fullmatch(pattern, text.strip().lower())
    wrong = f"'{text}' must look like 'mon-fri 08:00-16:00' or 'sat 09:00-12:00'"
    if not found or found[1] not in DAYS or (found[2] or "mon") not in DAYS:
        raise ValueError(wrong)
    first = DAYS.index(found[1])
    last = DAYS.index(found[2]) if found[2] else first
    start, end = (60 * int(found[i]) + int(found[i + 1]) for i in (3, 5))
    if int(found[4]) > 59 or int(found[6]) > 59 or not start < end <= 24 * 60:
        raise ValueError(f"{wrong}, the end after the start on the same day")
    span = (last - first) % 7
    return Hours(frozenset((first + i) % 7 for i in range(span + 1)), start, end)


def open_now(hours: Sequence[Hours], utc: float) -> bool:
    """Whether any entry holds; without entries always."""
    if not hours:
        return True
    return plausible(utc) and any(h.holds(datetime.fromtimestamp(utc)) for h in hours)
