from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from distill.data.data_set import open_data
from distill.evaluation.study import (
    finished,
    load_study,
    mean_and_deviation,
    recipe_text,
    refuse_other_data,
    score_one,
    trained_by,
)
from distill.models import store
from distill.recipe import overlay
from distill.training.fingerprint import STATE, data_digest
from edge.base.errors import DataError, SettingsError
from support.command import Done
from support.paths import ROOT

STUDY = """
runs:
  - {name: short, recipe: tiny.yaml, seeds: [0, 1], report: true}
  - {name: other, recipe: tiny.yaml, changes: {training: {epochs: 1}, student: {attend: false}}}
  - {name: unseen, recipe: tiny.yaml, changes: {training: {epochs: 1, hold_out: flat}}}
"""
TINY = """
name: tiny
crop: {size: 32, template: [[10, 11], [22, 11], [16, 18], [11, 25], [21, 25]]}
student: {widths: [4, 6, 8, 8], depths: [1, 1, 1], width: 8, heads: 2}
training: {epochs: 2, batch: 64, learning_rate: 0.01}
"""


def write(folder: Path, study: str = STUDY) -> Path:
    (folder / "tiny.yaml").write_text(TINY)
    (folder / "study.yaml").write_text(study)
    return folder / "study.yaml"


@pytest.mark.process
def test_a_study_trains_scores_and_is_not_run_twice(
    detector_file: Path,
    tiny_ferplus: Path,
    tmp_path: Path,
    command: Callable[..., Done],
) -> None:
    study, out = write(tmp_path), tmp_path / "out"
    options = ["--data", tiny_ferplus, "--layout", "ferplus", "--out", out]
    done = command("distill.evaluation.study", study, *options)
    assert done.code == 0, done.err
    table = [line for line in done.out.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in table] == ["| run", "| short", "| other", "| unseen"]
    assert [line.split(" | ")[6].split()[:1] for line in table] == [["held"], [], [], ["flat"]]
    assert "images of train that are flat" in done.out
    assert " ± " in table[1]
    assert " ± " not in table[2]
    again = command("distill.evaluation.study", study, *options)
    assert "epoch" not in again.out.replace("epochs", "")
    assert [line for line in again.out.splitlines() if line.startswith("| ")] == table
    elsewhere = tmp_path / "ferplus"
    shutil.copytree(tiny_ferplus, elsewhere)
    image = next((elsewhere / "FER2013Valid").glob("*.png"))
    cv2.imwrite(str(image), np.zeros((48, 48), np.uint8))
    for data, words in (
        (elsewhere, "is a run on other data than"),
        (tmp_path / "nowhere", "is not a folder; give the root of the data set"),
    ):
        other = ["--data", data, "--layout", "ferplus", "--out", out]
        done = command("distill.evaluation.study", study, *other)
        assert done.code == 1
        assert words in done.last
        assert "| short" not in done.out, "no table of other data"
    assert command("distill.evaluation.study", study, *options, "--only", "x").last.endswith(
        "no run 'x'"
    )


def test_a_run_from_before_its_data_were_kept_is_left_to_resume(
    tiny_ferplus: Path, tmp_path: Path
) -> None:
    old, unbegun = tmp_path / "old", tmp_path / "unbegun"
    old.mkdir()
    store.save(old / "last.pt", dict.fromkeys(STATE, 0) | {"identity": {"data": "0123"}})
    data = open_data(tiny_ferplus, "ferplus", tmp_path / "crops", lambda line: None)
    assert refuse_other_data([old, unbegun], data) == [old]


def test_a_finished_run_whose_checkpoint_is_gone_is_not_shown_by_its_old_scores(
    tiny_ferplus: Path, tmp_path: Path
) -> None:
    data = open_data(tiny_ferplus, "ferplus", tmp_path / "crops", lambda line: None)
    kept = tmp_path / f"valid-scores-{data_digest(data, ['valid'])[:12]}.json"
    kept.write_text(json.dumps([{"accuracy": 0.5}, {"domains": {}}]))
    with pytest.raises(DataError, match=r"best\.pt is gone; put it back, or remove .* once more"):
        score_one(tmp_path, "valid", data, [])


