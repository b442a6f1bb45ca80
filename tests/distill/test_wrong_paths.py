"""A wrong path is one line before the first image is opened, for every path of every command.

What takes minutes is replaced by what fails the test. `FILE` in a case is a file that is there, so that
nothing can be written below it, not by root either.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edge.inference.bundle import SHIPPED
from support.command import Done, call
from support.paths import ROOT

STUDENT = ROOT / "distill/recipes/student.yaml"
TEACHER = ROOT / "distill/recipes/teacher.yaml"
DISTILLED = ROOT / "distill/recipes/distilled.yaml"
STUDY = ROOT / "distill/studies/ferplus.yaml"
HEAVY = (
    "distill.data.data_set.read_picture",
    "distill.data.crops.read_picture",
    "distill.data.duplicates.read_picture",
    "distill.training.setup.build_student",
    "export.model.export_onnx",
    "export.calibrate.read_picture",
    "edge.tools.crowd.open_student",
)


@pytest.fixture
def place(tmp_path: Path, detector_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a whole data set of two classes, a file, and nothing that may be begun."""
    for split in ("train", "valid", "test"):
        for label in ("calm", "glad"):
            folder = tmp_path / "data" / split / label
            folder.mkdir(parents=True)
            cv2.imwrite(str(folder / "0.png"), np.zeros((8, 8), np.uint8))
    (tmp_path / "FILE").write_text("x")
    (tmp_path / "empty").mkdir()

    def heavy(*_: Any, **__: Any) -> None:
        pytest.fail("a path is wrong, and work was begun")

    for name in HEAVY:
        monkeypatch.setattr(name, heavy)
    return tmp_path


def tried(place: Path, module: str, *words: object, **wrong: str) -> Done:
    """Run a command in `place` on its data with one option, or a leading word, replaced."""
    line = [str(word).replace("@", f"{place}/") for word in words]
    for option, value in wrong.items():
        name = f"--{option.replace('_', '-')}"
        value = value.replace("@", f"{place}/")
        if name in line:
            line[line.index(name) + 1] = value
        else:
            line += [name, value]
    return call(module, *line, env={})


def assert_refused(done: Done, place: Path, named: str) -> None:
    assert done.code in (1, 2), done.err
    assert "Traceback" not in done.err
    assert named.replace("@", f"{place}/") in done.last, done.last
    assert not (place / "out").exists(), "nothing is left behind"
    assert not (place / "data.crops").exists()


DATA = ("--data", "@data", "--layout", "folders")


@pytest.mark.parametrize(
    ("recipe", "option", "value"),
    [
        (STUDENT, "out", "@FILE/run"),
        (STUDENT, "out", "@FILE"),
        (STUDENT, "out", "/proc/run"),
        (STUDENT, "weights", "@nowhere"),
        (STUDENT, "start", "@nowhere.pt"),
        (STUDENT, "start", "@empty"),
        (STUDENT, "cache", "@FILE/cache"),
        (STUDENT, "data", "@nowhere"),
        (DISTILLED, "teacher", "@nowhere.pt"),
        (DISTILLED, "teacher", "@FILE"),
        (TEACHER, "face", "@nowhere.onnx"),
    ],
)
def test_train_refuses_a_wrong_path_first(
    place: Path, recipe: Path, option: str, value: str
) -> None:
    words = [recipe, *DATA, "--out", "@out"]
    done = tried(place, "distill.train", *words, **{option: value})
    assert_refused(done, place, value)


def test_train_refuses_a_missing_recipe_dinov2_and_a_folder_that_holds_a_run(place: Path) -> None:
    done = tried(place, "distill.train", "@nowhere.yaml", *DATA, "--out", "@out")
    assert_refused(done, place, "@nowhere.yaml")
    words = [TEACHER, *DATA, "--out", "@out", "--face", "@FILE", "--dinov2", "@nowhere"]
    assert_refused(tried(place, "distill.train", *words), place, "@nowhere")
    (place / "empty" / "last.pt").write_text("a run")
    done = tried(place, "distill.train", STUDENT, *DATA, "--out", "@empty")
    assert_refused(done, place, "holds a run; resume it by --resume")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("bundle", "@nowhere"),
        ("bundle", "@empty"),
        ("data", "@nowhere"),
        ("predictions", "@FILE/out.csv"),
        ("predictions", "@empty"),
        ("json", "@FILE/out.json"),
        ("json", "/proc/out.json"),
        ("plots", "@FILE"),
        ("plots", "@FILE/plots"),
        ("weights", "@nowhere"),
        ("cache", "@FILE"),
    ],
)
def test_eval_refuses_a_wrong_path_first(place: Path, option: str, value: str) -> None:
    words = ["--bundle", SHIPPED, *DATA]
    done = tried(place, "distill.evaluation.evaluate", *words, **{option: value})
    assert_refused(done, place, value)


