"""A model is scored on data with other classes over those that both have, and that is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.data.crops import Crops
from distill.data.splits import Split, majority
from distill.evaluation.shared import columns, explain, over, restrict, shared_classes
from distill.models.predict import Predictor
from edge.base.errors import DataError
from edge.inference.bundle import SHIPPED, CropSpec
from support.command import call
from support.paths import ROOT

MODEL = ("calm", "glad", "cross")


def split_of(labels: tuple[str, ...], truth: list[int], extra: int = 0) -> Split:
    votes = np.eye(len(labels) + extra, dtype=np.int64)[truth]
    names = [f"{i}.jpg" for i in range(len(truth))]
    pixels = np.zeros((len(truth), 1, 8, 8), np.uint8)
    return Split(Crops(pixels, names, np.ones(len(truth), bool)), votes, labels)


def test_images_of_other_classes_are_left_out_and_votes_for_none_stay() -> None:
    data = ("glad", "shy", "calm")
    split = split_of(data, [0, 1, 2, 3, 0], extra=1)
    both = over(split, shared_classes(MODEL, data))
    assert both.labels == ("calm", "glad")
    assert majority(both.votes, 2).tolist() == [1, -1, 0, -1, 1]
    probabilities = np.array([[0.2, 0.6, 0.2], [1, 0, 0], [0.1, 0.2, 0.7], [1, 0, 0], [0, 0, 1.0]])
    lines, entry = explain(both, data, MODEL, probabilities)
    assert lines == [
        "scored over the 2 classes that model and data share: calm, glad",
        "  left out: 1 images of shy, which the model lacks",
        "  not asked for: cross, which the data lack; the model's own answer is one of these for "
        "66.67 % of the images",
    ]
    assert entry == {
        "shared_classes": ["calm", "glad"],
        "left_out": 1,
        "answers_not_asked_for": 0.66667,
    }


def test_the_same_classes_in_any_order_are_scored_as_ever() -> None:
    data = ("cross", "calm", "glad")
    split = split_of(data, [0, 1, 2])
    both = over(split, shared_classes(MODEL, data))
    assert np.array_equal(both.votes, split.ordered(MODEL, "the model").votes)
    assert explain(both, data, MODEL, np.eye(3)) == ([], {})


@pytest.mark.parametrize("data", [("shy", "odd"), ("calm", "odd"), ("calm",)])
def test_fewer_than_two_shared_classes_are_refused(data: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match="fewer than two are shared"):
        shared_classes(MODEL, data)


@given(st.lists(st.lists(st.floats(0.001, 1), min_size=3, max_size=3), min_size=1, max_size=5))
def test_restricted_probabilities_sum_to_one_and_keep_their_order(rows: list[list[float]]) -> None:
    whole = np.array(rows) / np.sum(rows, axis=1, keepdims=True)
    spec = CropSpec(8, 1, ((0.0, 0.0),) * 5)
    some = restrict(Predictor(MODEL, spec, lambda pixels: whole, "fp32"), ("cross", "calm"))
    found = some.predict(np.zeros((len(rows), 1, 8, 8), np.uint8))
    assert some.labels == ("cross", "calm")
    assert np.allclose(found.sum(axis=1), 1)
    assert np.allclose(found[:, 0] * whole[:, 0], found[:, 1] * whole[:, 2])
    assert columns(whole, MODEL, MODEL) is whole


def test_the_shipped_bundle_on_a_test_split_of_three_classes(
    detector_file: Path, tmp_path: Path
) -> None:
    for label in ("happy", "sad", "cross"):
        folder = tmp_path / "school/test" / label
        folder.mkdir(parents=True)
        for picture in (ROOT / "demo/pictures").glob("portrait-*.jpg"):
            shutil.copy(picture, folder)
    scores = tmp_path / "scores.json"
    options = ["--data", tmp_path / "school", "--layout", "folders", "--split", "test"]
    more = ["--json", scores, "--counts", "--rooms", "2", "--room-sizes", "3"]
    done = call("distill.evaluation.evaluate", "--bundle", SHIPPED, *options, *more, env={})
    assert done.code == 0, done.err
    assert "scored over the 2 classes that model and data share: happiness, sadness" in done.out
    assert "left out: 3 images of cross, which the model lacks" in done.out
    entries = json.loads(scores.read_text())
    assert entries[0]["n"] == 6
    assert entries[0]["excluded"] == 3
    assert set(entries[0]["recall"]) == {"happiness", "sadness"}
    assert entries[1]["shared_classes"] == ["happiness", "sadness"]
