"""What does not go together is refused before a picture is cropped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch

from distill import train
from distill.data.crops import Crops
from distill.data.sampling import left_without, training_examples
from distill.data.splits import Split
from distill.models.checkpoint import SCHEMA
from distill.recipe import load_recipe
from distill.training.distributed import Process
from distill.training.setup import prepare
from edge.inference.bundle import load_bundle
from support.backbone_files import write_dinov2
from support.command import Done
from support.paths import ROOT

RECIPES = ROOT / "distill" / "recipes"


def school(root: Path) -> Path:
    rng = np.random.default_rng(0)
    for split in ("train", "valid", "test"):
        for label in ("calm", "glad"):
            (root / split / label).mkdir(parents=True)
            noise = rng.integers(0, 255, (6, 6), dtype=np.uint8)
            cv2.imwrite(str(root / split / label / "0.png"), cv2.resize(noise, (48, 48)))
    return root


def trained_elsewhere(path: Path, recipe: Path) -> Path:
    """A checkpoint that knows two other classes; of its weights nothing is read here."""
    content = {
        "schema": SCHEMA, "recipe": load_recipe(recipe).model_dump(), "labels": ["cat", "dog"],
        "epoch": 0, "valid_accuracy": 0.5, "frozen": "", "teacher": "", "network": {},
    }  # fmt: skip
    torch.save(content, path)
    return path


def test_a_teacher_of_other_classes_is_refused_before_the_first_crop(
    tmp_path: Path, command: Callable[..., Done]
) -> None:
    data = school(tmp_path / "school")
    teacher = trained_elsewhere(tmp_path / "t.pt", RECIPES / "teacher.yaml")
    (tmp_path / "face.onnx").write_bytes(b"")
    done = command(
        "distill.train", RECIPES / "distilled.yaml", "--teacher", teacher,
        *("--data", data, "--layout", "folders", "--out", tmp_path / "run"),
        *("--face", tmp_path / "face.onnx", "--dinov2", write_dinov2(tmp_path / "dinov2")),
    )  # fmt: skip
    assert done.code == 2
    assert "t.pt knows other classes: cat, dog" in done.last
    assert [path.name for path in (tmp_path / "school.crops").iterdir()] == ["checked.json"]


def test_a_student_answers_in_the_order_of_classes_of_what_teaches_it(
    detector_file: Path, tmp_path: Path
) -> None:
    """Folders come by their names; the bundle's classes stand in the order of FER+."""
    bundle, rng = ROOT / "edge" / "models", np.random.default_rng(0)
    labels = load_bundle(bundle).labels
    assert list(labels) != sorted(labels)
    for label in labels:
        for split, count in (
            ("train", 2 + labels.index(label)),
            ("valid", 1 + labels.index(label)),
        ):
            folder = tmp_path / "school" / split / label
            folder.mkdir(parents=True)
            for index in range(count):
                noise = rng.integers(0, 255, (6, 6), dtype=np.uint8)
                cv2.imwrite(str(folder / f"{index}.png"), cv2.resize(noise, (48, 48)))
    options = [str(RECIPES / "robust.yaml"), "--data", str(tmp_path / "school")]
    options += ["--layout", "folders", "--teacher", str(bundle), "--out", str(tmp_path / "run")]
    recipe = load_recipe(RECIPES / "robust.yaml")
    args = train.build_parser().parse_args(options)
    setup = prepare(recipe, args, Process(0, 1, torch.device("cpu")))
    assert setup.labels == labels
    assert np.bincount(setup.truth).tolist() == list(range(1, 9))
    assert setup.votes.sum(axis=0).tolist() == list(range(1, 9))
    assert setup.examples.targets.sum(axis=0).tolist() == list(range(2, 10))


def test_every_teacher_is_looked_at_before_the_first_image(
    tmp_path: Path, command: Callable[..., Done]
) -> None:
    data = school(tmp_path / "school")
    first = trained_elsewhere(tmp_path / "one.pt", RECIPES / "student.yaml")
    second = trained_elsewhere(tmp_path / "two.pt", RECIPES / "teacher.yaml")
    options = ["--data", data, "--layout", "folders", "--out", tmp_path / "run"]
    alone = ["--set", "distillation.tokens=0", "--set", "distillation.embedding=0"]
    start = ["distill.train", RECIPES / "distilled.yaml", *options, *alone]
    start += ["--teacher", first, "--teacher"]
    assert "gone.pt" in command(*start, tmp_path / "gone.pt").last
    assert "bundle" in command(*start, data).last
    assert "give SFace's ONNX file by --face FILE" in command(*start, second).last
    assert not (tmp_path / "school.crops").exists()


def test_a_first_teacher_without_tokens_is_refused_where_they_are_followed(
    tmp_path: Path, command: Callable[..., Done]
) -> None:
    data = school(tmp_path / "school")
    student = trained_elsewhere(tmp_path / "one.pt", RECIPES / "student.yaml")
    start = ["distill.train", RECIPES / "distilled.yaml", "--data", data, "--layout", "folders"]
    for first, what in ((student, "student"), (ROOT / "edge" / "models", "bundle")):
        for more in ([], ["--set", "distillation.views=2", "--set", "distillation.tokens=0"]):
            done = command(*start, *more, "--out", tmp_path / "run", "--teacher", first)
            assert done.code == 2
            assert f"{first} is a {what}, which has no tokens" in done.last
            assert "set tokens, embedding, relations and views to 0" in done.last
    assert not (tmp_path / "school.crops").exists()


def test_classes_whose_pictures_are_all_left_out_are_told_of() -> None:
    names = [f"{i}.png" for i in range(6)]
    crops = Crops(np.zeros((6, 1, 8, 8), np.uint8), names, np.ones(6, dtype=bool))
    labels = ("calm", "cross", "glad", "never")
    split = Split(crops, np.eye(4, dtype=np.int64)[[0, 0, 1, 1, 2, 2]], labels)
    whole = training_examples(split, set())
    assert left_without(split, whole) == []
    assert left_without(split, training_examples(split, {"2.png", "3.png", "4.png"})) == ["cross"]


def test_a_data_set_without_a_validation_split_is_refused_or_learned_from_whole(
    tmp_path: Path, command: Callable[..., Done]
) -> None:
    data = school(tmp_path / "school")
    options = ["--data", data, "--layout", "folders", "--out", tmp_path / "run"]
    done = command("distill.train", RECIPES / "student.yaml", *options, "--train-on-all")
    assert done.code == 1
    assert "has a validation split of its own; --train-on-all is for data without" in done.last
    (data / "valid").rename(tmp_path / "valid")
    done = command("distill.train", RECIPES / "student.yaml", *options)
    assert done.code == 1
    assert "has no images of split 'valid', only of train, test; add its folder" in done.last
    assert not (tmp_path / "school.crops").exists()
