"""A node's name, site/room/node, as a school reads it: which site, which room, which floor."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

# Words before a room's number that name no floor, in the languages of the page.
ROOM_WORDS = frozenset(
    [
        *("room", "classroom", "class", "rm", "raum", "klasse", "klassenraum", "zimmer"),
        *("salle", "classe", "aula", "clase", "sala"),
    ]
)
NUMBER = re.compile(r"([a-z]*)(\d+)([a-z]?)")


@dataclass(frozen=True, slots=True)
class Place:
    """site, room: the first two parts of the name; floor: what the room's name tells of it, or ""."""

    site: str
    room: str
    floor: str


def floor_of(room: str) -> str:
    """Read the floor off a room's name: the hundreds of a number of three digits or more (room-214 and
    b214: 2 and b2), else what stands before the last part (a-2-07: a-2); "" where neither is there."""
    *before, last = room.split("-")
    words = [part for part in before if part and part not in ROOM_WORDS]
    found = NUMBER.fullmatch(last)
    if found is None:
        return "-".join(words)
    wing, digits, _ = found.groups()
    if len(digits) >= 3:
        wing = "" if wing in ROOM_WORDS else wing
        words.append(f"{wing}{int(digits[:-2])}")
    elif wing and wing not in ROOM_WORDS:
        words.append(wing)
    return "-".join(words)


@lru_cache(maxsize=32_768)  # above the nodes that are held: less would be forgotten in turn
def place_of(node: str) -> Place:
    """Take a node's name, site/room/node, apart."""
    site, _, rest = node.partition("/")
    room = rest.partition("/")[0]
    return Place(site, room, floor_of(room))
