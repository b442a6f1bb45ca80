"""How long a test waits for what must come, on a machine that does ten other things."""

from __future__ import annotations

import time
from collections.abc import Callable

# Seconds. Nobody waits so long for a test that passes: every wait ends with its event.
PATIENCE = 300.0


def wait_for(condition: Callable[[], object], what: object, seconds: float = PATIENCE) -> None:
    """Return as soon as the condition holds.

    Args:
        what: it is that is waited for, or a function that says so when it did not come.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what() if callable(what) else what}")
        time.sleep(0.02)
