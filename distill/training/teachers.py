"""Read who teaches a student: their classes and names, and what they answer."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from distill.models.checkpoint import read
from distill.models.predict import Predictor, open_predictor
from distill.models.store import digest_of
from edge.base.errors import UsageError
from edge.inference.bundle import load_bundle


def order_of_classes(own: tuple[str, ...], teachers: Sequence[Path] | None) -> tuple[str, ...]:
    """Return the classes of the data, `own`, in the order in which a student answers: that of its first
    teacher, where it has one. Raises UsageError where that knows other classes."""
    if not teachers:
        return own
    first = teachers[0]
    theirs = load_bundle(first).labels if first.is_dir() else read(first)[2]
    if sorted(theirs) != sorted(own):
        raise UsageError(f"{first} knows other classes: {', '.join(theirs)}")
    return theirs


def predictors(paths: Sequence[Path], args: argparse.Namespace) -> list[Predictor]:
    """Open teachers that answer by their logits alone, without a bundle's counting constants."""
    return [open_predictor(path, args.dinov2, args.face, learned=True) for path in paths]


def name_of(teacher: Path) -> str:
    """Name a checkpoint or bundle by its file and the start of its digest."""
    file = teacher / "bundle.json" if teacher.is_dir() else teacher
    return f"{teacher.name} {digest_of(file)[:16]}"


def has_tokens(teacher: Path) -> bool:
    """Tell whether tokens can be followed: those of a teacher's checkpoint, of no other network."""
    return not teacher.is_dir() and read(teacher)[1].teacher is not None
