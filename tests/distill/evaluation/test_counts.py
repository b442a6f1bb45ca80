"""Counts of made-up rooms, on splits where the right answer is known."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from distill.data.crops import Crops
from distill.data.splits import Split
from distill.evaluation import counts, plots
from distill.evaluation.counts import FIGURES, MIXES
from edge.base.errors import DataError
from edge.inference.bundle import SHIPPED
from edge.records import COUNTINGS
from support.command import Done

LABELS = ("a", "b", "c")
NONE = {c: np.zeros(3, dtype=np.float32) for c in COUNTINGS}


def split_of(votes: np.ndarray) -> Split:
    n = len(votes)
    crops = Crops(
        np.zeros((n, 1, 4, 4), np.uint8), [f"{i}.png" for i in range(n)], np.ones(n, bool)
    )
    return Split(crops, votes, LABELS)


def unanimous(count: int = 60) -> Split:
    return split_of(10 * np.eye(3, dtype=np.int64)[np.arange(count) % 3])


def test_a_room_worked_out_by_hand() -> None:
    p = np.array([[0.6, 0.32, 0.08]] * 5 + [[0.24, 0.66, 0.1]] * 5, dtype=np.float32)
    rooms = np.array([[0, 1, 2, 3, 4], [0, 1, 2, 5, 6], [5, 6, 7, 8, 9]])
    by_argmax = counts.publish(p, rooms, LABELS, "dominant")
    assert by_argmax["counts"].tolist() == [[5, 0, 0], [3, 2, 0], [0, 5, 0]]
    assert np.array_equal(by_argmax["person_seconds"], by_argmax["counts"])
    by_sum = counts.publish(p, rooms, LABELS, "expected")
    # Sums 3.0 1.6 0.4; 2.28 2.28 0.44; 1.2 3.3 0.5: the largest remainders are rounded up.
    assert by_sum["counts"].tolist() == [[3, 2, 0], [2, 2, 1], [1, 3, 1]]
    assert by_sum["person_seconds"] == pytest.approx(
        np.array([[3.0, 1.6, 0.4], [2.3, 2.3, 0.4], [1.2, 3.3, 0.5]])
    )


def test_scores_of_a_split_worked_out_by_hand() -> None:
    """Everybody is `a` by seven of ten votes, and read as `a` with 0.9: argmax puts three of ten into
    the wrong cell, the sum of probabilities two."""
    split = split_of(np.array([[7, 3, 0]] * 20))
    p = np.tile([0.9, 0.1, 0.0], (20, 1))
    found = {
        (row.truth, row.counting): row
        for row in counts.measure(split, p, NONE, [10], rooms=5)
        if row.figure == "counts"
    }
    for (truth, counting), wrong in {
        ("votes", "dominant"): 0.3,
        ("votes", "expected"): 0.2,
        ("labels", "dominant"): 0.0,
        ("labels", "expected"): -0.1,  # `b` instead of `a`
    }.items():
        row = found[truth, counting]
        for mix in MIXES:
            e = row.wrong[mix]
            assert (e.value, e.low, e.high) == pytest.approx((abs(wrong),) * 3)
            assert row.bias[mix]["a"].value == pytest.approx(10 * wrong)
            assert row.bias[mix]["b"].value == pytest.approx(-10 * wrong)
            assert row.absolute[mix]["b"].value == pytest.approx(10 * abs(wrong))
        assert row.slope == {}, "every room has as many of each"


def test_a_network_that_is_always_right_and_sure_makes_no_error() -> None:
    split = unanimous()
    scores = counts.measure(split, split.targets.astype(float), NONE, [3, 10], rooms=40)
    assert len(scores) == 2 * 2 * len(COUNTINGS) * len(FIGURES)
    for row in scores:
        assert all(e.value == e.high == 0 for e in row.wrong.values())
        assert [e.value for e in row.slope.values()] == pytest.approx([1, 1, 1])


def test_a_network_that_knows_nothing_follows_nobody() -> None:
    split = unanimous()
    for row in counts.measure(split, np.full((60, 3), 1 / 3), NONE, [9], rooms=40):
        assert [e.value for e in row.slope.values()] == pytest.approx([0, 0, 0])


@pytest.mark.slow
def test_slopes_are_recall_less_what_others_leak_and_lie_in_their_interval() -> None:
    """Half of `c` is read as `a`: published `c` follows true `c` with slope 1/2."""
    split = unanimous(600)
    p = split.targets.astype(float)
    p[2:300:3] = [1.0, 0.0, 0.0]
    rows = counts.measure(split, p, NONE, [20], rooms=500)
    row = next(row for row in rows if row.counting == "dominant" and row.figure == "counts")
    assert row.slope["c"].value == pytest.approx(0.5, abs=0.03)
    assert row.slope["c"].low < 0.5 < row.slope["c"].high
    assert row.slope["b"].value == pytest.approx(1)
    assert row.wrong["own"].low < 1 / 6 < row.wrong["own"].high
    assert row.bias["own"]["c"].value == pytest.approx(-20 / 6, abs=0.3)


def test_each_counting_reads_by_its_own_offsets() -> None:
    split = unanimous()
    p = np.full((60, 3), 1 / 3)
    offsets = {**NONE, "dominant": np.array([0, 0, 1], dtype=np.float32)}
    rows = counts.measure(split, p, offsets, [9], rooms=5)
    of_c = {
        row.counting: row.bias["own"]["c"].value - row.bias["own"]["b"].value
        for row in rows
        if row.figure == "counts" and row.truth == "labels"
    }
    assert of_c["dominant"] - of_c["expected"] == pytest.approx(9)


@pytest.mark.parametrize("mix", MIXES)
def test_rooms_have_their_size_their_mix_and_their_seed(mix: counts.Mix) -> None:
    truth = np.array([0] * 80 + [1] * 20)  # nobody is class 2
    rooms = counts.draw_rooms(truth, 3, 50, 400, mix, seed=1)
    assert rooms.shape == (400, 50)
    share = (truth[rooms] == 0).mean(axis=1)
    assert share.mean() == pytest.approx(0.5 if mix == "far" else 0.8, abs=0.05)
    assert {"own": 0.04, "near": 0.08, "far": 0.2}[mix] < share.std()
    assert np.array_equal(rooms, counts.draw_rooms(truth, 3, 50, 400, mix, seed=1))
    assert not np.array_equal(rooms, counts.draw_rooms(truth, 3, 50, 400, mix, seed=2))


def test_bad_splits_are_refused_and_labels_alone_counted_by_labels() -> None:
    split = unanimous(12)
    p = split.targets.astype(float)
    with pytest.raises(
        DataError, match="a room of 25 is larger than the split, which has 12 images"
    ):
        counts.measure(split, p, NONE, [10, 25], rooms=2)
    with pytest.raises(DataError, match="no image has a label to count rooms by"):
        counts.measure(split_of(np.zeros((12, 3), dtype=np.int64)), p, NONE, [10], rooms=2)
    alone = counts.measure(split_of(split.votes // 10), p, NONE, [10], rooms=2)
    assert {row.truth for row in alone} == {"labels"}
    assert "votes" not in counts.table(alone, 2)


@pytest.mark.slow
def test_the_table_fits_a_terminal_and_the_plot_is_an_image(tmp_path: Path) -> None:
    split = unanimous(300)
    p = 0.7 * split.targets.astype(float) + 0.1
    scores = counts.measure(split, p, NONE, [10, 100], rooms=20)
    text = counts.table(scores, 20)
    assert max(map(len, text.splitlines())) <= 80
    assert " 100 far" in text
    assert json.dumps(counts.as_entry(scores, 20, 0), allow_nan=False)
    plots.counts(tmp_path / "counts.png", scores, "t")
    assert cv2.imread(str(tmp_path / "counts.png")).std() > 5, "not an empty sheet"


@pytest.mark.slow
def test_the_command_counts_a_data_set_of_labels_and_refuses_a_room_too_large(
    detector_file: Path, tmp_path: Path, command: Callable[..., Done]
) -> None:
    from edge.inference.bundle import load_bundle

    rng = np.random.default_rng(0)
    for split in ("train", "valid", "test"):
        for label in load_bundle(SHIPPED).labels:
            folder = tmp_path / "data" / split / label
            folder.mkdir(parents=True)
            for i in range(2):
                image = rng.integers(0, 256, (48, 48)).astype(np.uint8)
                cv2.imwrite(str(folder / f"{split}{label}{i}.png"), image)
    options = ["--bundle", SHIPPED, "--data", tmp_path / "data", "--layout", "folders", "--counts"]
    small = ["--rooms", "3", "--room-sizes", "10", "--json", tmp_path / "s.json"]
    done = command("distill.evaluation.evaluate", *options, *small)
    assert done.code == 0, done.err
    assert "the data has no votes: rooms are counted against the labels alone" in done.out
    entry = json.loads((tmp_path / "s.json").read_text())[-1]["counts"]
    assert {row["room"] for row in entry["scores"]} == {10}
    done = command("distill.evaluation.evaluate", *options)
    assert done.code == 1
    assert "a room of 100 is larger than the split, which has 16 images" in done.last
    done = command("distill.evaluation.evaluate", *options, "--rooms", "0")
    assert done.code == 2
    assert "0 is not a whole number above 0" in done.last
