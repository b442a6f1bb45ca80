"""Augmentation: random changes that a classroom makes to a face, on a whole batch at once.

Everything is drawn from one torch.Generator on the CPU, so a training run repeats. Input and output
are (B, C, S, S) float32, 0..255.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from distill.data.changes import (
    NOSE,
    RADIUS,
    bend,
    gaussian_blur,
    jpeg,
    side_light,
    through_camera,
    turn,
    wear_mask,
    wear_sunglasses,
)
from distill.recipe import Augmentation

_Random = Callable[..., Tensor]  # faces, generator and how to change them


def _uniform(generator: torch.Generator, size: int, low: float, high: float) -> Tensor:
    return torch.rand(size, generator=generator) * (high - low) + low


def chosen(generator: torch.Generator, size: int, share: float) -> Tensor:
    """Draw which images of a batch are changed: (size,) of bool, each by itself."""
    return torch.rand(size, generator=generator) < share


def random_affine(batch: int, config: Augmentation, generator: torch.Generator) -> Tensor:
    """Draw mirror, rotation, scale and shift, somewhat more than the detector's landmarks are off by:
    (B, 2, 3), from coordinates in the result to those in the image, both -1..1."""
    angle = _uniform(generator, batch, -config.rotate_degrees, config.rotate_degrees)
    angle = angle * (math.pi / 180)
    scale = torch.exp(_uniform(generator, batch, -1, 1) * math.log(config.scale))
    mirror = 1 - 2 * chosen(generator, batch, 0.5).float()
    shift = 2 * torch.stack(
        [_uniform(generator, batch, -config.shift, config.shift) for _ in range(2)], dim=1
    )
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    matrix = torch.stack([mirror * cos, -sin, mirror * sin, cos], dim=1).reshape(batch, 2, 2)
    return torch.cat([matrix, shift[:, :, None]], dim=2)


def warp(grid: Tensor, matrices: Tensor, side: int | None = None) -> Tensor:
    """Resample images or grids of features (B, C, S, S) by `matrices` (B, 2, 3), see
    `random_affine`, to (B, C, side, side); borders are repeated."""
    batch, channels, own_side, _ = grid.shape
    side = side or own_side
    field = functional.affine_grid(matrices, [batch, channels, side, side], align_corners=False)
    return functional.grid_sample(grid, field, padding_mode="border", align_corners=False)


def distort(
    faces: Tensor, config: Augmentation, landmarks: Tensor, generator: torch.Generator
) -> Tensor:
    """Cover mouths and eyes, bend faces and turn heads, by where the landmarks lie; each for part of
    the batch. What a recipe leaves out draws nothing from the generator.

    landmarks: (5, 2), of the crop's template, pixels. Comes before the image is moved as a whole."""
    for share, change in (
        (config.mask_share, _random_mask),
        (config.sunglasses_share, _random_sunglasses),
        (config.bend_share, _random_bend),
        (config.turn_share, _random_turn),
    ):
        faces = _for_part(faces, share, generator, change, config, landmarks)
    return faces


def _for_part(
    faces: Tensor, share: float, generator: torch.Generator, change: _Random, *how: Any
) -> Tensor:
    """Change a share of the images, chosen anew."""
    if share == 0:
        return faces
    pick = chosen(generator, len(faces), share)
    if not bool(pick.any()):
        return faces
    changed = faces.clone()
    changed[pick] = change(faces[pick], generator, *how)
    return changed


def _near(landmarks: Tensor, generator: torch.Generator) -> Tensor:
    """Move the landmarks as a detector is off, for all images of a call alike."""
    return landmarks + torch.randn(5, 2, generator=generator) * 0.02 * (
        landmarks[1, 0] - landmarks[0, 0]
    )


def _random_mask(
    faces: Tensor, generator: torch.Generator, config: Augmentation, landmarks: Tensor
) -> Tensor:
    """Draw masks of any colour, from below the nose to its bridge; form and place are a call's."""
    batch = len(faces)
    colour = torch.rand(batch, 3, generator=generator) * 90 - 45
    colour = (colour + _uniform(generator, batch, 15, 255)[:, None]).clamp(0, 255)
    covered = _uniform(generator, batch, 0.3, 0.8)
    width, pleats = (
        float(_uniform(generator, 1, low, high)) for low, high in ((0.9, 1.2), (0, 0.12))
    )
    return wear_mask(faces, _near(landmarks, generator), colour, covered, width, pleats)


def _random_sunglasses(
    faces: Tensor, generator: torch.Generator, config: Augmentation, landmarks: Tensor
) -> Tensor:
    """Draw sunglasses of any form and darkness, and clear glasses too."""
    batch = len(faces)
    frame = _uniform(generator, batch, 0, 200)[:, None].expand(-1, 3)
    passes = torch.exp(_uniform(generator, batch, math.log(0.02), 0))
    width, height = (
        _uniform(generator, batch, low, high) for low, high in ((0.32, 0.48), (0.2, 0.42))
    )
    roundness = float(_uniform(generator, 1, 2, 5))
    place = _near(landmarks, generator)
    return wear_sunglasses(faces, place, frame, passes, width, height, roundness)


def _random_bend(
    faces: Tensor, generator: torch.Generator, config: Augmentation, landmarks: Tensor
) -> Tensor:
    shifts = torch.rand(len(faces), 5, 2, generator=generator) * 2 - 1
    return bend(faces, landmarks, shifts * config.bend * faces.shape[-1])


