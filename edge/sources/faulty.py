"""Fail on purpose, to see what a node and its school make of it: `--camera test:hang`.

Each gives the test pattern for GOOD_SECONDS, then its fault for BAD_SECONDS, and so on.

    test:die      disconnects: reads fail, and the device is gone when it is opened again
    test:freeze   freezes: the same frame again and again, as if it were new
    test:hang     stalls: a read does not return
    test:lie      gives empty frames: reads succeed and hold no pixels
"""

from __future__ import annotations

import threading
import time
from typing import Any, Literal

import numpy as np

from edge.base.errors import SourceError
from edge.sources.live import Capture

Kind = Literal["die", "freeze", "hang", "lie"]
FAULTS: dict[str, Kind] = {
    "test:die": "die",
    "test:freeze": "freeze",
    "test:hang": "hang",
    "test:lie": "lie",
}
GOOD_SECONDS, BAD_SECONDS = 10.0, 60.0


class Faulty:
    """Wrap a good capture; `open` is its opener."""

    def __init__(
        self, kind: Kind, capture: Capture, good: float | None = None, bad: float | None = None
    ) -> None:
        """good, bad: seconds of each, in turn; default GOOD_SECONDS and BAD_SECONDS."""
        self._kind, self._capture = kind, capture
        self._good = GOOD_SECONDS if good is None else good
        self._bad = BAD_SECONDS if bad is None else bad
        self._began = time.monotonic()
        self._last: Any = None
        self._never = threading.Event()

    def _left(self) -> float:
        """Return the seconds that the present fault lasts; 0 in good times."""
        moment = (time.monotonic() - self._began) % (self._good + self._bad)
        return self._good + self._bad - moment if moment >= self._good else 0.0

    def open(self) -> Faulty:
        if self._kind == "die" and self._left():
            raise SourceError("the test camera is unplugged, as it was asked to be")
        return self

    def read(self) -> tuple[bool, Any]:
        left = self._left()
        if not left:
            ok, self._last = self._capture.read()
            return ok, self._last
        if self._kind == "hang":
            self._never.wait(left)
            return False, None
        time.sleep(0.03)
        if self._kind == "freeze":
            return True, self._last
        return self._kind == "lie", np.zeros((0, 0, 3), np.uint8)

    def release(self) -> None:
        self._capture.release()
