"""Describe a trained network's file: weights plus a plain dict, read without unpickling code.

A teacher's file holds what was trained, not the frozen backbones: their weights come from their own
files again, and must have the digest that the checkpoint names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from distill.models import store
from distill.models.backbones import FrozenBackbones
from distill.models.build import build_student, build_teacher
from distill.models.feature_cache import weights_digest
from distill.models.student import Student
from distill.models.teacher import Teacher
from distill.recipe import Recipe
from edge.base.errors import DataError
from edge.base.strict_yaml import validate

SCHEMA = "distill.checkpoint/2"
METADATA = ("epoch", "valid_accuracy", "teacher")
# Absent in the first files of this schema.
OPTIONAL = ("start", "layout", "averaged", "teacher_data")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A student, in evaluation mode, and what its file says of it.

    metadata: epoch, valid_accuracy (None without a validation split), teacher (its name, or ""),
    start (`Start.metadata` of the weights it started from, or None), layout (of the data, or None
    where it was not kept), averaged (of a mean, what `provenance.kept` says of each file in
    it, or None), teacher_data (what the teachers learned from, or None), validated (see
    `was_validated`)."""

    student: Student
    labels: tuple[str, ...]
    recipe: Recipe
    metadata: dict[str, Any]


def state(
    network: nn.Module,
    recipe: Recipe,
    labels: tuple[str, ...],
    epoch: int,
    valid_accuracy: float | None,
    frozen: str = "",
    teacher: str = "",
    start: dict[str, Any] | None = None,
    layout: str | None = None,
    teacher_data: Sequence[str] = (),
) -> dict[str, Any]:
    """Return what `load_checkpoint` reads.

    valid_accuracy: None where all of train was learned from and nothing chosen by;
    frozen: digest of a teacher's frozen backbones; teacher: a student's, "" without one; start: of
    the weights it started from, as `Start.metadata`; layout: of the training data; teacher_data: what
    the teachers learned from, as in DATA_NAMES."""
    return {
        "schema": SCHEMA,
        "labels": list(labels),
        "recipe": recipe.model_dump(),
        "epoch": epoch,
        "valid_accuracy": valid_accuracy,
        "frozen": frozen,
        "teacher": teacher,
        "start": start,
        "layout": layout,
        "teacher_data": list(teacher_data),
        "network": network.state_dict(),
    }


def was_validated(content: dict[str, Any]) -> bool:
    """Tell whether the validation split was kept apart from what a checkpoint's weights learned from,
    those of its start too. content: as `read` returns it."""
    known = content.get("validated")  # of a mean, which has no accuracy of its own
    if known is None:
        known = content["valid_accuracy"] is not None
    return bool(known and (content.get("start") or {}).get("validated", True))


def read(path: Path) -> tuple[dict[str, Any], Recipe, tuple[str, ...]]:
    """Return a file's content, its recipe and its labels. Raises DataError in one line."""
    content = store.load(path)
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        found = content.get("schema") if isinstance(content, dict) else type(content).__name__
        if isinstance(content, dict) and "optimiser" in content:
            raise DataError(f"{path} is for resuming alone; give best.pt, which is beside it")
        raise DataError(f"{path} has schema {found!r}, this version reads '{SCHEMA}'; train again")
    wanted = ("recipe", "labels", "network", "frozen", *METADATA)
    if missing := [key for key in wanted if key not in content]:
        raise DataError(f"{path} lacks '{missing[0]}'; train it again")
    return content, validate(Recipe, content["recipe"], str(path)), tuple(content["labels"])


def load_weights(network: nn.Module, content: dict[str, Any], path: Path) -> None:
    """Load what `read` returned, in evaluation mode. Raises DataError where it does not fit, or is of a
    run that diverged."""
    try:
        network.load_state_dict(store.current_names(content["network"]))
    except RuntimeError as error:
        raise DataError(f"{path}: its weights do not fit its recipe; train it again") from error
    if not all(bool(value.isfinite().all()) for value in network.state_dict().values()):
        raise DataError(f"{path} holds weights that are not finite (NaN); train it again")
    network.eval()


def load_checkpoint(path: Path) -> Checkpoint:
    """Load a student that distill-train wrote. Raises DataError in one line."""
    content, recipe, labels = read(path)
    if recipe.student is None:
        raise DataError(f"{path} holds a teacher, not a student; give a student's checkpoint")
    student = build_student(recipe, len(labels))
    load_weights(student, content, path)
    metadata = {key: content.get(key) for key in (*METADATA, *OPTIONAL)}
    metadata["validated"] = was_validated(content)
    return Checkpoint(student, labels, recipe, metadata)


def load_teacher(
    path: Path, dinov2: str, faces: Sequence[Path]
) -> tuple[Teacher, FrozenBackbones, Recipe, tuple[str, ...]]:
    """Load a teacher that distill-train wrote, and the backbones it was trained on.

    dinov2, faces: as in `build_teacher`. Raises DataError in one line, also where those are others."""
    content, recipe, labels = read(path)
    if recipe.teacher is None:
        raise DataError(f"{path} holds a student, not a teacher; give a teacher's checkpoint")
    teacher, frozen = build_teacher(recipe, len(labels), dinov2, faces)
    if weights_digest(frozen) != content["frozen"]:
        raise DataError(
            f"{path} was trained on other backbones; give the same by --dinov2 and --face"
        )
    load_weights(teacher, content, path)
    return teacher, frozen, recipe, labels