def test_eval_refuses_a_missing_checkpoint_first(place: Path) -> None:
    done = tried(place, "distill.evaluation.evaluate", "--checkpoint", "@nowhere.pt", *DATA)
    assert_refused(done, place, "@nowhere.pt")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("out", "@FILE/runs"),
        ("data", "@nowhere"),
        ("weights", "@nowhere"),
        ("cache", "@FILE"),
        ("face", "@nowhere.onnx"),
    ],
)
def test_study_refuses_a_wrong_path_first(place: Path, option: str, value: str) -> None:
    # A study of a student alone needs no backbones, but for the case of one.
    recipe = TEACHER if option == "face" else STUDENT
    (place / "study.yaml").write_text(f"runs: [{{name: one, recipe: {recipe}}}]\n")
    words = ["@study.yaml", *DATA, "--out", "@out"]
    done = tried(place, "distill.evaluation.study", *words, **{option: value})
    assert_refused(done, place, value)


def test_study_refuses_a_missing_study_and_a_missing_recipe(place: Path) -> None:
    words = [*DATA, "--out", "@out"]
    done = tried(place, "distill.evaluation.study", "@nowhere.yaml", *words)
    assert_refused(done, place, "@nowhere.yaml")
    (place / "study.yaml").write_text("runs: [{name: one, recipe: gone.yaml}]\n")
    done = tried(place, "distill.evaluation.study", "@study.yaml", *words)
    assert_refused(done, place, "@gone.yaml")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("out", "@FILE/crops"),
        ("out", "@FILE"),
        ("bundle", "@nowhere"),
        ("weights", "@nowhere"),
    ],
)
def test_crops_refuses_a_wrong_path_first(place: Path, option: str, value: str) -> None:
    words = ["@data", "--layout", "folders", "--out", "@out"]
    assert_refused(tried(place, "distill.data.crops", *words, **{option: value}), place, value)
    done = tried(place, "distill.data.crops", "@nowhere", *words[1:])
    assert_refused(done, place, "@nowhere")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("out", "@FILE/bundle"),
        ("out", "@FILE"),
        ("data", "@nowhere"),
        ("weights", "@nowhere"),
        ("prior", "@nowhere.json"),
        ("calibration", "@empty"),
        ("calibration", "@nowhere"),
        ("cache", "@FILE"),
    ],
)
def test_export_refuses_a_wrong_path_first(place: Path, option: str, value: str) -> None:
    words = [SHIPPED, *DATA, "--out", "@out"]
    done = tried(place, "export.model", *words, **{option: value})
    # Of the parent folder, since the bundle is made beside its place.
    assert_refused(done, place, value.removesuffix("/bundle"))


def test_export_and_the_benches_refuse_what_they_read(place: Path) -> None:
    done = tried(place, "export.model", "@nowhere.pt", *DATA, "--out", "@out")
    assert_refused(done, place, "@nowhere.pt")
    assert_refused(tried(place, "export.bench", "@nowhere"), place, "@nowhere")
    done = tried(place, "export.bench", SHIPPED, "--engines", "@nowhere")
    assert_refused(done, place, "--engines @nowhere is not a folder")
    (place / "boxes.txt").write_text("a.jpg\n0\n0 0 0 0 0 0 0 0 0 0\n")
    words = ["@data", "@boxes.txt", "--json", "@FILE/out.json"]
    assert_refused(tried(place, "edge.tools.crowd", *words), place, "@FILE/out.json")


def test_export_engine_refuses_a_wrong_path_before_it_asks_for_a_device(place: Path) -> None:
    for value in ("@FILE", "@FILE/engines", "/proc/engines"):
        done = tried(place, "export.engine.to_engine", SHIPPED, "--engines", value)
        assert_refused(done, place, value)
        assert done.code == 2
