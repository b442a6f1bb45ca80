"""Refuse a training run whose paths are wrong before its images are read, which takes minutes."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from distill.data.crops import require_detector
from distill.models.build import require_backbones
from distill.models.checkpoint import read
from distill.recipe import Recipe
from edge.base.errors import UsageError
from edge.base.files import file_lock, refuse_unwritable
from edge.inference.bundle import load_bundle

LOCK = ".lock"  # in OUT, held while a run trains


def refuse_wrong_paths(recipe: Recipe, args: argparse.Namespace) -> None:
    """Look at every path of distill-train's command line. Raises UsageError, DataError, BundleError or
    WeightsError in one line."""
    refuse_unwritable("--out", args.out, folder=True)
    refuse_another_run(args.out, args.resume)
    if (args.out / LOCK).is_file():
        with alone_in(args.out):
            pass
    require_detector(args.weights)
    if recipe.teacher:
        require_backbones(recipe, args.dinov2, args.face)
    for path in args.teacher or ():
        own = None if path.is_dir() else read(path)[1]
        if own is None:
            load_bundle(path)
        elif own.teacher:
            require_backbones(own, args.dinov2, args.face)
        follows = recipe.distillation is not None and not recipe.distillation.logits_alone
        if follows and path == args.teacher[0] and not (own and own.teacher):
            raise UsageError(
                f"{path} is a {'student' if own else 'bundle'}, which has no tokens: give a teacher's "
                f"checkpoint first, or follow logits alone: of 'distillation' set tokens, embedding, "
                f"relations and views to 0, and live to false"
            )


@contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """Hold a run's folder, so that two runs never mix their files in it. Raises UsageError where
    another process holds it."""
    with ExitStack() as stack:
        try:
            stack.enter_context(file_lock(out / LOCK, wait=False))
        except BlockingIOError as error:
            raise UsageError(
                f"--out {out}: another process trains in it; wait for its end, or choose another --out"
            ) from error
        yield


def refuse_another_run(out: Path, resume: bool) -> None:
    """Raise UsageError where `out` holds a run, and resuming was not asked for."""
    if (out / "last.pt").is_file() and not resume:
        raise UsageError(f"{out} holds a run; resume it by --resume, or choose another --out")
