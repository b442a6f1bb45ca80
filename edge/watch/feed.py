"""The page's state as a first event and changes: what did not change is not sent again."""

from __future__ import annotations

import json
import threading
import time
import zlib
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from typing import Any

from edge.watch.answers import RoomNow, State

KEPT = 60  # changes, for who comes a little late
# Only in `view.state`: a moment instead of an age, and shares instead of sums, change seldom.
AGES = ("heard_seconds", "lesson")
PARTS = ("rooms", "schools")  # of a state, by name


class Made:
    """Texts that are made for everybody who looks, one at a time, and serve for a while."""

    def __init__(self, make: Callable[[str], str], seconds: float, most: int) -> None:
        """make: of a key; most: keys that are kept."""
        self._make, self._seconds, self._most = make, seconds, most
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, tuple[float, str]] = OrderedDict()

    def get(self, key: str = "") -> str:
        """Return the text of a key, made when it is too old."""
        with self._lock:
            made = self._kept.get(key)
            if made is None or time.monotonic() - made[0] >= self._seconds:
                text = self._make(key)
                made = self._kept[key] = time.monotonic(), text
                self._kept.move_to_end(key)
                if len(self._kept) > self._most:
                    self._kept.popitem(last=False)
            return made[1]


def shrink(state: State, at: float) -> dict[str, Any]:
    """Return a state of `view.state` in the form in which little of it changes. at: now, in s of Unix
    time."""
    rooms = {room["node"]: shrink_room(room) for room in state["rooms"]}
    people = round(state["people"])
    return {**state, "schools": None, "rooms": rooms, "people": people, "now": int(at)}


def shrink_room(room: RoomNow) -> dict[str, Any]:
    """Return a room of `view.state` in that form."""
    own: dict[str, Any] = {
        key: value for key, value in room.items() if key not in AGES and key != "node"
    }
    own["people"] = None if room["people"] is None else round(room["people"])
    own["temperature"] = None if room["temperature"] is None else round(room["temperature"])
    own["shares"] = _shares(room["lesson"])
    if room["counts"] is not None:
        own["counts"] = {label: n for label, n in room["counts"].items() if n}
    return own


def _shares(sums: Mapping[str, int]) -> dict[str, int]:
    """Whole percent by label, without those that have none."""
    total = sum(sums.values())
    return {k: s for k, n in sums.items() if total and (s := round(100 * n / total))}


def difference(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Return what of a shrunken state changed: its own values, and of each room and school those of it.
    Where there are schools now and were none, or the other way round, that is all of it."""
    if (old["schools"] is None) != (new["schools"] is None):
        return {**new, "whole": True}
    kept = (*PARTS, "now")
    found = {k: v for k, v in new.items() if k not in kept and old.get(k) != v}
    for part in PARTS:
        changed = {
            name: own
            for name, one in (new[part] or {}).items()
            if (own := _changed((old[part] or {}).get(name, {}), one))
        }
        if changed:
            found[part] = changed
    # By the server's clock, which alone is asked how long ago something was.
    return {**found, "now": new["now"]} if found else {}


def _changed(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in new.items() if k not in old or old[k] != v}


class Feed:
    """Numbers the page's states and keeps the last changes, for all who watch."""

    def __init__(
        self, make: Callable[[], dict[str, Any]], pace: Callable[[dict[str, Any]], float]
    ) -> None:
        """make: a shrunken state; pace: for how many seconds one serves."""
        self._make, self._pace = make, pace
        self._lock = threading.Lock()
        self._state: dict[str, Any] | None = None
        self._made = 0.0
        self._number = 0
        self._changes: deque[tuple[int, str]] = deque(maxlen=KEPT)

    def since(self, number: int | None) -> tuple[int, list[str]]:
        """Return the number of the state now, and the texts that lead to it from an earlier one: none
        where nothing changed, the whole state where it is not known or too old."""
        with self._lock:
            self._renew()
            assert self._state is not None
            if number == self._number:
                return number, []
            later = [text for n, text in self._changes if number is not None and n > number]
            if number is None or len(later) != self._number - number:
                return self._number, [_dumps({**self._state, "whole": True})]
            return self._number, later

    def _renew(self) -> None:
        now = time.monotonic()
        if self._state is not None and now - self._made < self._pace(self._state):
            return
        state = self._make()
        if self._state is not None and (change := difference(self._state, state)):
            self._number += 1
            self._changes.append((self._number, _dumps(change)))
        self._state, self._made = state, now


def _dumps(content: dict[str, Any]) -> str:
    return json.dumps(content, allow_nan=False, separators=(",", ":"))


class Squeeze:
    """Compresses one answer that streams, so that each event can be read at once."""

    def __init__(self, on: bool) -> None:
        """on: whether who asked takes gzip."""
        # 16 more than the window's bits: with gzip's header, not zlib's.
        self._gzip = zlib.compressobj(6, zlib.DEFLATED, 16 + 15) if on else None

    def event(self, text: str) -> bytes:
        """Return the bytes of a part of the answer."""
        if self._gzip is None:
            return text.encode()
        return self._gzip.compress(text.encode()) + self._gzip.flush(zlib.Z_SYNC_FLUSH)
