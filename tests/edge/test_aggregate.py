from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.aggregate import Window, largest_remainder, merge_small_cells, round_half_up
from edge.records import Counting, Expression, Frame, Life, Reading, Tick

LABELS = ("calm", "glad", "sad")
PIXELS = np.zeros((4, 4, 3), dtype=np.uint8)


def people(*labels: int | None, sure: float = 0.8, life: Life = Life.ALIVE) -> list[Expression]:
    found = []
    for number, label in enumerate(labels):
        p = None
        if label is not None:
            p = np.full(3, (1 - sure) / 2, dtype=np.float32)
            p[label] = sure
        found.append(Expression(number, p, life))
    return found


def frame(time: float, utc: float | None = None, dropped: int = 0) -> Frame:
    return Frame(PIXELS, time, time if utc is None else utc, dropped)


def play(window: Window, *moments: tuple[float, list[Expression]], end: float) -> list[Reading]:
    readings = []
    for time, expressions in moments:
        readings += window.add(frame(time), expressions)
    return readings + window.tick(Tick(end, end))


def test_counts_are_averages_over_time_not_over_pictures() -> None:
    window = Window(LABELS, 10, 1, file_start=0.0, max_gap_seconds=10, counting="dominant")
    # Two people for 9 s, shown in one picture; four people for 1 s, shown in ten.
    moments = [(0.0, people(0, 1))]
    moments += [(9 + i / 10, people(0, 1, 1, 2)) for i in range(10)]
    (reading,) = play(window, *moments, end=10.0)
    assert reading.faces_mean == pytest.approx(2.2)
    assert reading.faces_max == 4
    assert reading.counts == {"calm": 1, "glad": 1, "sad": 0, "unclassified": 0}
    assert reading.person_seconds == {"calm": 10, "glad": 11, "sad": 1, "unclassified": 0}


def test_counts_add_up_to_the_mean_rounded_half_up_with_ties_in_label_order() -> None:
    window = Window(LABELS, 2, min_group=1, file_start=0.0)
    moments = [(0.0, people(0, 1, 2)), (1.0, people(0, 1))]
    (reading,) = play(window, *moments, end=2.0)
    assert reading.faces_mean == 2.5
    assert reading.counts == {"calm": 1, "glad": 1, "sad": 1, "unclassified": 0}
    assert largest_remainder([0.5, 0.5, 0.5, 0.5], 2) == [1, 1, 0, 0]
    assert [round_half_up(x) for x in (0.5, 1.5, 2.4999, 2.5)] == [1, 2, 2, 3]


def test_a_face_never_read_is_unclassified_and_a_low_answer_is_counted_as_unsure() -> None:
    window = Window(LABELS, 1, min_group=1, file_start=0.0, low_confidence=0.5)
    (reading,) = play(window, (0.0, [*people(0, None), *people(1, sure=0.4)]), end=1.0)
    assert reading.counts == {"calm": 1, "glad": 1, "sad": 0, "unclassified": 1}
    assert reading.low_confidence == pytest.approx(1 / 3, abs=0.01)


def test_expected_counts_are_sums_of_probabilities_and_dominant_ones_best_guesses() -> None:
    moments = [(0.0, people(0, 0, 0, 0, 1, None, sure=0.5))]
    (best,) = play(Window(LABELS, 1, 1, file_start=0.0, counting="dominant"), *moments, end=1.0)
    assert best.counts == {"calm": 4, "glad": 1, "sad": 0, "unclassified": 1}
    (mean,) = play(Window(LABELS, 1, 1, file_start=0.0, counting="expected"), *moments, end=1.0)
    # 4 x 0.5 + 0.25 calm, 0.5 + 4 x 0.25 glad, 5 x 0.25 sad.
    assert mean.counts == {"calm": 2, "glad": 2, "sad": 1, "unclassified": 1}
    assert mean.person_seconds == mean.counts
    assert (mean.faces_mean, mean.low_confidence) == (best.faces_mean, best.low_confidence)


