"""A tiny student trained for real on generated data; killed and resumed it ends the same."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from support import ROOT, Done

from distill.augment import augment, move
from distill.data import Split
from distill.evaluate import count_undetected
from distill.recipe import Augmentation, load_recipe
from distill.train import choosable, learnable, use_bf16
from edge.crops import Crops
from edge.errors import SettingsError

RECIPE = """
name: tiny
crop:
  size: 32
  template: [[10, 11], [22, 11], [16, 18], [11, 25], [21, 25]]
student: {widths: [4, 6, 8, 8], depths: [1, 1, 1], width: 8, heads: 2}
training: {epochs: 4, batch: 32, learning_rate: 0.01, seed: 3, average: 0.9}
"""


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(RECIPE)
    return path


def arguments(recipe: Path, data: Path, out: Path) -> list[str]:
    return [str(recipe), "--data", str(data), "--layout", "ferplus", "--out", str(out)]


def weights(path: Path) -> dict[str, torch.Tensor]:
    return dict(torch.load(path, weights_only=True)["average"])


def test_training_learns_is_killed_and_resumes_to_the_same_result(
    detector_file: Path,
    recipe: Path,
    tiny_ferplus: Path,
    tmp_path: Path,
    command: Callable[..., Done],
) -> None:
    whole = tmp_path / "whole"
    done = command("distill.train", *arguments(recipe, tiny_ferplus, whole))
    assert done.code == 0, done.err
    rows = list(csv.DictReader((whole / "log.csv").open()))
    assert [int(row["epoch"]) for row in rows] == [0, 1, 2, 3]
    assert float(rows[-1]["valid_accuracy"]) > 0.9
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])

    broken = tmp_path / "broken"
    run = [sys.executable, "-m", "distill.train", *arguments(recipe, tiny_ferplus, broken)]
    child = subprocess.Popen(run, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 100
    while not (broken / "last.pt").is_file():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()
    assert child.returncode == -signal.SIGKILL, "killed before it was done"
    done = command("distill.train", *arguments(recipe, tiny_ferplus, broken), "--resume")
    assert done.code == 0, done.err
    assert "epochs 0..3" not in done.out, "it went on, it did not start again"
    one, other = weights(whole / "last.pt"), weights(broken / "last.pt")
    for name, value in one.items():
        assert torch.equal(value, other[name]), name
    again = [
        {k: v for k, v in row.items() if k != "seconds"}
        for row in csv.DictReader((broken / "log.csv").open())
    ]
    assert again == [{k: v for k, v in row.items() if k != "seconds"} for row in rows]

    chosen = torch.load(broken / "best.pt", weights_only=True)
    best_row = max(rows, key=lambda row: float(row["valid_accuracy"]))
    assert chosen["epoch"] == int(best_row["epoch"])
    assert chosen["valid_accuracy"] == pytest.approx(float(best_row["valid_accuracy"]), abs=1e-5)

    other_recipe = tmp_path / "other.yaml"
    other_recipe.write_text(RECIPE.replace("seed: 3", "seed: 4"))
    done = command("distill.train", *arguments(other_recipe, tiny_ferplus, broken), "--resume")
    assert done.code == 1
    assert "is another run (other recipe)" in done.last
    (broken / "last.pt").write_bytes(b"half a file")
    done = command("distill.train", *arguments(recipe, tiny_ferplus, broken), "--resume")
    assert "or is damaged" in done.last


def test_every_shipped_recipe_loads() -> None:
    recipes = sorted((ROOT / "distill" / "recipes").glob("*.yaml"))
    assert recipes
    for path in recipes:
        recipe = load_recipe(path)
        assert recipe.crop.spec().size % 8 == 0


def test_a_typo_in_a_recipe_names_its_path(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE.replace("epochs", "epoch"))
    with pytest.raises(SettingsError, match=r"'training\.epoch'; did you mean 'training\.epochs'"):
        load_recipe(path)


def test_data_that_is_not_there_is_one_line(
    command: Callable[..., Done], recipe: Path, tmp_path: Path, detector_file: Path
) -> None:
    done = command("distill.train", *arguments(recipe, tmp_path / "absent", tmp_path / "out"))
    assert done.code == 1
    assert "is no folder" in done.last


def test_augmentation_repeats_by_its_generator_and_stays_a_picture() -> None:
    faces = torch.rand(16, 1, 32, 32) * 255
    one, same, other = (
        augment(faces, Augmentation(), torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert one.shape == faces.shape
    assert float(one.min()) >= 0
    assert float(one.max()) <= 255


def test_augmentation_switched_off_changes_nothing_but_the_mirror() -> None:
    off = Augmentation(
        rotate_degrees=0.0,
        scale=1.0,
        shift=0.0,
        contrast=1.0,
        brightness=0.0,
        gamma=1.0,
        shrink_share=0.0,
        noise=0.0,
        erase_share=0.0,
    )
    faces = torch.rand(32, 1, 32, 32) * 255
    changed = augment(faces, off, torch.Generator().manual_seed(0))
    kept = (changed - faces).abs().amax(dim=(1, 2, 3)) < 0.1
    mirrored = (changed - faces.flip(3)).abs().amax(dim=(1, 2, 3)) < 0.1
    assert bool((kept | mirrored).all())
    assert bool(kept.any())
    assert bool(mirrored.any())


def test_twins_and_pictures_without_a_vote_are_not_learned_from_nor_chosen_on() -> None:
    votes = np.zeros((4, 4), dtype=np.int64)
    votes[:, 0] = 10
    votes[2] = [1, 0, 0, 9]  # not a face
    pixels = np.zeros((4, 1, 8, 8), np.uint8)
    crops = Crops(pixels, ["a", "twin", "no-face", "b"], np.array([True, True, True, False]))
    split = Split(crops, votes, ("calm", "glad"))
    assert learnable(split, {"twin"}).rows.tolist() == [0, 3]
    assert learnable(split, {"twin"}).digest != learnable(split, set()).digest
    assert choosable(split, {"twin"}).tolist() == [0, -1, -1, 0]
    p = np.tile([0.9, 0.1], (4, 1))
    share, accuracy = count_undetected(split, p, "majority-8")
    assert (share, accuracy) == pytest.approx((1 / 3, 2 / 3))


def test_move_turns_and_mirrors_without_shear() -> None:
    """Distances between marks keep their ratio, whatever the angle and the mirror."""
    only = Augmentation(rotate_degrees=30.0, scale=1.0, shift=0.0)
    faces = torch.zeros(64, 1, 65, 65)
    marks = [(20, 20), (20, 44), (44, 32)]
    for value, (y, x) in zip((60.0, 120.0, 240.0), marks, strict=True):
        faces[:, 0, y - 2 : y + 3, x - 2 : x + 3] = value
    moved = move(faces, only, torch.Generator().manual_seed(0))[:, 0].numpy()
    y, x = np.mgrid[0:65, 0:65]
    mirrored = []
    for picture in moved:
        points = []
        for low, high in ((40, 90), (90, 180), (180, 260)):
            inside = (picture > low) & (picture < high)
            # The edges of brighter marks pass through darker values: keep the main spot.
            _, _, stats, middles = cv2.connectedComponentsWithStats(inside.astype(np.uint8))
            points.append(middles[1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())])
        a, b, c = points
        assert np.linalg.norm(a - b) == pytest.approx(24, abs=1.5)
        assert np.linalg.norm(a - c) == pytest.approx(np.hypot(24, 12), abs=1.5)
        assert np.linalg.norm(b - c) == pytest.approx(np.hypot(24, 12), abs=1.5)
        (x1, y1), (x2, y2) = b - a, c - a
        mirrored.append(x1 * y2 - y1 * x2 < 0)
    assert 10 < sum(mirrored) < 54


def test_a_recipe_that_cannot_be_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    for old, new, words in (
        ("heads: 2", "heads: 3", "must be a multiple of heads"),
        ("[10, 11]", "[10, 11, 12]", "five pairs"),
        ("training:", "augmentation: {shrink_to: 40}\ntraining:", "must be below crop.size"),
    ):
        path.write_text(RECIPE.replace(old, new))
        with pytest.raises(SettingsError, match=words):
            load_recipe(path)


def test_precision_follows_the_recipe() -> None:
    assert use_bf16("bf16")
    assert not use_bf16("fp32")
