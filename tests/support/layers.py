"""Which layer a test belongs to, and that the quick one starts nothing.

`make quick` leaves out what is marked `process`, `broker`, `browser` or `slow`. A test gets the mark of
a fixture that it uses by itself; one that starts something in another way marks itself, and fails
without its mark.
"""

from __future__ import annotations

import sys

import pytest

BY_FIXTURE = {
    "browser": "browser",
    "clip_run": "process",
    "fp32": "slow",  # torch's exporter takes seconds to load
    "loop": "process",
    "mosquitto": "broker",
    "postgres": "process",
    "process_command": "process",
    "other_form": "slow",  # exports a network
    "school": "process",
    "tiny_dinov2": "slow",  # transformers takes seconds to load
    "uninterrupted": "slow",  # trains a network
}
# Suites of their own, by `make test-NAME`: they start whatever they need.
SUITES = ("boot", "faults", "gpu", "package", "scale", "soak")
MAY_START = ("process", "broker", "browser")
STARTS = {
    *("subprocess.Popen", "os.system", "os.exec"),
    *("os.fork", "os.forkpty", "os.posix_spawn", "os.spawn"),
}
# matplotlib asks the system for its fonts once on each machine, in whichever test draws first.
ALLOWED = ("fc-list",)

_guarded = False


def mark(item: pytest.Item) -> None:
    """Add the marks that follow from a test's fixtures and suite."""
    for fixture in getattr(item, "fixturenames", ()):
        if fixture in BY_FIXTURE:
            item.add_marker(BY_FIXTURE[fixture])
    if any(item.get_closest_marker(suite) for suite in SUITES):
        item.add_marker("process")


def guard(item: pytest.Item | None) -> None:
    """Let nothing start a process until the next call, if the test is marked so or None."""
    global _guarded
    _guarded = item is not None and not any(map(item.get_closest_marker, MAY_START))


def _heard(event: str, args: tuple[object, ...]) -> None:
    if _guarded and event in STARTS and args[0] not in ALLOWED:
        pytest.fail(
            f"the test starts a process ({event}: {args!r:.200}): mark it with pytest.mark.process, "
            "or .broker or .browser, that `make quick` leaves it out"
        )


sys.addaudithook(_heard)
