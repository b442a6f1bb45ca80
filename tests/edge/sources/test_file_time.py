from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.sources.file_time import MAX_GAP_SECONDS, FileTime


def moments(stamps: list[float], rate: float = 10.0) -> tuple[list[float], int]:
    clock = FileTime(rate)
    return [round(clock.take(stamp), 6) for stamp in stamps], clock.cuts


def test_a_file_with_stamps_keeps_its_own_time_also_where_pictures_were_dropped() -> None:
    assert moments([5.0, 5.1, 5.2, 7.5, 60.0]) == ([0.0, 0.1, 0.2, 2.5, 55.0], 0)


@pytest.mark.parametrize("jump", [61.0, 91_843.0, 1_764_000_000.0, -2.0, -91_843.0])
def test_a_jump_is_a_cut_and_time_goes_on_evenly(jump: float) -> None:
    stamps = [*(i / 10 for i in range(10)), *(jump + i / 10 for i in range(10, 20))]
    found, cuts = moments(stamps)
    assert found == [round(i / 10, 6) for i in range(20)]
    assert cuts == 1


def test_one_wrong_stamp_costs_two_cuts_and_no_time() -> None:
    found, cuts = moments([0.0, 0.1, 1e9, 0.3, 0.4])
    assert found == [0.0, 0.1, 0.2, 0.3, 0.4]
    assert cuts == 2


@pytest.mark.parametrize("none", [math.nan, math.inf, -math.inf, -9.223372036854776e15])
def test_a_picture_without_a_stamp_lies_between_its_neighbours(none: float) -> None:
    assert moments([0.0, none, 0.2, 0.3]) == ([0.0, 0.1, 0.2, 0.3], 0)
    assert moments([none, none, 0.2, 0.3]) == ([0.0, 0.1, 0.2, 0.3], 0)
    assert moments([none] * 4) == ([0.0, 0.1, 0.2, 0.3], 0)


def test_stamps_that_are_all_0_or_step_back_a_little_are_spaced_evenly() -> None:
    assert moments([0.0] * 4) == ([0.0, 0.1, 0.2, 0.3], 0)
    found, cuts = moments([0.0, 0.1, 0.3, 0.2, 0.4])
    assert found == sorted(found)
    assert cuts == 0
    assert found[-1] == pytest.approx(0.4, abs=0.1)


@pytest.mark.parametrize("rate", [0.0, -5.0, 1e-9, 1e9, math.nan, math.inf])
def test_a_rate_that_cannot_be_is_none(rate: float) -> None:
    clock = FileTime(rate)
    assert clock.take(0.0) == 0.0
    assert clock.step == pytest.approx(1 / 30)


@given(
    st.lists(st.floats(width=64) | st.floats(0, 100) | st.sampled_from([0.0, 1e9, -1e9])),
    st.floats(),
)
def test_time_never_steps_back_and_never_leaps(stamps: list[float], rate: float) -> None:
    clock = FileTime(rate)
    found = [clock.take(stamp) for stamp in stamps]
    assert all(0 < b - a <= MAX_GAP_SECONDS + 1e-3 for a, b in itertools.pairwise(found))
    assert not found or found[0] == 0.0
    assert 0 < clock.step <= MAX_GAP_SECONDS
