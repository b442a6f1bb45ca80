"""What a page of many rooms is sent: sums of each school, and the rooms of those that are opened.

Sums add up only what rooms show: a small group that is suppressed is in none of them, so that no
difference between a school and its rooms, or between two moments, tells of it.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any
from weakref import WeakValueDictionary

from edge.watch import view
from edge.watch.answers import SchoolNow
from edge.watch.feed import Feed, shrink, shrink_room
from edge.watch.places import place_of
from edge.watch.rooms import Room, Rooms

FEW_ROOMS = 250  # up to here a page is sent every room
MOST_OPENED = 20  # schools by one page
LATEST = 8  # feeds that are kept though nobody may watch them
EVENT_SECONDS = 1.0
# What may change in a second, so that a browser's minute stays below 60 kB whatever is opened: windows
# of ten seconds give each room a change of 32 bytes, compressed, in ten, and each school's sums one
# of 10 bytes with every event.
SCHOOLS_A_SECOND, ROOMS_A_SECOND = 70, 25


def pace(state: dict[str, Any]) -> float:
    """Return for how many seconds a state serves: longer for more that changes."""
    schools, rooms = state["schools"], len(state["rooms"])
    if schools is None:
        return EVENT_SECONDS
    opened = rooms / ROOMS_A_SECOND if rooms > FEW_ROOMS else 0.0
    return max(EVENT_SECONDS, len(schools) / SCHOOLS_A_SECOND, opened)


def sum_up(rooms: Rooms, found: Iterable[Room], now: datetime) -> dict[str, SchoolNow]:
    """Add up rooms by school, in the order of names. people: of the rooms that show them, None where
    none does."""
    sums: dict[str, SchoolNow] = {}
    people: defaultdict[str, float] = defaultdict(float)
    for room in found:
        site = place_of(room.node).site
        one = sums.get(site)
        if one is None:
            one = sums[site] = SchoolNow(
                rooms=0, online=0, people=None, hidden=0, trouble=0, unsynced=0, off=0, gone=0,
                retired=0,
            )  # fmt: skip
        shown = _add(one, rooms, room, now)
        if shown is not None:
            people[site] += shown
            one["people"] = round(people[site])
    return dict(sorted(sums.items()))


def _add(one: SchoolNow, rooms: Rooms, room: Room, now: datetime) -> float | None:
    """Add a room to its school's sums; returns the people that it shows."""
    present, shown = room.present(now), room.shown
    one["hidden"] += present and shown is not None and shown.hidden is not None
    online = room.state(now) == "online"  # then it is neither gone nor off nor in trouble
    if room.node in rooms.retired:
        one["retired"] += 1
    elif not online and room.gone(now):
        one["gone"] += 1
    elif not online and rooms.off(room, now):
        one["off"] += 1
    else:
        one["rooms"] += 1
        one["online"] += online
        one["trouble"] += not online and rooms.trouble(room, now)
        one["unsynced"] += present and shown is not None and shown.clock_synced is False
    return shown.people if present and shown is not None else None


class Watchers:
    """Makes what each browser that watches is sent; those who opened the same schools share it."""

    def __init__(
        self, rooms: Rooms, broker: Callable[[], str], clock: Callable[[], datetime]
    ) -> None:
        """broker: describes the connection to it."""
        self._rooms, self._broker, self._clock = rooms, broker, clock
        self._lock = threading.Lock()
        # A feed is held by those who watch, and forgotten with its changes when nobody does and others
        # came after it. Who asks for a state again and again has it made no oftener than who watches.
        self._feeds: WeakValueDictionary[frozenset[str], Feed] = WeakValueDictionary()
        self._latest: deque[Feed] = deque(maxlen=LATEST)
        self._sums_lock = threading.Lock()
        self._sums: tuple[float, dict[str, Any]] | None = None

    def feed(self, opened: Iterable[str]) -> Feed:
        """Return the feed for who opened some schools; names of none are passed over."""
        wanted = frozenset(opened)
        with self._lock:
            # A key is as long as what is asked for, so names that are none make no feeds.
            known = {place_of(node).site for node in list(self._rooms.rooms)} if wanted else set()
            key = frozenset(sorted(wanted & known)[:MOST_OPENED])
            found = self._feeds.get(key)
            if found is None:
                found = self._feeds[key] = Feed(lambda: self.state(key), pace)
                self._latest.append(found)
            return found

    def state(self, opened: frozenset[str] = frozenset()) -> dict[str, Any]:
        """Return the state of all rooms where they are few, else of schools and of the rooms in those
        opened, in the form of `feed.shrink`."""
        now = self._clock()
        if len(self._rooms.rooms) <= FEW_ROOMS:
            few = view.state(self._rooms, self._broker(), now)
            return shrink(few, now.timestamp())
        inside = tuple(f"{site}/" for site in opened)
        shown = [view.room_now(self._rooms, room, now) for room in self._rooms.snapshot(inside)]
        rooms = {room["node"]: shrink_room(room) for room in shown}
        return {**self._whole(now), "rooms": rooms, "now": int(now.timestamp())}

    def _whole(self, now: datetime) -> dict[str, Any]:
        """What is the same for all who watch many rooms, made at most once a second."""
        with self._sums_lock:
            if self._sums is None or time.monotonic() - self._sums[0] >= EVENT_SECONDS:
                self._sums = time.monotonic(), self._added(now)
            return self._sums[1]

    def _added(self, now: datetime) -> dict[str, Any]:
        schools = sum_up(self._rooms, self._rooms.snapshot(), now)
        sums = schools.values()
        with self._rooms.lock:
            refused = dict(self._rooms.refused)
        return {
            "broker": self._broker(),
            "labels": self._rooms.labels,
            "schools": schools,
            "people": sum(one["people"] or 0 for one in sums),
            "hidden_rooms": sum(one["hidden"] for one in sums),
            "online": sum(one["online"] for one in sums),
            "off": sum(one["off"] for one in sums),
            "gone": sum(one["gone"] for one in sums),
            "retired": sum(one["retired"] for one in sums),
            "refused": refused,
        }
