"""Keep a trained teacher's outputs for every training image on disk, for the student to learn from.

A student sees an image warped at random; the backbones' grids are warped with it, since their tokens
are places. Logits and embedding are those of the plain image (Beyer et al., CVPR 2022, call this a
fixed teacher).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.data.augment import warp
from distill.data.disk import create_map, refuse_full_disk
from distill.models.feature_cache import (
    Grids,
    pack,
    unpack,
    weights_digest,
)
from distill.models.precision import autocast
from distill.models.predict import Predictor, ensemble, in_blocks, logits_behind, probabilities
from distill.models.teacher import Teacher, TeacherAnswers, TeacherOutputs
from distill.progress import Progress
from edge.base.errors import DataError
from edge.base.files import file_lock, write_atomically
from edge.inference.bundle import CropSpec

BATCH = 256
ARRAYS = ("logits", "embedding", "scene", "scene-scale", "face", "face-scale")


@dataclass(frozen=True, slots=True)
class TargetCache:
    """Read a teacher's outputs by row of the split. arrays: memory-mapped, by the names in ARRAYS."""

    arrays: dict[str, NDArray[Any]]

    def read(self, rows: NDArray[np.int64], affine: Tensor, side: int) -> TeacherOutputs:
        """Return the outputs for warped images, grids as (B, D, side, side).

        affine: (B, 2, 3), how these images were warped (`augment.random_affine`)."""
        a = {name: array[rows] for name, array in self.arrays.items()}
        return TeacherOutputs(
            logits=torch.from_numpy(a["logits"].astype(np.float32)),
            embedding=torch.from_numpy(a["embedding"].astype(np.float32)),
            scene=warp(unpack(a["scene"], a["scene-scale"]), affine, side),
            face=warp(unpack(a["face"], a["face-scale"]), affine, side),
        )


@dataclass(frozen=True, slots=True)
class LogitTargets:
    """Read what networks without tokens say of the plain images: a student of this kit, a bundle.

    logits: (N, K) float32 by row of the split."""

    logits: NDArray[np.float32]

    def read(self, rows: NDArray[np.int64], affine: Tensor, side: int) -> TeacherAnswers:
        """Return the logits (B, K), however the images are warped, and an embedding of no width."""
        return TeacherAnswers(torch.from_numpy(self.logits[rows]), torch.empty(len(rows), 0))


@torch.no_grad()
def compute_targets(
    teacher: Teacher, grids: Sequence[Grids], bf16: bool
) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield the teacher's outputs for all rows as ARRAYS, a block of rows at a time."""
    teacher.eval()
    device = next(teacher.parameters()).device
    count = len(grids[0])
    for start in range(0, count, BATCH):
        rows = np.arange(start, min(start + BATCH, count))
        with autocast(device, bf16):
            outputs = teacher.forward_outputs(*(grid.read(rows).to(device) for grid in grids))
        (scenes, scene_scale), (faces, face_scale) = (
            pack(grid.cpu()) for grid in (outputs.scene, outputs.face)
        )
        yield {
            "logits": outputs.logits.float().cpu().numpy(),
            "embedding": outputs.embedding.half().cpu().numpy(),
            "scene": scenes,
            "scene-scale": scene_scale,
            "face": faces,
            "face-scale": face_scale,
        }


def _write(folder: Path, blocks: Iterator[dict[str, NDArray[Any]]], rows: int) -> None:
    """Write into memory-mapped files, since the outputs for a large data set exceed the memory."""
    open_arrays: dict[str, np.memmap[Any, Any]] = {}
    with Progress("the teacher's outputs", rows, "images") as bar:
        for block in blocks:
            if not open_arrays:
                row_bytes = sum(part.nbytes // len(part) for part in block.values())
                refuse_full_disk(folder, row_bytes * rows)
            for name, part in block.items():
                if name not in open_arrays:
                    shape, path = (rows, *part.shape[1:]), folder / f"{name}.npy"
                    open_arrays[name] = create_map(path, part.dtype, shape)
                open_arrays[name][bar.done : bar.done + len(part)] = part
            bar.advance(len(block["logits"]))
    for array in open_arrays.values():
        array.flush()


def cache_targets(
    features: Path,
    teacher: Teacher,
    grids: Sequence[Grids],
    bf16: bool,
    progress: Callable[[str], None],
) -> TargetCache:
    """Open FEATURES/lessons-TEACHER/*.npy, after computing them where they are missing.

    features: the first stem's folder, whose key names the images; grids: the outputs of
    `FrozenBackbones`, one each. Raises DataError where files are
    damaged."""
    # An older name of these outputs, kept: with another, all that is on disk is computed again.
    folder = features / f"lessons-{weights_digest(teacher)[:16]}"
    mark, count = folder / "done", len(grids[0])
    if not mark.is_file():
        refuse_full_disk(folder, 0)
        with file_lock(folder / ".lock"):  # of two runs, the second waits and finds it done
            if not mark.is_file():
                progress(f"computing the teacher's outputs for {count} images")
                try:
                    _write(folder, compute_targets(teacher, grids, bf16), count)
                except (OSError, DataError):
                    for name in ARRAYS:  # they would fill a disk that is full already
                        (folder / f"{name}.npy").unlink(missing_ok=True)
                    raise
                write_atomically(mark, b"")
    try:
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
    except (OSError, ValueError) as error:
        raise DataError(f"{folder} cannot be used ({error}); delete it and start again") from error
    if any(len(array) != count for array in arrays.values()):
        raise DataError(f"{folder} holds other images; delete it and start again")
    return TargetCache(arrays)


def _telling(predictor: Predictor) -> Predictor:
    """Return the network, which shows how far it is."""
    ask = partial(in_blocks, predictor.predict, what="another teacher")
    return replace(predictor, predict=ask)


def logit_targets(members: Sequence[Predictor], pixels: NDArray[np.uint8]) -> LogitTargets:
    """Ask networks for the mean of their logits, up to a constant for each row, of the plain images
    (N, C, S, S) uint8. Raises DataError as `ensemble` does."""
    mean = ensemble([_telling(member) for member in members]).predict(pixels)
    return LogitTargets(logits_behind(mean).astype(np.float32))


def ensemble_targets(
    cache: TargetCache,
    labels: tuple[str, ...],
    crop: CropSpec,
    others: Sequence[Predictor],
    pixels: NDArray[np.uint8],
) -> TargetCache:
    """Replace the teacher's logits by the mean of all networks' logits, up to a constant for each row.

    labels, crop: the teacher's; pixels: (N, C, S, S) uint8, the cached images. Raises DataError
    where another network knows other classes or reads other crops. You et al., "Learning from
    Multiple Teacher Networks", KDD 2017."""
    own = probabilities(cache.arrays["logits"])
    teacher = Predictor(labels, crop, lambda _: own, "fp32")
    # Of the teacher's own logits all rows are there at once: the others alone take time.
    mean = ensemble([teacher, *(_telling(other) for other in others)]).predict(pixels)
    return TargetCache({**cache.arrays, "logits": np.log(mean).astype(np.float32)})
