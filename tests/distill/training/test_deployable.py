"""What a bundle wants of a school's set is said before the training."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from distill.training.deployable import say_needs
from edge.base.errors import DataError
from support.command import call
from support.trained import RECIPE

TWO = ("calm", "glad")


def needs(examples: int, truth: list[int], labels: tuple[str, ...] = TWO) -> str:
    said: list[str] = []
    say_needs(labels, examples, np.array(truth), said.append)
    return "\n".join(said)


def test_a_set_that_is_large_enough_needs_nothing() -> None:
    assert needs(512, [0, 1] * 25) == ""


@pytest.mark.parametrize("examples", [6, 298, 511])
def test_a_small_set_is_told_of_calibration(examples: int) -> None:
    said = needs(examples, [0, 1] * 25)
    assert f"{examples} training images, INT8 wants 512" in said
    assert "--calibration DIR" in said
    assert ("no constants for the counting" in said) is (examples < 50)


def test_few_labels_of_valid_and_classes_without_one_are_told() -> None:
    said = needs(600, [0] * 49 + [-1] * 100)
    assert "600 images of train and 49 of valid have a label" in said
    assert "valid has no picture of glad" in said


def test_more_classes_than_a_bundle_takes_are_refused() -> None:
    labels = tuple(f"class-{k}" for k in range(63))
    with pytest.raises(DataError, match="63 classes, a bundle takes 62; merge"):
        needs(600, list(range(63)), labels)
    assert needs(600, list(range(62)), labels[:62]) == ""


def test_it_is_said_before_the_first_epoch(detector_file: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split in ("train", "valid"):
        for label in TWO:
            folder = tmp_path / "school" / split / label
            folder.mkdir(parents=True)
            for i in range(3):
                small = rng.integers(0, 255, (6, 6)).astype(np.uint8)
                image = cv2.resize(small, (64, 64), interpolation=cv2.INTER_CUBIC)
                cv2.imwrite(str(folder / f"{i}.jpg"), image)
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    options = ["--data", tmp_path / "school", "--layout", "folders", "--out", tmp_path / "run"]
    settings = ["--set", "training.epochs=1", "--set", "training.batch=4"]
    done = call("distill.train", tmp_path / "tiny.yaml", *options, *settings, env={})
    assert done.code == 0, done.err
    assert done.out.index("INT8 wants 512") < done.out.index("steps an epoch")
