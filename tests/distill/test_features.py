from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from distill.augment import placement, warp
from distill.features import BLOCK, View, cache_view, changed, pack, unpack
from distill.lessons import cache_lessons
from distill.recipe import Augmentation
from distill.teacher import Teacher, TeacherConfig
from edge.errors import DataError

CONFIG = TeacherConfig(classes=3, scene_width=5, face_width=4, width=8, heads=2)


class Counting(nn.Module):
    """Stands for the frozen side: fixed random convolutions, and how many faces it has seen."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.scene, self.below = nn.Conv2d(1, 5, 2, 2), nn.Conv2d(1, 4, 1)
        self.seen = 0

    def forward(self, faces: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.seen += len(faces)
        with torch.no_grad():
            return self.scene(faces[:, :, ::4, ::4] / 255), self.below(faces[:, :, ::4, ::4] / 255)


def pixels(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 1, 56, 56)).astype(np.uint8)


def cache(folder: Path, frozen: Counting, count: int = 2 * BLOCK + 9, view: int = 2) -> View:
    return cache_view(
        folder,
        frozen,
        pixels(count),
        view,
        Augmentation(),
        False,
        lambda line: None,  # type: ignore[arg-type]
    )


def test_packing_keeps_the_direction_of_every_token() -> None:
    grid = torch.randn(4, 384, 7, 7) * torch.logspace(-2, 2, 49).reshape(7, 7)
    back = unpack(*pack(grid))
    assert back.shape == grid.shape
    assert float(nn.functional.cosine_similarity(grid, back, dim=1).min()) > 0.999
    assert torch.equal(unpack(*pack(torch.zeros(1, 3, 2, 2))), torch.zeros(1, 3, 2, 2))


def test_a_cached_view_is_what_the_frozen_side_gives_and_is_computed_once(tmp_path: Path) -> None:
    frozen = Counting()
    view = cache(tmp_path, frozen)
    count = 2 * BLOCK + 9
    assert frozen.seen == count + BLOCK, "each once, and one block for the shapes"
    rows = np.array([1, BLOCK + 3, count - 1])
    scene, lower = view.read(rows)
    last = torch.from_numpy(pixels(count)[2 * BLOCK :]).float()
    expected = frozen(changed(last, 2, 2, Augmentation()))
    assert torch.allclose(scene[2], expected[0][-1], atol=0.02)
    assert torch.allclose(lower[2], expected[1][-1], atol=0.02)
    again = Counting()
    assert torch.equal(cache(tmp_path, again).read(rows)[0], scene)
    assert again.seen == 0


def test_a_changed_view_is_cached_in_bf16_too(tmp_path: Path) -> None:
    spoil = Augmentation(blur_share=1.0, jpeg_share=1.0)
    views = [
        cache_view(tmp_path / str(bf16), Counting(), pixels(8), 2, spoil, bf16, print)  # type: ignore[arg-type]
        for bf16 in (False, True)
    ]
    one, other = (view.read(np.arange(8))[0] for view in views)
    assert torch.allclose(one, other, atol=0.05)


def test_a_killed_cache_goes_on_to_the_same_result(tmp_path: Path) -> None:
    whole = cache(tmp_path / "whole", Counting()).read(np.arange(2 * BLOCK + 9))
    cache(tmp_path / "cut", Counting())
    for name in (
        "scene",
        "lower",
    ):  # what a kill leaves: rows beyond the mark are not to be trusted
        np.load(tmp_path / "cut" / "2" / f"{name}.npy", mmap_mode="r+")[BLOCK:] = 99
    (tmp_path / "cut" / "2" / "done").write_text(str(BLOCK))
    frozen = Counting()
    resumed = cache(tmp_path / "cut", frozen).read(np.arange(2 * BLOCK + 9))
    assert frozen.seen == BLOCK + 9
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))


def test_views_differ_and_the_first_two_are_the_crop_and_its_mirror_image() -> None:
    faces = torch.rand(3, 1, 56, 56) * 255
    assert torch.equal(changed(faces, 0, 0, Augmentation()), faces)
    assert torch.equal(changed(faces, 1, 0, Augmentation()), faces.flip(3))
    two = changed(faces, 2, 0, Augmentation())
    assert torch.equal(two, changed(faces, 2, 0, Augmentation()))
    assert not torch.equal(two, changed(faces, 3, 0, Augmentation()))
    assert not torch.equal(two, changed(faces, 2, 1, Augmentation()))


def test_a_full_disk_and_other_pictures_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache(tmp_path, Counting(), count=70)
    with pytest.raises(DataError, match="holds other pictures"):
        cache(tmp_path, Counting(), count=71)
    (tmp_path / "2" / "scene.npy").write_bytes(b"half")
    with pytest.raises(DataError, match="delete it and start again"):
        cache(tmp_path, Counting(), count=70)
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DataError, match=r"needs 0\.0 GB"):
        cache(tmp_path / "new", Counting())


def test_lessons_are_the_teachers_and_move_with_the_picture(tmp_path: Path) -> None:
    torch.manual_seed(1)
    teacher = Teacher(CONFIG).eval()
    view = cache(tmp_path, Counting(), view=0)
    count = 2 * BLOCK + 9
    lessons = cache_lessons(tmp_path, teacher, view, count, False, lambda line: None)
    rows = np.array([0, 77])
    places = placement(2, Augmentation(), torch.Generator().manual_seed(0))
    thoughts = lessons.read(rows, places, 8)
    expected = teacher.think(*view.read(rows))
    assert torch.allclose(thoughts.logits, expected.logits, atol=1e-4)
    assert torch.allclose(thoughts.embedding, expected.embedding, atol=1e-2)
    assert thoughts.scene.shape == (2, 5, 8, 8)
    assert torch.allclose(thoughts.face, warp(expected.face, places, 8), atol=0.02)
    other = Teacher(CONFIG)
    assert not torch.allclose(
        cache_lessons(tmp_path, other, view, count, False, print).read(rows, places, 8).logits,
        thoughts.logits,
    ), "another teacher's lessons are its own"
