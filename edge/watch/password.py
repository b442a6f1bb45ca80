"""The page's password: how strong it must be, and how fast somebody may guess it."""

from __future__ import annotations

import ipaddress
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise

from edge.base.errors import UsageError

STRENGTH = (
    "at least 12 characters; 10 of them must be hard to guess: words such as 'school' or 'password', "
    "repeated parts, rows of a keyboard, counting up or down count once"
)
LEAST_CHARACTERS, LEAST_HARD = 12, 10
EASY_WORDS = re.compile(
    "passwor[dt]|passwd|kennwort|school|schule|class(room)?|klasse|admin(istrator)?|teacher|lehrer|"
    "welcome|willkommen|letmein|edge|secret|geheim|changeme|default|page|user|root|test"
)
ROWS = ("qwertyuiop", "qwertzuiop", "asdfghjkl", "zxcvbnm", "yxcvbnm", "azertyuiop")
BURST = 10  # of one address before it must wait, such as wrong passwords
REFILL_SECONDS = 1.0  # for each further one
MOST_ADDRESSES = 4096


def hard_characters(password: str) -> int:
    """Count the characters of a password that cannot be told from those before them."""
    text = EASY_WORDS.sub("\0", password.lower())
    follows = {pair for row in ROWS for way in (row, row[::-1]) for pair in pairwise(way)}
    seen: set[tuple[str, str]] = set()
    found = len(text[:1])
    for pair in pairwise(text):
        near = abs(ord(pair[0]) - ord(pair[1])) <= 1 or pair in follows
        found += not (near or pair in seen)
        seen.add(pair)
    return found


def require_strong(password: str, option: str = "--web-password-file") -> None:
    """Raise UsageError for a password that is soon guessed."""
    if len(password) < LEAST_CHARACTERS or hard_characters(password) < LEAST_HARD:
        raise UsageError(
            f"the password in {option} is too easy to guess; it needs {STRENGTH}. "
            "`openssl rand -base64 15` makes one"
        )


class Budget:
    """Bounds how often an address may do a thing, such as give a wrong password; in memory, for so many
    addresses."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tries, and when counted

    def _tries(self, key: str) -> float:
        left, at = self._left.get(key, (float(BURST), 0.0))
        return min(float(BURST), left + (self._clock() - at) / REFILL_SECONDS)

    def allowed(self, address: str) -> bool:
        """Tell whether this address may do it now."""
        return self._tries(_network(address)) >= 1

    def spend(self, address: str) -> None:
        """Count one."""
        key = _network(address)
        self._left[key] = self._tries(key) - 1, self._clock()
        self._left.move_to_end(key)
        if len(self._left) > MOST_ADDRESSES:
            self._left.popitem(last=False)


def _network(address: str) -> str:
    """Name who shares an address: in IPv6 a client has a network of 64 bits to itself."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((found, 64), strict=False))
