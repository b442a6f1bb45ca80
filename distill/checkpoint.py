"""A trained student on disk: weights plus a plain dict, read without unpickling code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill import store
from distill.recipe import Recipe
from distill.student import Student
from distill.train import SCHEMA, build_student
from edge.errors import DataError
from edge.strict import validate


@dataclass(frozen=True, slots=True)
class Checkpoint:
    student: Student
    labels: tuple[str, ...]
    recipe: Recipe
    facts: dict[str, Any]


def load_checkpoint(path: Path) -> Checkpoint:
    """What distill-train wrote; the student is in evaluation mode. Raises DataError in one line."""
    content = store.load(path)
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        found = content.get("schema") if isinstance(content, dict) else type(content).__name__
        raise DataError(f"{path} has schema {found!r}, this version reads '{SCHEMA}'; train again")
    wanted = ("recipe", "labels", "student", "epoch", "valid_accuracy")
    if missing := [key for key in wanted if key not in content]:
        raise DataError(f"{path} lacks '{missing[0]}'; train it again")
    recipe = validate(Recipe, content["recipe"], str(path))
    labels = tuple(content["labels"])
    student = build_student(recipe, len(labels))
    try:
        student.load_state_dict(content["student"])
    except RuntimeError as error:
        raise DataError(f"{path}: its weights do not fit its recipe; train it again") from error
    facts = {key: content[key] for key in ("epoch", "valid_accuracy")}
    return Checkpoint(student.eval(), labels, recipe, facts)