@given(st.lists(st.lists(st.floats(0.01, 1.0), min_size=3, max_size=3), min_size=1, max_size=30))
def test_one_persons_change_moves_an_expected_count_by_at_most_one_and_a_rounding(
    rows: list[list[float]],
) -> None:
    def counts(rows: list[list[float]]) -> dict[str, int]:
        window = Window(LABELS, 1, 1, file_start=0.0, counting="expected")
        faces = [
            Expression(i, np.array(row, np.float32) / np.float32(sum(row)), Life.ALIVE)
            for i, row in enumerate(rows)
        ]
        (reading,) = play(window, (0.0, faces), end=1.0)
        assert reading.counts is not None
        return reading.counts

    before, after = counts(rows), counts([[0.01, 0.01, 1.0], *rows[1:]])
    assert sum(before.values()) == sum(after.values()) == len(rows)
    assert all(abs(before[label] - after[label]) <= 2 for label in LABELS)


def test_one_moment_below_the_group_suppresses_the_window() -> None:
    window = Window(LABELS, 10, min_group=3, file_start=0.0, max_gap_seconds=10)
    moments = [(0.0, people(0, 1, 2, 2)), (5.0, people(0, 1)), (5.03, people(0, 1, 2, 2))]
    first, second = play(window, *moments, end=20.0)[:2]
    assert first.suppressed
    assert first.counts is first.person_seconds is first.low_confidence is None
    assert second.seen == pytest.approx(0.503, abs=0.01)


def test_group_of_one_switches_suppression_and_merging_off() -> None:
    window = Window(LABELS, 2, min_group=1, file_start=0.0)
    (reading,) = play(window, (0.0, []), (1.0, people(2)), end=2.0)
    assert not reading.suppressed
    assert reading.counts == {"calm": 0, "glad": 0, "sad": 1, "unclassified": 0}


def test_small_cells_go_into_other_and_other_is_never_small() -> None:
    cells = {"calm": 4, "glad": 1, "sad": 2, "unclassified": 0}
    # glad alone would make `other` a cell of one: the smallest remaining cell joins it.
    assert merge_small_cells(cells, 2) == {
        "calm": 4,
        "glad": 0,
        "sad": 0,
        "unclassified": 0,
        "other": 3,
    }
    cells = {"calm": 4, "glad": 1, "sad": 1, "unclassified": 0}
    assert merge_small_cells(cells, 2)["other"] == 2


def test_time_of_a_label_that_is_not_shown_stands_under_no_name() -> None:
    window = Window(LABELS, 10, 3, 2, file_start=0.0, max_gap_seconds=10, counting="dominant")
    moments = [(0.0, people(0, 0, 0, 0)), (9.0, people(0, 0, 0, 1))]
    (reading,) = play(window, *moments, end=10.0)
    assert reading.counts == {"calm": 4, "glad": 0, "sad": 0, "unclassified": 0, "other": 0}
    # Not in `other` either, which would be one person's second, nor missing from the sum.
    assert reading.person_seconds == {**dict.fromkeys(reading.counts, 0), "calm": 40}
    window = Window(LABELS, 10, 3, 2, file_start=0.0, max_gap_seconds=10, counting="dominant")
    (reading,) = play(window, (0.0, people(0, 0, 0, 1, 2)), (9.0, people(0, 0, 0, 1, 1)), end=10.0)
    assert reading.counts is not None
    assert reading.counts["other"] == 2
    assert reading.person_seconds == {**dict.fromkeys(reading.counts, 0), "calm": 30, "other": 20}


def test_low_confidence_of_fewer_than_a_cell_is_not_told() -> None:
    shares = []
    for unsure in range(6):
        window = Window(LABELS, 1, 3, 2, file_start=0.0, low_confidence=0.5)
        shown = [*people(*[0] * unsure, sure=0.4), *people(*[1] * (5 - unsure))]
        (reading,) = play(window, (0.0, shown), end=1.0)
        shares.append(reading.low_confidence)
    assert shares == [0.0, 0.0, 0.4, 0.6, 1.0, 1.0]


