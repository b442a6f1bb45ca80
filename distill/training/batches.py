"""Make batches: from rows of the training set to the arguments of a task's forward.

StudentBatches   augmented images; with a teacher, its outputs for them
TeacherBatches   the frozen backbones' outputs, from a cache or computed from augmented images
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.data.augment import chosen, corrupt, distort, photometric, random_affine, warp
from distill.data.sampling import Examples
from distill.models.backbones import FrozenBackbones
from distill.models.feature_cache import Features, Grids
from distill.models.logits import predict_student, predict_teacher
from distill.models.precision import autocast
from distill.models.teacher import Teacher
from distill.recipe import Recipe
from distill.training.target_cache import LogitTargets, TargetCache
from distill.training.task import resize_grids
from distill.training.view_cache import Ask, Views, ViewTargets

Inputs = tuple[Any, ...]
Network = Callable[[Tensor], Tensor]


class Batches(Protocol):
    """What the trainer asks for."""

    def batch(self, rows: NDArray[np.int64], epoch: int, generator: torch.Generator) -> Inputs:
        """Return the arguments of the task's forward, on its device."""
        ...

    def validate(self, network: Any) -> NDArray[np.float32]:
        """Return logits (N, K) of the whole validation split, on the CPU."""
        ...


def mixup(
    alpha: float, generator: torch.Generator, targets: Tensor, *inputs: Tensor
) -> tuple[Tensor, ...]:
    """Mix each example with another of its batch, targets alike; alpha 0 changes nothing.

    Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018."""
    if alpha == 0:
        return (targets, *inputs)
    # torch's Beta distribution takes no generator.
    seed = int(torch.randint(2**31, (1,), generator=generator))
    part = float(np.random.default_rng(seed).beta(alpha, alpha))
    order = torch.randperm(len(targets), generator=generator)
    return tuple(part * x + (1 - part) * x[order.to(x.device)] for x in (targets, *inputs))


def augmented(faces: Tensor, affine: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Make the image that is learned from: covered and turned, moved as a whole by `affine`, then as a
    camera takes it; a plain share is moved and lit anew alone. A teacher's cached grids follow `affine`
    alone, which covers and turns leave."""
    config, landmarks = recipe.augmentation, torch.tensor(recipe.crop.template)
    # What a recipe leaves out draws nothing from the generator, so that older runs repeat.
    plain = torch.zeros(len(faces), dtype=torch.bool)
    if config.plain_share:
        plain = chosen(generator, len(faces), config.plain_share)
    made = torch.empty_like(faces)
    if bool(plain.any()):
        made[plain] = photometric(warp(faces[plain], affine[plain]), config, generator)
    if not bool(plain.all()):
        changed = distort(faces[~plain], config, landmarks, generator)
        made[~plain] = corrupt(warp(changed, affine[~plain]), config, generator)
    return made


@dataclass(frozen=True, slots=True)
class StudentBatches:
    """Batches of images, with at most one source of a teacher's outputs.

    target_cache: those of the plain images; live: the networks that compute them from the very
    image that the student sees; views: the images are these, with their answers from a cache or from
    networks that are asked."""

    recipe: Recipe
    examples: Examples
    valid: NDArray[np.uint8]
    device: torch.device
    target_cache: TargetCache | LogitTargets | None = None
    live: tuple[Teacher, FrozenBackbones] | None = None
    bf16: bool = False
    views: tuple[Views, ViewTargets | Ask] | None = None

    def batch(self, rows: NDArray[np.int64], epoch: int, generator: torch.Generator) -> Inputs:
        if self.views:
            return self._views(rows, epoch, *self.views)
        faces, targets = self.examples.read(rows)
        affine = random_affine(len(faces), self.recipe.augmentation, generator)
        faces = augmented(faces, affine, self.recipe, generator)
        targets, faces = mixup(self.recipe.training.mixup, generator, targets, faces)
        inputs: Inputs = (
            faces.to(self.device, memory_format=torch.channels_last),
            targets.to(self.device),
        )
        side = self.recipe.crop.size // 8
        if self.live:
            teacher, frozen = self.live
            with torch.no_grad(), autocast(self.device, self.bf16):
                outputs = teacher.eval().forward_outputs(*frozen(inputs[0]))
                inputs += (resize_grids(outputs, side),)
        elif self.target_cache:
            inputs += (self.target_cache.read(rows, affine, side).to(self.device),)
        return inputs

    def _views(
        self, rows: NDArray[np.int64], epoch: int, views: Views, answers: ViewTargets | Ask
    ) -> Inputs:
        view = epoch % views.count
        pixels = views.draw(rows, view)
        read = answers.read(rows, view) if isinstance(answers, ViewTargets) else answers(pixels)
        return (
            torch.from_numpy(pixels).float().to(self.device, memory_format=torch.channels_last),
            torch.from_numpy(self.examples.targets[rows]).to(self.device),
            read.to(self.device),
        )

    def validate(self, network: Any) -> NDArray[np.float32]:
        return predict_student(network, self.valid)


@dataclass(frozen=True, slots=True)
class TeacherBatches:
    """Batches of the frozen backbones' outputs.

    frozen: the networks, DINOv2 and each stem; cached: of each its cached grids of the plain crops,
    warped as the image would be, or None, which computes them from the augmented image; valid: those
    of the validation split."""

    recipe: Recipe
    examples: Examples
    valid: Sequence[Grids]
    frozen: Sequence[Network]
    device: torch.device
    cached: Sequence[Features | None]
    bf16: bool = False

    def batch(self, rows: NDArray[np.int64], epoch: int, generator: torch.Generator) -> Inputs:
        faces, targets = self.examples.read(rows)
        affine = random_affine(len(faces), self.recipe.augmentation, generator)
        if any(cached is None for cached in self.cached):
            faces = augmented(faces, affine, self.recipe, generator)
        with autocast(self.device, self.bf16):
            grids = [
                network(faces.to(self.device))
                if cached is None
                else warp(cached.read(rows), affine).to(self.device)
                for network, cached in zip(self.frozen, self.cached, strict=True)
            ]
        targets, scene, *stems = mixup(self.recipe.training.mixup, generator, targets, *grids)
        return (
            targets.to(self.device),
            scene.to(self.device),
            *(stem.to(self.device, memory_format=torch.channels_last) for stem in stems),
        )

    def validate(self, network: Any) -> NDArray[np.float32]:
        return predict_teacher(network, self.valid)