def _random_turn(
    faces: Tensor, generator: torch.Generator, config: Augmentation, landmarks: Tensor
) -> Tensor:
    """Turn heads of any depth, not of the mean one alone."""
    batch = len(faces)
    degrees = _uniform(generator, batch, -config.turn_degrees, config.turn_degrees)
    nose = NOSE * _uniform(generator, batch, 0.5, 1.4)
    radius = RADIUS * _uniform(generator, batch, 0.8, 1.6)
    return turn(faces, landmarks, degrees, nose, radius)


def _random_side_light(faces: Tensor, generator: torch.Generator, config: Augmentation) -> Tensor:
    batch = len(faces)
    ratio = torch.exp(_uniform(generator, batch, 0, math.log(config.side_light)))
    return side_light(faces, ratio, _uniform(generator, batch, 0, 360))


def _random_darkness(faces: Tensor, generator: torch.Generator, config: Augmentation) -> Tensor:
    """Dim the light; a sensor's read noise stays."""
    batch = len(faces)
    gain = torch.exp(_uniform(generator, batch, math.log(config.darkest), 0)).reshape(-1, 1, 1, 1)
    noise = float(_uniform(generator, 1, 0, 4))
    return (faces * gain + noise * torch.randn(faces.shape, generator=generator)).clamp(0, 255)


def _random_camera(faces: Tensor, generator: torch.Generator, config: Augmentation) -> Tensor:
    """Take far faces' pictures; size, noise and quality are a call's."""
    side = int(torch.randint(config.camera_to, faces.shape[-1], (1,), generator=generator))
    noise = float(_uniform(generator, 1, 0, config.camera_noise))
    quality = int(torch.randint(config.jpeg_quality, 96, (1,), generator=generator))
    return through_camera(faces, side, noise, quality, generator)


def photometric(faces: Tensor, config: Augmentation, generator: torch.Generator) -> Tensor:
    """Change brightness, contrast and gamma, as a dark room or a bright window does."""
    batch = len(faces)
    shape = (batch, 1, 1, 1)
    gain = torch.exp(_uniform(generator, batch, -1, 1) * math.log(config.contrast)).reshape(shape)
    lift = _uniform(generator, batch, -config.brightness, config.brightness).reshape(shape)
    gamma = torch.exp(_uniform(generator, batch, -1, 1) * math.log(config.gamma)).reshape(shape)
    middle = faces.mean(dim=(1, 2, 3), keepdim=True)
    faces = ((faces - middle) * gain + middle + lift).clamp(0, 255)
    return 255 * (faces / 255 + 1e-4) ** gamma


def shrink(faces: Tensor, config: Augmentation, generator: torch.Generator) -> Tensor:
    """Make far faces: down to a few pixels a side and up again, one side a call, for part of the
    batch."""
    if config.shrink_share == 0:
        return faces
    side = int(torch.randint(config.shrink_to, faces.shape[-1], (1,), generator=generator))
    small = functional.interpolate(faces, size=(side, side), mode="area")
    back = functional.interpolate(
        small, size=faces.shape[-2:], mode="bilinear", align_corners=False
    )
    pick = chosen(generator, len(faces), config.shrink_share).reshape(-1, 1, 1, 1)
    return torch.where(pick, back, faces)


def random_blur(faces: Tensor, config: Augmentation, generator: torch.Generator) -> Tensor:
    """Blur as a lens out of focus does: Gaussian, one deviation a call, for part of the batch."""
    if config.blur_share == 0:
        return faces
    deviation = float(_uniform(generator, 1, 0.1, max(config.blur, 0.1)))
    pick = chosen(generator, len(faces), config.blur_share)
    if not bool(pick.any()):
        return faces
    changed = faces.clone()
    changed[pick] = gaussian_blur(faces[pick], deviation)
    return changed


def compress(faces: Tensor, config: Augmentation, generator: torch.Generator) -> Tensor:
    """Compress as a camera's JPEG does, one quality a call, for part of the batch."""
    if config.jpeg_share == 0:
        return faces
    quality = int(torch.randint(config.jpeg_quality, 96, (1,), generator=generator))
    pick = chosen(generator, len(faces), config.jpeg_share)
    if not bool(pick.any()):
        return faces
    changed = faces.clone()
    changed[pick] = jpeg(faces[pick], quality)
    return changed


def noise_and_erase(faces: Tensor, config: Augmentation, generator: torch.Generator) -> Tensor:
    """Add sensor noise, and a hand or a head in front (random erasing, Zhong et al. 2020)."""
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
        inside &= chosen(generator, batch, config.erase_share).reshape(-1, 1, 1)
        colour = _uniform(generator, batch, 0, 255).reshape(-1, 1, 1, 1)
        faces = torch.where(inside[:, None], colour, faces)
    return faces.clamp(0, 255)


def corrupt(faces: Tensor, config: Augmentation, generator: torch.Generator) -> Tensor:
    """Change light, distance, focus, noise, occlusion and compression, in the order in which a camera
    does; nothing moves."""
    faces = _for_part(faces, config.side_light_share, generator, _random_side_light, config)
    faces = _for_part(faces, config.dark_share, generator, _random_darkness, config)
    faces = random_blur(photometric(faces, config, generator), config, generator)
    faces = noise_and_erase(shrink(faces, config, generator), config, generator)
    faces = _for_part(faces, config.camera_share, generator, _random_camera, config)
    return compress(faces, config, generator)
