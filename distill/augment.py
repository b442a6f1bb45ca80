"""Random changes that a classroom makes to a face, on a whole batch at once.

Everything is drawn from one torch.Generator, so a training run repeats. Input and output are
(B, C, S, S) float32, 0..255.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from distill.recipe import Augmentation


def _uniform(generator: torch.Generator, size: int, low: float, high: float) -> Tensor:
    return torch.rand(size, generator=generator) * (high - low) + low


def _chosen(generator: torch.Generator, size: int, share: float) -> Tensor:
    return torch.rand(size, generator=generator) < share


def move(faces: Tensor, config: Augmentation, generator: torch.Generator) -> Tensor:
    """Mirror, rotate, scale and shift: what the detector's landmarks are off by, and more."""
    batch = len(faces)
    angle = _uniform(generator, batch, -config.rotate_degrees, config.rotate_degrees)
    angle = angle * (math.pi / 180)
    scale = torch.exp(_uniform(generator, batch, -1, 1) * math.log(config.scale))
    mirror = 1 - 2 * _chosen(generator, batch, 0.5).float()
    shift = 2 * torch.stack(
        [_uniform(generator, batch, -config.shift, config.shift) for _ in range(2)], dim=1
    )
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    matrix = torch.stack([mirror * cos, -sin, mirror * sin, cos], dim=1).reshape(batch, 2, 2)
    grid = functional.affine_grid(
        torch.cat([matrix, shift[:, :, None]], dim=2), list(faces.shape), align_corners=False
    )
    return functional.grid_sample(faces, grid, padding_mode="border", align_corners=False)


def relight(faces: Tensor, config: Augmentation, generator: torch.Generator) -> Tensor:
    """Brightness, contrast and gamma of a dark room or a bright window."""
    batch = len(faces)
    shape = (batch, 1, 1, 1)
    gain = torch.exp(_uniform(generator, batch, -1, 1) * math.log(config.contrast)).reshape(shape)
    lift = _uniform(generator, batch, -config.brightness, config.brightness).reshape(shape)
    gamma = torch.exp(_uniform(generator, batch, -1, 1) * math.log(config.gamma)).reshape(shape)
    middle = faces.mean(dim=(1, 2, 3), keepdim=True)
    faces = ((faces - middle) * gain + middle + lift).clamp(0, 255)
    return 255 * (faces / 255 + 1e-4) ** gamma


def shrink(faces: Tensor, config: Augmentation, generator: torch.Generator) -> Tensor:
    """Far faces: down to a few pixels a side and up again. One side a call, for part of the batch."""
    if config.shrink_share == 0:
        return faces
    side = int(torch.randint(config.shrink_to, faces.shape[-1], (1,), generator=generator))
    small = functional.interpolate(faces, size=(side, side), mode="area")
    back = functional.interpolate(
        small, size=faces.shape[-2:], mode="bilinear", align_corners=False
    )
    pick = _chosen(generator, len(faces), config.shrink_share).reshape(-1, 1, 1, 1)
    return torch.where(pick, back, faces)


def spoil(faces: Tensor, config: Augmentation, generator: torch.Generator) -> Tensor:
    """Sensor noise, and a hand or a neighbour's head in front (random erasing, Zhong et al. 2020)."""
    batch, side = len(faces), faces.shape[-1]
    strength = _uniform(generator, batch, 0, config.noise).reshape(-1, 1, 1, 1)
    faces = faces + strength * torch.randn(faces.shape, generator=generator)
    if config.erase_share:
        sides = _uniform(generator, batch, 0.15, 0.4).mul(side).reshape(-1, 1, 1)
        ratio = torch.exp(_uniform(generator, batch, -0.7, 0.7)).sqrt().reshape(-1, 1, 1)
        x = _uniform(generator, batch, 0, side).reshape(-1, 1, 1)
        y = _uniform(generator, batch, 0, side).reshape(-1, 1, 1)
        place = torch.arange(side, dtype=torch.float32)
        inside = ((place[None, :, None] - y).abs() < sides * ratio / 2) & (
            (place[None, None, :] - x).abs() < sides / ratio / 2
        )
        inside &= _chosen(generator, batch, config.erase_share).reshape(-1, 1, 1)
        colour = _uniform(generator, batch, 0, 255).reshape(-1, 1, 1, 1)
        faces = torch.where(inside[:, None], colour, faces)
    return faces.clamp(0, 255)


def augment(faces: Tensor, config: Augmentation, generator: torch.Generator) -> Tensor:
    """All of the above, in the order in which a camera meets them."""
    faces = relight(move(faces, config, generator), config, generator)
    return spoil(shrink(faces, config, generator), config, generator)
