"""What a run says of itself at its end: what was counted, or why nothing was."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from edge.delivery.narrator import Narrator
from edge.delivery.tally import Tally


def message(faces: Any = None, camera: str = "file", **seconds: int) -> dict[str, Any]:
    """What `counts` says of a window, as far as a tally reads it. faces: people on average, "<5" or
    None for nothing seen."""
    seen = {"mean": float(faces), "max": int(faces)} if isinstance(faces, int) else faces
    return {"faces": seen, "person_seconds": seconds or None, "quality": {"camera": camera}}


def tally(*messages: dict[str, Any], window: float = 10.0, group: int = 5) -> Tally:
    made = Tally(window, group)
    for one in messages:
        made.add(one)
    return made


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (tally(), "no whole window of 10 s in a clip of 6 s: give --window 2"),
        (tally(window=3.0), "no whole window of 3 s in a clip of 6 s: give --window 1"),
        (tally(message("<5")), "fewer than 5 people in the one window: --min-group 1 shows them"),
        (
            tally(message("<5"), message("<5")),
            "fewer than 5 people in every window: --min-group 1 shows them",
        ),
        (tally(message(None, "closed")), "nothing seen (closed) in the one window"),
        (
            tally(message("<5"), message(None, "paused"), message(None, "frozen")),
            "fewer than 5 people in 1 of 3 windows: --min-group 1 shows them; nothing seen (frozen) "
            "in 1 of 3 windows; nothing seen (paused) in 1 of 3 windows",
        ),
        (
            tally(message(0), group=1),
            "1 window of 10 s, and nobody in view: edge-run --check says what the detector finds",
        ),
        (tally(message(7, neutral=70)), ""),
        (tally(message(7, neutral=70), message("<5")), ""),
    ],
)
def test_where_nothing_was_counted_the_reason_says_what_to_do(made: Tally, why: str) -> None:
    assert made.why_nothing("a clip of 6 s", 6.0) == why


def test_what_a_command_holds_no_option_is_said_to_change() -> None:
    held = tally(message("<8"), window=30.0, group=8)
    held.window_held = held.group_held = True
    shows = "edge-watch set-min-group changes what a command holds"
    assert (
        held.why_nothing("a run of 6 s", 6.0) == f"fewer than 8 people in the one window: {shows}"
    )
    held.add(message(9, neutral=30))
    assert held.lines()[0].endswith(f"1 of fewer than 8 people ({shows})")
    none = tally(window=30.0)
    none.window_held = True
    assert none.why_nothing("a run of 6 s", 6.0) == (
        "no whole window of 30 s in a run of 6 s: edge-watch set-window changes what a command holds"
    )


def test_a_clip_shorter_than_any_window_is_told_so() -> None:
    why = tally().why_nothing("a clip of 0.4 s", 0.4)
    assert why.endswith("a clip of 0.4 s, and the shortest window is 1 s: give a longer one")


@given(window=st.floats(1, 3600), lasted=st.floats(1, 7200))
def test_the_window_that_is_advised_fits_and_is_allowed(window: float, lasted: float) -> None:
    advised = int(tally(window=window).why_nothing("a clip", lasted).rsplit(" ", 1)[1])
    assert 1 <= advised <= max(1, min(lasted, window))


def test_the_lines_add_up_what_was_published() -> None:
    made = tally(
        message(6, neutral=20, happiness=40),
        message(8, neutral=20, happiness=60),
        message("<5"),
        message(None, "closed"),
    )
    assert made.lines() == [
        "4 windows of 10 s: 2 counted, 1 of fewer than 5 people (--min-group 1 shows them), 1 unseen",
        "7.0 people on average: happiness 71 %, neutral 29 %",
    ]
    assert tally(message("<5")).lines() == []


@pytest.mark.parametrize(
    ("kind", "failed", "stopped", "said"),
    [
        ("file", False, False, ["no whole window of 10 s in a clip of 6 s: give --window 2"]),
        ("folder", False, False, ["no whole window of 10 s in a folder of 6 s: give --window 2"]),
        ("camera", False, False, ["no whole window of 10 s in a run of 6 s: give --window 2"]),
        ("camera", False, True, []),
        ("file", True, False, []),
    ],
)
def test_a_log_gets_the_reason_of_a_run_that_ended_by_itself(
    kind: str, failed: bool, stopped: bool, said: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    narrator = Narrator(tally(), kind)
    for moment in (100.0, 103.0, 106.0):
        narrator.progress(moment)
    narrator.finish(failed, stopped)
    assert caplog.messages == said
