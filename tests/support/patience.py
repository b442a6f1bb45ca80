"""How long a test waits for what must come, on a machine that does ten other things."""

from __future__ import annotations

import time
from collections.abc import Callable

# Seconds. Nobody waits so long for a test that passes: every wait ends with its event.
PATIENCE = 600.0


def wait_for(condition: Callable[[], object], what: object, every: float = 0.02) -> None:
    """Return as soon as the condition holds.

    A condition that looks up what is not there yet (the reason of a status that has none, the last
    of no messages) does not hold yet: which of two messages a test sees first is the machine's choice.

    Args:
        what: is waited for, or a function that says so when it did not come.
        every: seconds between two looks.
    """
    deadline = time.monotonic() + PATIENCE
    while not _holds(condition):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {PATIENCE} s: {what() if callable(what) else what}")
        time.sleep(every)


def _holds(condition: Callable[[], object]) -> bool:
    try:
        return bool(condition())
    except LookupError:
        return False
