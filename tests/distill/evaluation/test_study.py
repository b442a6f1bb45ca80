from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from distill.evaluation.study import load_study, mean_and_deviation, overlay
from edge.base.errors import SettingsError
from support.command import Done
from support.paths import ROOT

STUDY = """
runs:
  - {name: short, recipe: tiny.yaml, seeds: [0, 1], report: true}
  - {name: other, recipe: tiny.yaml, changes: {training: {epochs: 1}, student: {attend: false}}}
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
    assert [line.split(" | ")[0] for line in table] == ["| run", "| short", "| other"]
    assert " ± " in table[1]
    assert " ± " not in table[2]
    again = command("distill.evaluation.study", study, *options)
    assert "epoch" not in again.out.replace("epochs", "")
    assert [line for line in again.out.splitlines() if line.startswith("| ")] == table
    assert command("distill.evaluation.study", study, *options, "--only", "x").last.endswith(
        "no run 'x'"
    )


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


def test_the_shipped_studies_load() -> None:
    for path in (ROOT / "distill" / "studies").glob("*.yaml"):
        assert load_study(path)[1], path
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
