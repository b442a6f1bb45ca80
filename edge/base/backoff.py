"""How long to wait before the next attempt at something that may heal by itself.

backoff = Backoff(first_seconds=1.0, longest_seconds=30.0)
while not connected():
    stop.wait(backoff.next())
backoff.reset()
"""

from __future__ import annotations

import random


class Backoff:
    """Delays that double up to a longest one, each at random down to its half.

    Random, so that many who lost the same thing in one moment do not all come back in one moment."""

    def __init__(self, first_seconds: float, longest_seconds: float) -> None:
        self._first, self._longest = first_seconds, longest_seconds
        self._delay = first_seconds

    def next(self) -> float:
        """Return the seconds to wait now; the next delay is up to twice as long."""
        delay = self._delay
        self._delay = min(2 * delay, self._longest)
        return delay * random.uniform(0.5, 1.0)

    def reset(self) -> None:
        """Start again with the first delay, after an attempt that succeeded."""
        self._delay = self._first