def test_photographs_fill_neither_a_group_nor_a_cell() -> None:
    wall = people(0, 0, 1, 1, 2, life=Life.UNPROVEN) + people(0, 1, life=Life.STILL)
    wall = [Expression(100 + n, one.probabilities, one.life) for n, one in enumerate(wall)]
    window = Window(LABELS, 1, 5, 2, file_start=0.0)
    (alone,) = play(window, (0.0, [*people(2), *wall]), end=1.0)
    assert (alone.suppressed, alone.counts) == (True, None)
    window = Window(LABELS, 1, 5, 2, file_start=0.0)
    (five,) = play(window, (0.0, [*people(0, 0, 0, 0, 1), *wall]), end=1.0)
    assert (five.faces_mean, five.faces_max) == (5.0, 5)
    assert five.counts is not None
    assert five.counts["glad"] == 0, "one person's, though two photographs smile too"


# Of two who look calm and two who look glad, each 0.8 sure, in 10 s: 10 x (2 x 0.8 + 2 x 0.1) a label;
# the third's 4 are below a cell and go to the largest.
@pytest.mark.parametrize(("counting", "calm", "glad"), [("dominant", 20, 20), ("expected", 22, 18)])
def test_who_comes_to_life_counts_from_where_he_was_first_seen(
    counting: Counting, calm: int, glad: int
) -> None:
    window = Window(LABELS, 10, 3, 2, file_start=0.0, counting=counting)
    moments = [
        (float(t), people(0, 0, 1, 1, life=Life.ALIVE if t >= 4 else Life.UNPROVEN))
        for t in range(20)
    ]
    readings = play(window, *moments, end=20.0)
    assert [(r.faces_mean, r.suppressed) for r in readings] == [(4.0, False), (4.0, False)]
    assert readings[0].person_seconds == {
        "calm": calm,
        "glad": glad,
        "sad": 0,
        "unclassified": 0,
        "other": 0,
    }


def test_who_lost_his_life_does_not_count_from_then_on() -> None:
    window = Window(LABELS, 10, 2, 2, file_start=0.0)
    moments = []
    for t in range(10):
        late = people(1, life=Life.ALIVE if t < 4 else Life.UNPROVEN)[0]
        moments.append((float(t), [*people(0, 0), Expression(9, late.probabilities, late.life)]))
    (reading,) = play(window, *moments, end=10.0)
    assert (reading.faces_mean, reading.faces_max) == (2.4, 3)


def test_without_a_group_every_face_counts_that_is_not_still() -> None:
    window = Window(LABELS, 1, 1, file_start=0.0)
    shown = [*people(0, life=Life.UNPROVEN), *people(1), *people(2, life=Life.STILL)]
    (reading,) = play(window, (0.0, shown), end=1.0)
    assert reading.counts == {"calm": 1, "glad": 1, "sad": 0, "unclassified": 0}


def test_windows_of_a_camera_start_at_multiples_of_utc_and_the_first_whole_one_is_published() -> (
    None
):
    window = Window(LABELS, 10, min_group=1)
    offset = 1_700_000_003.0 - 50.0  # UTC minus the monotonic clock
    readings = []
    for i in range(0, 300):
        t = 50.0 + i / 10
        readings += window.add(frame(t, t + offset), people(0))
    assert [r.start % 10 for r in readings] == [0.0, 0.0]
    assert readings[0].start == 1_700_000_010.0
    assert all(r.seen == 1.0 and r.frames == 100 for r in readings)


def test_a_step_of_the_clock_publishes_no_partial_window_and_no_false_length() -> None:
    window = Window(LABELS, 10, min_group=1)
    readings = []
    for i in range(0, 700):
        t = i / 10
        utc = t + 1000.0 + (50 * 365 * 86400 + 3.3 if t >= 25.0 else 0.0)
        readings += window.add(frame(t, utc), people(0))
    assert all(r.end - r.start == 10 and r.seen == 1.0 for r in readings)
    assert len(readings) == 6
    assert [r.start for r in readings] == sorted(r.start for r in readings)


def test_without_a_camera_every_window_still_makes_a_reading() -> None:
    window = Window(LABELS, 10, min_group=5)
    readings = []
    for i in range(0, 70):
        readings += window.tick(Tick(i / 2, 1000 + i / 2, "away"))
    assert len(readings) == 3
    assert all(r.faces_mean is None and r.counts is None and r.seen == 0.0 for r in readings)
    assert {r.camera for r in readings} == {"away"}


