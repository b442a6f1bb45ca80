"""Build the networks that a recipe describes."""

from __future__ import annotations

from pathlib import Path

from distill.models.backbones import IR50, Dinov2, FrozenBackbones, SFace, split_backbone
from distill.models.student import Student, StudentConfig
from distill.models.teacher import Teacher, TeacherConfig
from distill.recipe import Recipe
from edge.base.errors import DataError, UsageError


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
        )
    )


def build_teacher(
    recipe: Recipe, classes: int, dinov2: str, face: Path | None
) -> tuple[Teacher, FrozenBackbones]:
    """Return a teacher whose trainable tail has its pretrained weights, and the frozen backbones.

    dinov2: a folder or a hub's name; face: the face backbone's file. Raises UsageError without that
    file, DataError for a wrong one."""
    t = recipe.teacher
    if t is None:
        raise DataError(f"recipe '{recipe.name}' trains no teacher")
    if face is None:
        what = {"sface": "SFace's ONNX file", "ir50": "an ArcFace IR-50 checkpoint"}[t.face]
        raise UsageError(f"the teacher reads a face backbone: give {what} by --face FILE")
    load = SFace.from_onnx if t.face == "sface" else IR50.from_checkpoint
    backbone = load(face, t.face_grid)
    scene = Dinov2(dinov2, t.scene_grid)
    stem, tail = split_backbone(backbone, t.trained_units)
    config = TeacherConfig(
        classes=classes,
        scene_width=scene.width,
        face_width=backbone.width,
        grid=t.grid,
        width=t.width,
        heads=t.heads,
        dropout=t.dropout,
        scene="scene" not in t.without,
        face="face" not in t.without,
        attend="attention" not in t.without,
        convolve="convolutions" not in t.without,
    )
    return Teacher(config, tail), FrozenBackbones(scene, stem)
