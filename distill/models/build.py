"""Build the networks that a recipe describes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from distill.models.backbones import FaceBackbone, FrozenBackbones, split_backbone
from distill.models.dinov2 import Dinov2, kind_of
from distill.models.dlib import DlibFace, settle
from distill.models.face_files import face_files
from distill.models.ir50 import IR50
from distill.models.sface import SFace
from distill.models.student import Student, StudentConfig
from distill.models.teacher import Teacher, TeacherConfig
from distill.recipe import Recipe
from edge.base.errors import DataError

LOADERS: dict[str, Callable[[Path, int], FaceBackbone]] = {
    "sface": SFace.from_onnx,
    "ir50": IR50.from_checkpoint,
    "dlib": DlibFace.from_safetensors,
}


def build_student(recipe: Recipe, classes: int) -> Student:
    """Return an untrained student. Raises DataError where the recipe trains none."""
    s = recipe.student
    if s is None:
        raise DataError(f"recipe '{recipe.name}' trains no student")
    return Student(
        StudentConfig(
            classes=classes,
            size=recipe.crop.size,
            channels=recipe.crop.channels,
            widths=(s.widths[0], s.widths[1], s.widths[2], s.widths[3]),
            depths=(s.depths[0], s.depths[1], s.depths[2]),
            width=s.width,
            heads=s.heads,
            dropout=s.dropout,
            attend=s.attend,
            pool=s.pool,
            queries=s.queries,
        )
    )


def build_teacher(
    recipe: Recipe, classes: int, dinov2: str, faces: Sequence[Path]
) -> tuple[Teacher, FrozenBackbones]:
    """Return a teacher whose trainable tails have their pretrained weights, and the frozen backbones.

    dinov2: a folder or a hub's name; faces: the face backbones' files. Raises UsageError where one is
    missing, DataError for a wrong one."""
    t = recipe.teacher
    if t is None:
        raise DataError(f"recipe '{recipe.name}' trains no teacher")
    files = face_files(t.face, faces)
    backbones = [
        LOADERS[name](path, grid)
        for name, path, grid in zip(t.face, files, t.of_each(t.face_grid), strict=True)
    ]
    scene = Dinov2(dinov2, t.scene_grid)
    parts = [
        split_backbone(backbone, units)
        for backbone, units in zip(backbones, t.of_each(t.trained_units), strict=True)
    ]
    config = TeacherConfig(
        classes=classes,
        scene_width=scene.width,
        face_widths=tuple(backbone.width for backbone in backbones),
        grid=t.grid,
        width=t.width,
        heads=t.heads,
        dropout=t.dropout,
        scene="scene" not in t.without,
        face="face" not in t.without,
        attend="attention" not in t.without,
        convolve="convolutions" not in t.without,
    )
    tails = [tail for _, tail in parts]
    return Teacher(config, tails), FrozenBackbones(scene, [stem for stem, _ in parts])


def require_backbones(recipe: Recipe, dinov2: str | None, faces: Sequence[Path]) -> None:
    """Refuse at once what `build_teacher` would miss later. Raises UsageError where a face backbone's
    file is not named, DataError where a file or DINOv2, where it is named, is not there."""
    if recipe.teacher:
        face_files(recipe.teacher.face, faces)
        if dinov2:
            kind_of(dinov2)


@torch.no_grad()
def settle_tails(recipe: Recipe, teacher: Teacher, frozen: FrozenBackbones, faces: Tensor) -> None:
    """Give tails whose file holds no batch statistics those of some training faces, (N, C, S, S)."""
    assert recipe.teacher is not None
    for name, stem, tail in zip(
        recipe.teacher.face, frozen.face_stems(), teacher.trainable_tails, strict=True
    ):
        if name == "dlib":
            settle(tail, stem(faces))
