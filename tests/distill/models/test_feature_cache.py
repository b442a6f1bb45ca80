from __future__ import annotations

import hashlib
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from distill.data.augment import random_affine, warp
from distill.data.sampling import Examples
from distill.models.backbones import split_backbone
from distill.models.feature_cache import (
    BATCH,
    Features,
    cache_features,
    features_folder,
    pack,
    unpack,
    weights_digest,
)
from distill.models.sface import SFace
from distill.models.teacher import Teacher, TeacherConfig
from distill.recipe import Augmentation, CropRecipe, Recipe, TeacherRecipe, Training
from distill.training.batches import TeacherBatches
from distill.training.target_cache import cache_targets
from edge.base.errors import DataError

CONFIG = TeacherConfig(classes=3, scene_width=5, face_widths=(4,), width=8, heads=2)
COUNT = 2 * BATCH + 9
CPU = torch.device("cpu")


class Counting(nn.Module):
    """Stands for a frozen network: a fixed random convolution, and how many faces it has seen."""

    def __init__(self, width: int = 5, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Conv2d(1, width, 8, 8)
        self.seen = 0

    def forward(self, faces: torch.Tensor) -> torch.Tensor:
        self.seen += len(faces)
        return self.body(faces / 255)


def pixels(count: int = COUNT) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 1, 56, 56)).astype(np.uint8)


def cache(place: Path, network: Counting, count: int = COUNT, bf16: bool = False) -> Features:
    return cache_features(place, network, pixels(count), CPU, bf16, lambda line: None)


def test_packing_keeps_the_direction_of_every_token() -> None:
    grid = torch.randn(4, 384, 7, 7) * torch.logspace(-2, 2, 49).reshape(7, 7)
    back = unpack(*pack(grid))
    assert back.shape == grid.shape
    assert float(nn.functional.cosine_similarity(grid, back, dim=1).min()) > 0.999
    assert torch.equal(unpack(*pack(torch.zeros(1, 3, 2, 2))), torch.zeros(1, 3, 2, 2))


@pytest.mark.parametrize("bf16", [False, True])
def test_cached_features_are_what_the_network_gives_and_are_computed_once(
    tmp_path: Path, bf16: bool
) -> None:
    network = Counting()
    features = cache(tmp_path, network, bf16=bf16)
    assert network.seen == COUNT + BATCH, "each once, and one batch for the shapes"
    rows = np.array([1, BATCH + 3, COUNT - 1])
    expected = network(torch.from_numpy(pixels()[rows]).float())
    assert torch.allclose(features.read(rows), expected, atol=0.02)
    again = Counting()
    assert torch.equal(cache(tmp_path, again, bf16=bf16).read(rows), features.read(rows))
    assert again.seen == 0


def test_a_killed_cache_resumes_to_the_same_result(tmp_path: Path) -> None:
    rows = np.arange(COUNT)
    whole = cache(tmp_path / "whole", Counting()).read(rows)
    cache(tmp_path / "cut", Counting())
    # What a kill leaves: rows beyond the mark are not to be trusted.
    np.load(tmp_path / "cut" / "codes.npy", mmap_mode="r+")[BATCH:] = 99
    (tmp_path / "cut" / "done").write_text(str(BATCH))
    network = Counting()
    assert torch.equal(cache(tmp_path / "cut", network).read(rows), whole)
    assert network.seen == BATCH + 9


def test_a_full_disk_and_other_pictures_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache(tmp_path, Counting(), count=70)
    with pytest.raises(DataError, match="holds other images"):
        cache(tmp_path, Counting(), count=71)
    (tmp_path / "codes.npy").write_bytes(b"half")
    with pytest.raises(DataError, match="delete it and start again"):
        cache(tmp_path, Counting(), count=70)
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DataError, match=r"needs 0\.0 MB"):
        cache(tmp_path / "new", Counting())


def test_other_weights_crops_or_precision_have_a_cache_of_their_own(tmp_path: Path) -> None:
    crops = tmp_path / "data.crops" / "abc"
    face = SFace()
    with pytest.raises(DataError, match="holds no finished crops of 'train'"):
        features_folder(crops, "train", split_backbone(face, 2)[0], False)
    for folder in (crops, crops.with_name("def")):
        folder.mkdir(parents=True)
        (folder / "train.key").write_text("these images")

    def name(units: int, bf16: bool = False, folder: Path = crops) -> Path:
        return features_folder(folder, "train", split_backbone(face, units)[0], bf16)

    names = [name(2), name(3), name(2, bf16=True), name(2, folder=crops.with_name("def"))]
    (crops / "train.key").write_text("the same names, one image overwritten")
    names.append(name(2))
    assert len(set(names)) == 5
    assert {place.parent.parent for place in names} == {tmp_path / "data.features"}


