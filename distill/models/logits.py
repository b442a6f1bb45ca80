"""Compute the logits of many faces, a batch at a time, in evaluation mode and float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distill.models.backbones import FrozenBackbones
from distill.models.feature_cache import Grids
from distill.models.student import Student
from distill.models.teacher import Teacher

Inputs = Callable[[NDArray[np.int64], torch.device], tuple[Tensor, ...]]


@torch.no_grad()
def _in_batches(network: nn.Module, count: int, batch: int, inputs: Inputs) -> NDArray[np.float32]:
    """Run the network over rows 0 to count - 1; inputs: what it is called with, by rows."""
    network.eval()
    device = next(network.parameters()).device
    parts = []
    for start in range(0, count, batch):
        rows = np.arange(start, min(start + batch, count))
        parts.append(network(*inputs(rows, device)).float().cpu().numpy())
    return np.concatenate(parts)


def _read(faces: NDArray[np.uint8], rows: NDArray[np.int64], device: torch.device) -> Tensor:
    return torch.from_numpy(faces[rows]).float().to(device)


def predict_student(
    student: Student, faces: NDArray[np.uint8], batch: int = 256
) -> NDArray[np.float32]:
    """Return logits (N, K) of uint8 faces (N, C, S, S)."""

    def inputs(rows: NDArray[np.int64], device: torch.device) -> tuple[Tensor, ...]:
        return (_read(faces, rows, device).to(memory_format=torch.channels_last),)

    return _in_batches(student, len(faces), batch, inputs)


def predict_teacher(
    teacher: Teacher, grids: Sequence[Grids], batch: int = 256
) -> NDArray[np.float32]:
    """Return logits (N, K) of N faces; grids: the outputs of `FrozenBackbones`, one each."""

    def inputs(rows: NDArray[np.int64], device: torch.device) -> tuple[Tensor, ...]:
        return tuple(grid.read(rows).to(device) for grid in grids)

    return _in_batches(teacher, len(grids[0]), batch, inputs)


def predict_faces(
    teacher: Teacher, frozen: FrozenBackbones, faces: NDArray[np.uint8], batch: int = 128
) -> NDArray[np.float32]:
    """Return logits (N, K) of uint8 faces (N, C, S, S), through all backbones."""

    def inputs(rows: NDArray[np.int64], device: torch.device) -> tuple[Tensor, ...]:
        return tuple(frozen.to(device)(_read(faces, rows, device)))

    return _in_batches(teacher, len(faces), batch, inputs)
