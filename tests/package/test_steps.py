"""How far a build is, on a terminal and in a log."""

from __future__ import annotations

import io
import itertools
import threading

import pytest

from build_steps import Steps
from edge.base.cli import CLEAR_LINE
from support.patience import PATIENCE


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_gets_a_line_a_step() -> None:
    out = io.StringIO()
    moments = iter([0.0, 0.0, 75.0])
    steps = Steps(2, out, lambda: next(moments))
    with steps.step("31 wheels for Python 3.10"):
        steps.detail("fetching 1 of 31, numpy")
    with steps.step("packing"):
        pass
    assert out.getvalue() == "[1/2] 0:00 31 wheels for Python 3.10\n[2/2] 1:15 packing\n"


def test_a_terminal_shows_what_is_at_work_and_the_time_that_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr("build_steps.TICK_SECONDS", 0.001)
    out, clock, drew = Screen(), itertools.count(), threading.Event()

    def later() -> float:
        moment = next(clock)
        if moment > 5:
            drew.set()
        return float(moment)

    steps = Steps(1, out, later)
    with steps.step("31 wheels for Python 3.10"):
        steps.detail("fetching 12 of 31, numpy, which has a long name")
        drew.wait(PATIENCE)
    drawn = out.getvalue().removesuffix("\n").split(CLEAR_LINE)[1:]
    assert all(len(line) < 40 for line in drawn)
    assert len(set(drawn)) > 3, "its time goes on"
    assert out.getvalue().endswith("\n"), "what comes next has a line of its own"


def test_a_step_that_fails_leaves_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    out = Screen()
    with pytest.raises(ValueError, match="no"), Steps(1, out).step("packing"):
        raise ValueError("no")
    assert out.getvalue().endswith("packing\n")
