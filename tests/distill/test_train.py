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

import pytest
import torch
from support import ROOT, Done

from distill.augment import augment
from distill.recipe import Augmentation, load_recipe
from distill.train import use_bf16
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
    while not (broken / "log.csv").is_file():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()
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

    other_recipe = tmp_path / "other.yaml"
    other_recipe.write_text(RECIPE.replace("seed: 3", "seed: 4"))
    done = command("distill.train", *arguments(other_recipe, tiny_ferplus, broken), "--resume")
    assert done.code == 1
    assert "another recipe's run" in done.last


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


def test_precision_follows_the_recipe() -> None:
    assert use_bf16("bf16")
    assert not use_bf16("fp32")
