"""Refuse a training run whose paths are wrong before its images are read, which takes minutes."""

from __future__ import annotations

import argparse
from pathlib import Path

from distill.data.crops import require_detector
from distill.models.build import require_backbones
from distill.models.checkpoint import read
from distill.recipe import Recipe
from edge.base.errors import UsageError
from edge.base.files import refuse_unwritable
from edge.inference.bundle import load_bundle


def refuse_wrong_paths(recipe: Recipe, args: argparse.Namespace) -> None:
    """Look at every path of distill-train's command line. Raises UsageError, DataError, BundleError or
    WeightsError in one line."""
    refuse_unwritable("--out", args.out, folder=True)
    refuse_another_run(args.out, args.resume)
    require_detector(args.weights)
    if recipe.teacher:
        require_backbones(recipe, args.dinov2, args.face)
    for place, path in enumerate(args.teacher or ()):
        if path.is_dir() and place > 0:  # the first teaches by its tokens too, which no bundle has
            load_bundle(path)
        elif (own := read(path)[1]).teacher:
            require_backbones(own, args.dinov2, args.face)


def refuse_another_run(out: Path, resume: bool) -> None:
    """Raise UsageError where `out` holds a run, and resuming was not asked for."""
    if (out / "last.pt").is_file() and not resume:
        raise UsageError(f"{out} holds a run; resume it by --resume, or choose another --out")