def test_a_seed_that_is_named_twice_is_refused(tmp_path: Path) -> None:
    study = write(tmp_path, STUDY.replace("[0, 1]", "[0, 1, 0]"))
    with pytest.raises(SettingsError, match="'short' names seed 0 twice"):
        load_study(study)


def test_a_finished_run_stays_so_whether_its_recipe_spells_a_default_out(tmp_path: Path) -> None:
    _, recipes = load_study(write(tmp_path))
    (tmp_path / "log.csv").write_text("epoch\n0\n1\n")
    for more, same in (("prior_tau: 0.0", True), ("prior_tau: 1.0", False), ("gone: 1", False)):
        text = TINY.replace("name: tiny", "name: short").replace("0.01", f"0.01, {more}")
        (tmp_path / "recipe.yaml").write_text(text)
        assert finished(tmp_path, recipes["short"]) is same, more


def test_a_study_is_read_whole_before_anything_runs(tmp_path: Path) -> None:
    _, recipes = load_study(write(tmp_path))
    assert recipes["other"].training.epochs == 1
    assert recipes["other"].training.batch == 64, "the rest of a section stays"
    with pytest.raises(SettingsError, match=r"run 'other'.*training\.epoch'"):
        load_study(write(tmp_path, STUDY.replace("epochs", "epoch")))
    with pytest.raises(SettingsError, match="two runs are called 'short'"):
        load_study(write(tmp_path, STUDY.replace("other", "short")))
    late = STUDY.replace("name: short,", "name: short, teacher: other,")
    with pytest.raises(SettingsError, match="its teacher 'other' is not an earlier run"):
        load_study(write(tmp_path, late))
    taught = STUDY.replace("name: other,", "name: other, teacher: short,")
    with pytest.raises(SettingsError, match="run 'other': its recipe wants no teacher"):
        load_study(write(tmp_path, taught))
    lone = ROOT / "distill" / "recipes" / "distilled.yaml"
    with pytest.raises(SettingsError, match="run 'lone': its recipe wants a teacher: name an"):
        load_study(write(tmp_path, f"runs: [{{name: lone, recipe: {lone}}}]\n"))


def test_a_face_backbones_file_that_a_later_run_lacks_is_told_of_first(
    tmp_path: Path, command: Callable[..., Done]
) -> None:
    study, out = ROOT / "distill" / "studies" / "faces.yaml", tmp_path / "out"
    sface = tmp_path / "sface.onnx"
    sface.touch()
    options = ["--data", tmp_path, "--out", out, "--face", sface]
    done = command("distill.evaluation.study", study, *options)
    assert done.code == 2
    assert "give dlib's face network as .safetensors by --face FILE" in done.last
    assert not out.exists()


def test_a_study_takes_settings_for_all_of_its_runs(tmp_path: Path) -> None:
    _, recipes = load_study(write(tmp_path), ["training.epochs=5", "student.attend=true"])
    assert {recipe.training.epochs for recipe in recipes.values()} == {5}
    assert recipes["other"].student
    assert recipes["other"].student.attend, "the command line comes after the study"
    assert recipes["other"].name == "other"


def test_the_shipped_studies_load_and_hand_their_recipes_on(tmp_path: Path) -> None:
    for path in (ROOT / "distill" / "studies").glob("*.yaml"):
        for name, recipe in load_study(path)[1].items():
            (tmp_path / "recipe.yaml").write_text(recipe_text(recipe))
            assert trained_by(tmp_path) == recipe, (path, name)
    study, recipes = load_study(ROOT / "distill" / "studies" / "ferplus.yaml")
    assert recipes["distilled"].distillation is not None
    lengths = {recipes[name].training.epochs for name in ("distilled", "alone")}
    assert len(lengths) == 1, "what is compared has the same length"
    assert {run.name for run in study.runs if len(run.seeds) >= 3} >= {"distilled", "alone"}


def test_overlay_and_mean_with_deviation() -> None:
    base = {"a": {"b": 1, "c": [1]}, "d": 2}
    assert overlay(base, {"a": {"c": [2]}}) == {"a": {"b": 1, "c": [2]}, "d": 2}
    assert base["a"]["c"] == [1]  # type: ignore[index]
    assert mean_and_deviation([0.5]) == "50.00"
    assert mean_and_deviation([0.5, 0.6]) == "55.00 ± 7.07"
