"""Augmentation: random changes that a classroom makes to a face, on a whole batch at once.

Everything is drawn from one torch.Generator on the CPU, so a training run repeats. Input and output
are (B, C, S, S) float32, 0..255.
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


def random_affine(batch: int, config: Augmentation, generator: torch.Generator) -> Tensor:
    """Draw mirror, rotation, scale and shift, somewhat more than the detector's landmarks are off by:
    (B, 2, 3), from coordinates in the result to those in the image, both -1..1."""
    angle = _uniform(generator, batch, -config.rotate_degrees, config.rotate_degrees)
    angle = angle * (math.pi / 180)
    scale = torch.exp(_uniform(generator, batch, -1, 1) * math.log(config.scale))
    mirror = 1 - 2 * _chosen(generator, batch, 0.5).float()
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
    pick = _chosen(generator, len(faces), config.shrink_share).reshape(-1, 1, 1, 1)
    return torch.where(pick, back, faces)


def random_blur(faces: Tensor, config: Augmentation, generator: torch.Generator) -> Tensor:
    """Blur as a lens out of focus does: Gaussian, one deviation a call, for part of the batch."""
    if config.blur_share == 0:
        return faces
    deviation = float(_uniform(generator, 1, 0.1, max(config.blur, 0.1)))
    pick = _chosen(generator, len(faces), config.blur_share)
    if not bool(pick.any()):
        return faces
    changed = faces.clone()
    changed[pick] = gaussian_blur(faces[pick], deviation)
    return changed


def gaussian_blur(faces: Tensor, deviation: float) -> Tensor:
    """Blur (B, C, S, S); deviation in pixels, borders repeated."""
    reach = max(1, math.ceil(3 * deviation))
    place = torch.arange(-reach, reach + 1, dtype=faces.dtype, device=faces.device)
    kernel = torch.exp(-0.5 * (place / deviation) ** 2)
    kernel = (kernel / kernel.sum()).expand(faces.shape[1], 1, -1)
    padded = functional.pad(faces, (reach, reach, reach, reach), mode="replicate")
    across = functional.conv2d(padded, kernel[:, :, None, :], groups=faces.shape[1])
    return functional.conv2d(across, kernel[:, :, :, None], groups=faces.shape[1])


def compress(faces: Tensor, config: Augmentation, generator: torch.Generator) -> Tensor:
    """Compress as a camera's JPEG does, one quality a call, for part of the batch."""
    if config.jpeg_share == 0:
        return faces
    quality = int(torch.randint(config.jpeg_quality, 96, (1,), generator=generator))
    pick = _chosen(generator, len(faces), config.jpeg_share)
    if not bool(pick.any()):
        return faces
    changed = faces.clone()
    changed[pick] = jpeg(faces[pick], quality)
    return changed


def jpeg(faces: Tensor, quality: int) -> Tensor:
    """Pass (B, C, S, S) of 0..255 through JPEG's own loss: the DCT of 8x8 blocks, divided by the
    standard luminance table at that quality, rounded, and back (ITU-T T.81, annex K.1)."""
    scale = 5000 / quality if quality < 50 else 200 - 2 * quality
    table = torch.tensor(_LUMINANCE, dtype=torch.float32, device=faces.device).reshape(8, 8)
    table = ((table * scale + 50) / 100).floor().clamp(1, 255)
    k = torch.arange(8, dtype=torch.float32, device=faces.device)
    basis = torch.cos((2 * k[None] + 1) * k[:, None] * math.pi / 16) / 2
    basis[0] /= 2**0.5
    batch, channels, side, _ = faces.shape
    blocks = faces.reshape(batch, channels, side // 8, 8, side // 8, 8).transpose(3, 4) - 128
    coefficients = basis @ blocks @ basis.T
    coefficients = (coefficients / table).round() * table
    back = (basis.T @ coefficients @ basis + 128).transpose(3, 4)
    return back.reshape(batch, channels, side, side).clamp(0, 255)


# The example luminance table of ITU-T T.81, row by row.
_LUMINANCE = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55,
    14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62,
    18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
)  # fmt: skip


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
        inside &= _chosen(generator, batch, config.erase_share).reshape(-1, 1, 1)
        colour = _uniform(generator, batch, 0, 255).reshape(-1, 1, 1, 1)
        faces = torch.where(inside[:, None], colour, faces)
    return faces.clamp(0, 255)


def corrupt(faces: Tensor, config: Augmentation, generator: torch.Generator) -> Tensor:
    """Change light, distance, focus, noise, occlusion and compression, in the order in which a camera
    does; nothing moves."""
    faces = random_blur(photometric(faces, config, generator), config, generator)
    return compress(
        noise_and_erase(shrink(faces, config, generator), config, generator), config, generator
    )
