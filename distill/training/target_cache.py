"""What a trained teacher thinks of every training picture, on disk, for the student to learn from.

The frozen side is read from its cache, the teacher's own part runs once a picture. A student
sees a picture moved at random; the backbones' grids are moved with it, since tokens are places. Logits
and embedding are those of the picture as it is (Beyer et al., CVPR 2022, call this a fixed teacher).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.data.augment import warp
from distill.models.feature_cache import (
    Computed,
    Features,
    pack,
    refuse_full_disk,
    unpack,
    weights_digest,
)
from distill.models.precision import autocast
from distill.models.predict import Model, asked_together
from distill.models.teacher import Teacher, Thoughts
from edge.base.errors import DataError
from edge.base.files import file_lock, write_atomically
from edge.classify import softmax
from edge.inference.bundle import CropSpec

BATCH = 256
ARRAYS = ("logits", "embedding", "scene", "scene-scale", "face", "face-scale")


@dataclass(frozen=True, slots=True)
class Lessons:
    """Thoughts by row of the split, memory-mapped."""

    arrays: dict[str, NDArray[np.generic]]

    def read(self, rows: NDArray[np.int64], places: Tensor, side: int) -> Thoughts:
        """places: (B, 2, 3), where `augment.random_affine` moved these pictures; side: of the student's
        grid."""
        a = {name: array[rows] for name, array in self.arrays.items()}
        return Thoughts(
            logits=torch.from_numpy(a["logits"].astype(np.float32)),
            embedding=torch.from_numpy(a["embedding"].astype(np.float32)),
            scene=warp(unpack(a["scene"], a["scene-scale"]), places, side),  # type: ignore[arg-type]
            face=warp(unpack(a["face"], a["face-scale"]), places, side),  # type: ignore[arg-type]
        )


@torch.no_grad()
def think(
    teacher: Teacher, scene: Features, lower: Features | Computed, bf16: bool
) -> Iterator[dict[str, NDArray[np.generic]]]:
    """The teacher's thoughts of all rows, packed, a block at a time."""
    teacher.eval()
    device = next(teacher.parameters()).device
    for start in range(0, len(scene), BATCH):
        rows = np.arange(start, min(start + BATCH, len(scene)))
        with autocast(device, bf16):
            thoughts = teacher.think(scene.read(rows).to(device), lower.read(rows).to(device))
        (scenes, scene_scale), (faces, face_scale) = (
            pack(grid.cpu()) for grid in (thoughts.scene, thoughts.face)
        )
        yield {
            "logits": thoughts.logits.float().cpu().numpy(),
            "embedding": thoughts.embedding.half().cpu().numpy(),
            "scene": scenes,
            "scene-scale": scene_scale,
            "face": faces,
            "face-scale": face_scale,
        }


def _write(folder: Path, blocks: Iterator[dict[str, NDArray[np.generic]]], rows: int) -> None:
    """Into memory-mapped files: the thoughts of a large data set fit into no memory."""
    open_arrays: dict[str, np.memmap[Any, Any]] = {}
    done = 0
    for block in blocks:
        if not open_arrays:
            a_row = sum(part.nbytes // len(part) for part in block.values())
            refuse_full_disk(folder, a_row * rows)
        for name, part in block.items():
            if name not in open_arrays:
                shape, path = (rows, *part.shape[1:]), folder / f"{name}.npy"
                open_arrays[name] = np.lib.format.open_memmap(path, "w+", part.dtype, shape)
            open_arrays[name][done : done + len(part)] = part
        done += len(block["logits"])
    for array in open_arrays.values():
        array.flush()


def cache_lessons(
    features: Path,
    teacher: Teacher,
    scene: Features,
    lower: Features | Computed,
    bf16: bool,
    progress: Callable[[str], None],
) -> Lessons:
    """Open or make FEATURES/lessons-TEACHER/*.npy; features: the lower side's folder, whose key
    stands for the pictures. Raises DataError where they are damaged."""
    folder = features / f"lessons-{weights_digest(teacher)[:16]}"
    mark = folder / "done"
    if not mark.is_file():
        with file_lock(folder / ".lock"):  # two runs of one teacher: the second finds it done
            if not mark.is_file():
                progress(f"the teacher thinks about {len(scene)} pictures")
                _write(folder, think(teacher, scene, lower, bf16), len(scene))
                write_atomically(mark, b"")
    try:
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
    except (OSError, ValueError) as error:
        raise DataError(f"{folder} cannot be used ({error}); delete it and start again") from error
    if any(len(array) != len(scene) for array in arrays.values()):
        raise DataError(f"{folder} holds other pictures; delete it and start again")
    return Lessons(arrays)


def with_opinions(
    lessons: Lessons,
    labels: tuple[str, ...],
    crop: CropSpec,
    others: Sequence[Model],
    pixels: NDArray[np.uint8],
) -> Lessons:
    """The same lessons with the mean of all networks' logits (up to a constant a row) in place of the
    teacher's own: You et al., "Learning from Multiple Teacher Networks", KDD 2017.

    labels, crop: of the lessons; pixels: (N, C, S, S) uint8, the pictures they are about. Raises
    DataError where another network knows other classes or reads other crops."""
    own = softmax(np.asarray(lessons.arrays["logits"], dtype=np.float64))
    teacher = Model(labels, crop, lambda _: own, "fp32")
    answers = asked_together([teacher, *others]).predict(pixels)
    return Lessons({**lessons.arrays, "logits": np.log(answers).astype(np.float32)})