def test_targets_are_the_teachers_and_move_with_the_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    teacher = Teacher(CONFIG).eval()
    scene = cache(tmp_path / "s", Counting())
    stem = cache(tmp_path / "f", Counting(4, 1))
    grids = (scene, stem)
    targets = cache_targets(tmp_path, teacher, grids, False, lambda line: None)
    rows = np.array([0, 77])
    affine = random_affine(2, Augmentation(), torch.Generator().manual_seed(0))
    outputs = targets.read(rows, affine, 8)
    expected = teacher.forward_outputs(scene.read(rows), stem.read(rows))
    assert torch.allclose(outputs.logits, expected.logits, atol=1e-4)
    assert torch.allclose(outputs.embedding, expected.embedding, atol=1e-2)
    assert outputs.scene.shape == (2, 5, 8, 8)
    assert torch.allclose(outputs.face, warp(expected.face, affine, 8), atol=0.02)
    full = shutil.disk_usage(tmp_path)._replace(free=100)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: full)
        with pytest.raises(DataError, match=r"needs 0\.1 MB"):
            cache_targets(tmp_path, Teacher(CONFIG), grids, False, lambda line: None)
    said: list[str] = []
    with ThreadPoolExecutor(2) as pool:
        teacher = Teacher(CONFIG)
        calls = [
            pool.submit(cache_targets, tmp_path, teacher, grids, False, said.append)
            for _ in range(2)
        ]
        one, two = (call.result() for call in calls)
    assert len(said) == 1, "the second waited and found it done"
    assert torch.equal(one.read(rows, affine, 8).face, two.read(rows, affine, 8).face)
    other = cache_targets(tmp_path, Teacher(CONFIG), grids, False, lambda line: None)
    assert not torch.allclose(other.read(rows, affine, 8).logits, outputs.logits)


def test_a_digest_that_0_1_0_wrote_is_still_met() -> None:
    layer = nn.Linear(2, 2)
    stems = nn.ModuleList([nn.ModuleDict({"stages": layer})])
    now = nn.ModuleDict({"stems": stems, "trainable_tails": nn.ModuleList([layer])})
    then = nn.ModuleDict({"lower": nn.ModuleDict({"below": layer}), "above": layer})
    assert weights_digest(now) == weights_digest(then)
    digest = hashlib.sha256()
    for name, value in sorted(then.state_dict().items()):
        digest.update(name.encode() + value.numpy().tobytes())
    assert weights_digest(now) == digest.hexdigest()


@pytest.mark.parametrize("cached", [(), ("scene",), ("face",), ("scene", "face")])
def test_what_is_cached_moves_and_what_is_not_sees_the_picture(
    tmp_path: Path, cached: tuple[str, ...]
) -> None:
    recipe = Recipe(
        name="t",
        crop=CropRecipe(size=56, template=[[float(i), 1.0] for i in range(5)]),
        teacher=TeacherRecipe(cached=list(cached)),
        augmentation=Augmentation(noise=0.0, erase_share=0.0, shrink_share=0.0, blur_share=0.0),
        training=Training(epochs=1),
    )
    frozen = (Counting(), Counting(4, 1))
    grids = (cache(tmp_path / "s", Counting()), cache(tmp_path / "f", Counting(4, 1)))
    examples = Examples(pixels(), np.full((COUNT, 3), 1 / 3, np.float32), np.arange(COUNT), "")
    batches = TeacherBatches(
        recipe,
        examples,
        grids,
        frozen,
        CPU,
        [
            grid if name in cached else None
            for name, grid in zip(("scene", "face"), grids, strict=True)
        ],
    )
    rows = np.array([3, 8])
    targets, scene, stem = batches.batch(rows, 0, torch.Generator().manual_seed(4))
    assert scene.shape == (2, 5, 7, 7)
    assert stem.shape == (2, 4, 7, 7)
    assert targets.shape == (2, 3)
    affine = random_affine(2, recipe.augmentation, torch.Generator().manual_seed(4))
    for part, name, grid, network in zip(
        (scene, stem), ("scene", "face"), grids, frozen, strict=True
    ):
        moved = warp(grid.read(rows), affine)
        assert torch.allclose(part, moved, atol=1e-6) is (name in cached)
        assert network.seen == (0 if name in cached else 2)