def test_a_gap_longer_than_allowed_is_not_seen() -> None:
    window = Window(LABELS, 10, min_group=1, file_start=0.0, max_gap_seconds=2)
    (reading,) = play(window, (0.0, people(0)), (8.0, people(0)), end=10.0)
    assert reading.seen == pytest.approx(0.4)


def test_a_window_that_did_not_end_is_not_published() -> None:
    window = Window(LABELS, 10, min_group=1, file_start=0.0)
    assert play(window, (0.0, people(0)), (5.0, people(0)), end=9.99) == []


COUNTINGS: tuple[Counting, ...] = ("expected", "dominant")
moments = st.lists(
    st.tuples(
        st.floats(0.01, 1.5),
        st.lists(st.sampled_from([0, 1, 2, None]), max_size=12),
    ),
    min_size=1,
    max_size=40,
)


@given(
    moments,
    st.integers(1, 6),
    st.integers(1, 4),
    st.sampled_from([1.0, 2.0, 2.5]),
    st.sampled_from(COUNTINGS),
)
def test_what_is_published_keeps_the_rules(
    steps: list[tuple[float, list[int | None]]],
    group: int,
    cell: int,
    seconds: float,
    counting: Counting,
) -> None:
    cell = min(cell, group) if group > 1 else cell
    window = Window(LABELS, seconds, group, cell, file_start=0.0, counting=counting)
    time, shown, readings = 0.0, [], []
    for span, labels in steps:
        shown.append((time, len(labels)))
        readings += window.add(frame(time), people(*labels))
        time += span
    readings += window.tick(Tick(time, time))
    assert len(readings) == math.floor(time / seconds + 1e-9)
    for reading in readings:
        inside = [n for t, n in shown if reading.start <= t < reading.end - 1e-9]
        if reading.faces_mean is None:
            assert reading.counts is None
            continue
        assert reading.faces_max is not None
        assert reading.faces_mean <= reading.faces_max + 1e-9
        if group > 1 and inside and min(inside) < group and reading.seen == 1.0:
            assert reading.suppressed
        if reading.suppressed:
            assert reading.counts is reading.person_seconds is reading.low_confidence is None
            continue
        assert reading.counts is not None
        assert reading.person_seconds is not None
        assert sum(reading.counts.values()) == round_half_up(reading.faces_mean)
        assert sum(reading.counts.values()) <= reading.faces_max
        assert all(n >= 0 for n in reading.counts.values())
        if group > 1:
            assert not [n for n in reading.counts.values() if 0 < n < cell]
            hidden = [k for k, n in reading.counts.items() if n == 0 and k != "other"]
            assert all(reading.person_seconds[label] == 0 for label in hidden)


faces = st.lists(st.lists(st.integers(1, 50), min_size=3, max_size=3), min_size=1, max_size=12)


@given(faces, st.lists(st.integers(1, 50), min_size=3, max_size=3), st.sampled_from(COUNTINGS))
def test_one_persons_expression_moves_no_total_and_no_cell_by_more_than_two(
    shares: list[list[int]], other: list[int], counting: Counting
) -> None:
    """Dominant: one person from one cell to another. Expected: rounding may add to what he moves."""
    counted = []
    for room in (shares, [other, *shares[1:]]):
        window = Window(LABELS, 10, 1, file_start=0.0, max_gap_seconds=10, counting=counting)
        found = [np.asarray(row, np.float32) / np.float32(sum(row)) for row in room]
        shown = [Expression(number, p, Life.ALIVE) for number, p in enumerate(found)]
        (reading,) = play(window, (0.0, shown), end=10.0)
        assert reading.counts is not None
        counted.append(list(reading.counts.values()))
    moved = [abs(a - b) for a, b in zip(*counted, strict=True)]
    assert sum(counted[0]) == sum(counted[1]) == len(shares)
    assert max(moved) <= (1 if counting == "dominant" else 2)
    assert counting == "expected" or sum(moved) <= 2
