"""When a node may look, as a school writes it: `mon-fri 08:00-16:00`, in the school's time zone.

Outside of all entries nothing is looked at. A clock that is not plausible counts as outside: a node
that does not know the time does not look. The hour that an autumn night has twice is open twice.
"""

from __future__ import annotations

import difflib
import re
import zoneinfo
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, tzinfo

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


def find_zone(name: str) -> tzinfo:
    """Find a zone of the IANA database by its name. Raises ValueError with what to write or install."""
    try:
        return zoneinfo.ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        known = zoneinfo.available_timezones()
    if not known:
        raise ValueError(
            f"zone '{name:.60}' cannot be looked up: this machine has no time zone data; install the "
            "package tzdata"
        )
    by_folded = {one.casefold(): one for one in known}
    near = difflib.get_close_matches(name.casefold(), by_folded, n=1)
    hint = f"; did you mean '{by_folded[near[0]]}'?" if near else ", such as 'Europe/Berlin'"
    raise ValueError(f"'{name:.60}' is not a time zone of the IANA database{hint}")


@dataclass(frozen=True, slots=True)
class Schedule:
    """The hours of a school with their zone; zone: None is the system's."""

    hours: tuple[Hours, ...] = ()
    zone: tzinfo | None = None

    def local(self, utc: float) -> datetime:
        """Return the wall clock's time at `utc`, seconds since 1970."""
        return datetime.fromtimestamp(utc, self.zone).astimezone(self.zone)

    def open_at(self, utc: float) -> bool:
        """Tell whether any entry holds; without entries always."""
        if not self.hours:
            return True
        return plausible(utc) and any(h.holds(self.local(utc)) for h in self.hours)


def read(entries: Sequence[str], zone: str | None) -> Schedule:
    """Read hours and zone as node.yaml has them; raises ValueError with what was expected."""
    hours = tuple(parse(entry) for entry in entries)
    return Schedule(hours, None if zone is None else find_zone(zone))
