"""Answers for augmented views, kept: the student learns from them what the teachers would say."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from distill.data.augment import corrupt, random_affine, warp
from distill.data.sampling import Examples
from distill.models.predict import Predictor, average_logits, probabilities
from distill.models.student import Student, StudentConfig
from distill.models.teacher import Teacher, TeacherAnswers, TeacherConfig
from distill.recipe import Augmentation, Distillation, Recipe
from distill.training.batches import StudentBatches
from distill.training.task import DistillationTask
from distill.training.view_cache import (
    Ask,
    Views,
    ViewTargets,
    ask_together,
    cache_view_targets,
    views_folder,
)
from edge.base.errors import DataError
from edge.inference.bundle import CropSpec

TEMPLATE = ((10.0, 11.0), (22.0, 11.0), (16.0, 18.0), (11.0, 25.0), (21.0, 25.0))
CROP = CropSpec(size=32, channels=1, template=TEMPLATE)
LABELS = ("calm", "glad", "cross")
IMAGES = 300  # more than two batches of the cache
CPU = torch.device("cpu")


def faces(count: int = IMAGES) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 1, 32, 32)).astype(np.uint8)


def augment(faces: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    config = Augmentation()
    return corrupt(warp(faces, random_affine(len(faces), config, generator)), config, generator)


class Frozen(nn.Module):
    """Backbones of no weights: means over places, and how often they were asked."""

    asked = 0

    def forward(self, faces: torch.Tensor) -> list[torch.Tensor]:
        self.asked += len(faces)
        small = functional.adaptive_avg_pool2d(faces / 255, 4)
        return [small.repeat(1, 12, 1, 1) + small, small.repeat(1, 10, 1, 1).pow(2)]


@pytest.fixture
def teacher() -> Teacher:
    torch.manual_seed(0)
    config = TeacherConfig(classes=3, scene_width=12, face_widths=(10,), grid=4, width=16, heads=2)
    return Teacher(config).eval()


def brightness(labels: tuple[str, ...] = LABELS) -> Predictor:
    """A second teacher, whose first class is bright."""

    def predict(pixels: np.ndarray) -> np.ndarray:
        bright = pixels.astype(np.float64).mean(axis=(1, 2, 3)) / 64
        return probabilities(np.stack([bright, 0 * bright, 1 - bright], axis=1).astype(np.float32))

    return Predictor(labels, CROP, predict, "fp32")


def together(teacher: Teacher, frozen: Frozen) -> Ask:
    return ask_together(teacher, frozen, LABELS, CROP, [brightness()], False)  # type: ignore[arg-type]


@given(st.lists(st.integers(0, 19), min_size=1, max_size=6), st.integers(0, 3))
def test_a_view_depends_on_its_row_and_number_alone(rows: list[int], view: int) -> None:
    views = Views(4, faces(20), augment)
    drawn = views.draw(np.array(rows), view)
    for row, one in zip(rows, drawn, strict=True):
        assert np.array_equal(views.draw(np.array([row]), view)[0], one)


def test_views_of_an_image_differ_from_each_other_and_from_its_neighbours() -> None:
    same = np.repeat(faces(1), 5, axis=0)
    views = Views(6, same, augment)
    drawn = [views.draw(np.arange(5), view) for view in range(6)]
    assert len({image.tobytes() for batch in drawn for image in batch}) == 30


def test_teachers_answer_together_by_averaged_log_probabilities(teacher: Teacher) -> None:
    frozen, pixels = Frozen(), faces(9)
    answers = together(teacher, frozen)(pixels)
    with torch.no_grad():
        own = teacher.forward_outputs(*frozen(torch.from_numpy(pixels).float()))
    two = [probabilities(own.logits.numpy()), brightness().predict(pixels)]
    assert probabilities(answers.logits.numpy()) == pytest.approx(average_logits(two), abs=1e-6)
    logs = np.mean([np.log(p) for p in two], axis=0)
    by_hand = np.exp(logs) / np.exp(logs).sum(axis=1, keepdims=True)
    assert probabilities(answers.logits.numpy()) == pytest.approx(by_hand, abs=1e-6)
    torch.testing.assert_close(answers.embedding, own.embedding)


def test_teachers_of_other_classes_are_refused_in_one_line(teacher: Teacher) -> None:
    others = [brightness(("calm", "glad", "bored"))]
    ask = ask_together(teacher, Frozen(), LABELS, CROP, others, False)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="know different classes"):
        ask(faces(2))


def batches(views: Views, answers: ViewTargets | Ask) -> StudentBatches:
    recipe = Recipe.model_validate(
        {
            "name": "small",
            "crop": {"size": 32, "template": [list(point) for point in TEMPLATE]},
            "student": {},
            "distillation": {"tokens": 0, "views": views.count},
            "training": {"epochs": 1},
        }
    )
    targets = np.random.default_rng(1).dirichlet(np.ones(3), IMAGES).astype(np.float32)
    examples = Examples(views.faces, targets, np.arange(IMAGES), "")
    return StudentBatches(recipe, examples, views.faces[:0], CPU, views=(views, answers))


@pytest.mark.parametrize("form", [{}, {"pool": "queries"}])
@pytest.mark.slow
def test_the_loss_from_the_cache_is_that_with_the_teachers_live_on_the_same_views(
    teacher: Teacher, tmp_path: Path, form: dict[str, Any]
) -> None:
    frozen, views = Frozen(), Views(2, faces(), augment)
    ask = together(teacher, frozen)
    cached = batches(views, cache_view_targets(tmp_path / "views", views, ask, lambda line: None))
    live = batches(views, ask)
    torch.manual_seed(1)
    config = StudentConfig(
        classes=3, size=32, widths=(4, 6, 8, 8), depths=(1, 1, 1), width=8, heads=2, **form
    )
    task = DistillationTask(Student(config), Distillation(tokens=0, views=2), teacher).eval()
    rows, nobody = np.random.default_rng(2).permutation(IMAGES)[:64], torch.Generator()
    asked, seen = frozen.asked, []
    for epoch in range(4):
        inputs = cached.batch(rows, epoch, nobody)
        seen.append(inputs[0])
        with torch.no_grad():
            from_cache = task(*inputs)
        assert frozen.asked == asked, "an epoch from the cache asks no teacher"
        with torch.no_grad():
            from_teachers = task(*live.batch(rows, epoch, nobody))
        asked = frozen.asked
        assert set(from_cache) == {"votes", "logits", "embedding"}
        for name, loss in from_teachers.items():
            assert float(from_cache[name]) == pytest.approx(float(loss), rel=2e-3), name
    assert torch.equal(seen[0], seen[2]), "of two views an epoch shows the next"
    assert not torch.equal(seen[0], seen[1])


@pytest.mark.slow
def test_answers_are_computed_once_and_their_size_is_said(teacher: Teacher, tmp_path: Path) -> None:
    frozen, views, said = Frozen(), Views(3, faces(), augment), []
    first = cache_view_targets(tmp_path / "views", views, together(teacher, frozen), said.append)
    assert frozen.asked == 3 * IMAGES + 1, "one more for the widths"
    again = cache_view_targets(tmp_path / "views", views, together(teacher, frozen), said.append)
    assert frozen.asked == 3 * IMAGES + 1
    assert np.array_equal(first.logits, again.logits)
    assert np.array_equal(first.embedding, again.embedding)
    assert again.logits.dtype == again.embedding.dtype == np.float16
    assert f"targets of 3 views of {IMAGES} images: 0.0 MB, 0.1 kB an image" in said[0]
    size = sum(f.stat().st_size for f in (tmp_path / "views").glob("[le]*.npy"))
    assert size == 2 * 128 + 3 * IMAGES * 2 * (3 + 16)


def test_finished_answers_are_read_where_nothing_can_be_written(
    teacher: Teacher, tmp_path: Path
) -> None:
    folder, views = tmp_path / "views", Views(1, faces(10), augment)
    ask = together(teacher, Frozen())
    cache_view_targets(folder, views, ask, lambda line: None)
    (folder / ".lock").unlink()
    (folder / ".lock").mkdir()  # no run can lock it, as on a disk that is read-only
    assert len(cache_view_targets(folder, views, ask, lambda line: None).logits[0]) == 10


@pytest.mark.slow
def test_a_killed_cache_resumes_to_the_same_result(teacher: Teacher, tmp_path: Path) -> None:
    views, whole, broken = Views(2, faces(), augment), tmp_path / "whole", tmp_path / "broken"
    frozen = Frozen()
    expected = cache_view_targets(whole, views, together(teacher, frozen), lambda line: None)

    class Killed(Exception):
        pass

    def kill_in_the_second_view(pixels: np.ndarray) -> TeacherAnswers:
        if frozen.asked > IMAGES + 100:
            raise Killed
        return together(teacher, frozen)(pixels)

    frozen.asked = 0
    with pytest.raises(Killed):
        cache_view_targets(broken, views, kill_in_the_second_view, lambda line: None)
    done = int((broken / "done").read_text()) if (broken / "done").is_file() else 0
    frozen.asked = 0
    resumed = cache_view_targets(broken, views, together(teacher, frozen), lambda line: None)
    assert frozen.asked == 2 * IMAGES - done + (done == 0)
    assert done > 0, "what was answered is kept"
    assert np.array_equal(resumed.logits, expected.logits)
    assert np.array_equal(resumed.embedding, expected.embedding)


def test_other_teachers_images_views_or_augmentation_have_a_cache_of_their_own(
    tmp_path: Path,
) -> None:
    crops = tmp_path / "ferplus.crops" / "abc"
    crops.mkdir(parents=True)
    (crops / "train.key").write_text("these images")
    made_by = {"teachers": "a", "augmentation": Augmentation().model_dump(), "bf16": False}
    two = Views(2, faces(3), augment)
    places = [
        views_folder(crops, "train", two, made_by),
        views_folder(crops, "train", Views(3, faces(3), augment), made_by),
        views_folder(crops, "train", two, made_by | {"teachers": "b"}),
        views_folder(crops, "train", two, made_by | {"bf16": True}),
        views_folder(
            crops, "train", two, made_by | {"augmentation": Augmentation(noise=1.0).model_dump()}
        ),
    ]
    (crops / "train.key").write_text("other images")
    places.append(views_folder(crops, "train", two, made_by))
    assert len(set(places)) == len(places)
    assert all(place.parent == tmp_path / "ferplus.features" for place in places)
    with pytest.raises(DataError, match="no finished crops of 'valid'"):
        views_folder(crops, "valid", two, made_by)


def cut_file(folder: Path) -> None:
    (folder / "logits.npy").write_bytes((folder / "logits.npy").read_bytes()[:150])


def lost_file(folder: Path) -> None:
    (folder / "embedding.npy").unlink()


def text_for_a_number(folder: Path) -> None:
    (folder / "done").write_text("all")


def beyond_the_end(folder: Path) -> None:
    (folder / "done").write_text("100000")


@pytest.mark.parametrize("damage", [cut_file, lost_file, text_for_a_number, beyond_the_end])
def test_damaged_files_are_refused_in_one_line(
    teacher: Teacher, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    folder, views = tmp_path / "views", Views(1, faces(10), augment)
    ask = together(teacher, Frozen())
    cache_view_targets(folder, views, ask, lambda line: None)
    damage(folder)
    with pytest.raises(DataError, match="delete it and start again") as error:
        cache_view_targets(folder, views, ask, lambda line: None)
    assert "\n" not in str(error.value)
    shutil.rmtree(folder)
    cache_view_targets(folder, views, ask, lambda line: None)


def test_views_that_are_drawn_otherwise_now_are_refused_in_one_line(
    teacher: Teacher, tmp_path: Path
) -> None:
    folder, ask = tmp_path / "views", together(teacher, Frozen())
    cache_view_targets(folder, Views(2, faces(10), augment), ask, lambda line: None)

    def darker(faces: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return 0.9 * augment(faces, generator)

    with pytest.raises(DataError, match="made by another augmentation than this version's"):
        cache_view_targets(folder, Views(2, faces(10), darker), ask, lambda line: None)


def test_a_full_disk_is_one_line_and_leaves_no_file(
    teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=100))
    with pytest.raises(DataError, match=r"0\.0 MB are free; make room, or name a folder"):
        cache_view_targets(
            tmp_path / "views",
            Views(2, faces(), augment),
            together(teacher, Frozen()),
            lambda line: None,
        )
    assert not list((tmp_path / "views").glob("*.npy"))
