"""Where a task's batches come from: rows of the training set > what the task's forward takes.

StudentCourse   pictures, changed at random; with a teacher, its thoughts of them
TeacherCourse   the frozen side's outputs, from the cache or computed on the spot
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.data.augment import corrupt, random_affine, warp
from distill.data.sampling import Examples
from distill.models.backbones import Frozen
from distill.models.feature_cache import Computed, Features
from distill.models.precision import autocast
from distill.models.student import Student
from distill.models.teacher import Teacher
from distill.recipe import Recipe
from distill.training.target_cache import Lessons
from distill.training.task import on_grid

Inputs = tuple[Any, ...]
Network = Callable[[Tensor], Tensor]


class Course(Protocol):
    """What the training loop asks for."""

    def batch(self, rows: NDArray[np.int64], epoch: int, generator: torch.Generator) -> Inputs:
        """The arguments of the task's forward, on its device."""
        ...

    def validate(self, network: Any) -> NDArray[np.float32]:
        """Logits (N, K) of the whole validation split, on the CPU."""
        ...


def mix(
    alpha: float, generator: torch.Generator, targets: Tensor, *inputs: Tensor
) -> tuple[Tensor, ...]:
    """mixup (Zhang et al., ICLR 2018): each example with another of its batch, targets alike."""
    if alpha == 0:
        return (targets, *inputs)
    # torch draws no Beta from a generator of its own.
    seed = int(torch.randint(2**31, (1,), generator=generator))
    part = float(np.random.default_rng(seed).beta(alpha, alpha))
    order = torch.randperm(len(targets), generator=generator)
    return tuple(part * x + (1 - part) * x[order.to(x.device)] for x in (targets, *inputs))


@torch.no_grad()
def predict(student: Student, faces: NDArray[np.uint8], batch: int = 256) -> NDArray[np.float32]:
    """Logits (N, K) of uint8 faces (N, C, S, S), in evaluation mode and float32."""
    student.eval()
    device = next(student.parameters()).device
    parts = []
    for start in range(0, len(faces), batch):
        block = torch.from_numpy(np.array(faces[start : start + batch])).float().to(device)
        parts.append(student(block.to(memory_format=torch.channels_last)).float().cpu().numpy())
    return np.concatenate(parts)


@torch.no_grad()
def predict_teacher(
    teacher: Teacher, scene: Features, lower: Features | Computed, batch: int = 256
) -> NDArray[np.float32]:
    """Logits (N, K) from cached features, in evaluation mode and float32."""
    teacher.eval()
    device = next(teacher.parameters()).device
    parts = []
    for start in range(0, len(scene), batch):
        rows = np.arange(start, min(start + batch, len(scene)))
        logits = teacher(scene.read(rows).to(device), lower.read(rows).to(device))
        parts.append(logits.float().cpu().numpy())
    return np.concatenate(parts)


@torch.no_grad()
def predict_faces(
    teacher: Teacher, frozen: Frozen, faces: NDArray[np.uint8], batch: int = 128
) -> NDArray[np.float32]:
    """Logits (N, K) of uint8 faces (N, C, S, S), through both backbones, in float32."""
    teacher.eval()
    device = next(teacher.parameters()).device
    frozen.to(device)
    parts = []
    for start in range(0, len(faces), batch):
        block = torch.from_numpy(np.array(faces[start : start + batch])).float().to(device)
        parts.append(teacher(*frozen(block)).cpu().numpy())
    return np.concatenate(parts)


@dataclass(frozen=True, slots=True)
class StudentCourse:
    """lessons: a teacher's cached thoughts; live: a teacher that thinks about the very picture that
    the student sees. At most one of them."""

    recipe: Recipe
    examples: Examples
    valid: NDArray[np.uint8]
    device: torch.device
    lessons: Lessons | None = None
    live: tuple[Teacher, Frozen] | None = None
    bf16: bool = False

    def batch(self, rows: NDArray[np.int64], epoch: int, generator: torch.Generator) -> Inputs:
        faces, targets = self.examples.read(rows)
        places = random_affine(len(faces), self.recipe.augmentation, generator)
        faces = corrupt(warp(faces, places), self.recipe.augmentation, generator)
        targets, faces = mix(self.recipe.training.mixup, generator, targets, faces)
        inputs: Inputs = (
            faces.to(self.device, memory_format=torch.channels_last),
            targets.to(self.device),
        )
        side = self.recipe.crop.size // 8
        if self.live:
            teacher, frozen = self.live
            with torch.no_grad(), autocast(self.device, self.bf16):
                inputs += (on_grid(teacher.eval().think(*frozen(inputs[0])), side),)
        elif self.lessons:
            inputs += (self.lessons.read(rows, places, side).to(self.device),)
        return inputs

    def validate(self, network: Student) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = predict(network, self.valid)
        return logits


@dataclass(frozen=True, slots=True)
class TeacherCourse:
    """scene, lower: cached grids of the plain crops, which are moved as the picture would be; None
    computes them from the picture, moved and corrupted, by `frozen`, the two networks. valid: both,
    cached."""

    recipe: Recipe
    examples: Examples
    valid: tuple[Features, Features | Computed]
    frozen: tuple[Network, Network]
    device: torch.device
    scene: Features | None = None
    lower: Features | None = None
    bf16: bool = False

    def batch(self, rows: NDArray[np.int64], epoch: int, generator: torch.Generator) -> Inputs:
        faces, targets = self.examples.read(rows)
        places = random_affine(len(faces), self.recipe.augmentation, generator)
        if self.scene is None or self.lower is None:
            faces = corrupt(warp(faces, places), self.recipe.augmentation, generator)
        with autocast(self.device, self.bf16):
            scene, lower = (
                network(faces.to(self.device))
                if cached is None
                else warp(cached.read(rows), places).to(self.device)
                for network, cached in zip(self.frozen, (self.scene, self.lower), strict=True)
            )
        targets, scene, lower = mix(self.recipe.training.mixup, generator, targets, scene, lower)
        return (
            scene.to(self.device),
            lower.to(self.device, memory_format=torch.channels_last),
            targets.to(self.device),
        )

    def validate(self, network: Teacher) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = predict_teacher(network, *self.valid)
        return logits
