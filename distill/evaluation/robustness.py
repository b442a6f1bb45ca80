"""How accuracy falls as an image gets worse, by one change at a time, at stated strengths.

Changes are made to the aligned crop, so that the detector is not measured with them; sides and pixels
are the crop's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from distill.data.augment import gaussian_blur, jpeg, warp
from distill.data.splits import Split, majority

Pixels = NDArray[np.uint8]
BATCH = 512


def _resized(faces: Tensor, side: float) -> Tensor:
    """Shrink with a filter as wide as the ratio, and enlarge as the node's warp does."""
    size = (int(side), int(side))
    small = functional.interpolate(faces, size=size, mode="bilinear", antialias=True)
    return functional.interpolate(small, size=faces.shape[-2:], mode="bilinear")


def _noisy(faces: Tensor, deviation: float) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return faces + deviation * torch.randn(faces.shape, generator=generator)


def _dark(faces: Tensor, gain: float) -> Tensor:
    """Dim the light; a sensor's read noise of two grey levels stays."""
    return _noisy(faces * gain, 2.0)


def _turned(faces: Tensor, degrees: float) -> Tensor:
    """Rotate half of the images to each side."""
    signs = 1 - 2 * (torch.arange(len(faces)) % 2).float()
    angle = signs * math.radians(degrees)
    zero = torch.zeros_like(angle)
    rows = [
        torch.stack([angle.cos(), -angle.sin(), zero], dim=1),
        torch.stack([angle.sin(), angle.cos(), zero], dim=1),
    ]
    return warp(faces, torch.stack(rows, dim=1))


def _covered(faces: Tensor, share: float) -> Tensor:
    """Lay a grey square over `share` of the image's area, at a random place wholly inside."""
    size = faces.shape[-1]
    side = round(size * share**0.5)
    corners = torch.randint(
        0, size - side + 1, (len(faces), 2, 1), generator=torch.Generator().manual_seed(0)
    )
    place = torch.arange(size)
    inside = (place >= corners) & (place < corners + side)  # (B, 2, S)
    return torch.where(inside[:, None, 0, :, None] & inside[:, None, 1, None, :], 128.0, faces)


@dataclass(frozen=True, slots=True)
class Change:
    """name; unit of its strengths, mildest first; apply: (B, C, S, S) of 0..255 and a strength."""

    name: str
    unit: str
    strengths: tuple[float, ...]
    apply: Callable[[Tensor, float], Tensor]


CHANGES = (
    Change("face size", "px a side", (48, 32, 24, 16), _resized),
    Change("blur", "px deviation", (1, 2, 3), gaussian_blur),
    Change("noise", "grey levels deviation", (10, 20, 40), _noisy),
    Change("darkness", "of the light", (0.5, 0.25, 0.1), _dark),
    Change("JPEG", "quality", (50, 20, 10), lambda faces, q: jpeg(faces, int(q))),
    Change("rotation", "degrees", (10, 20, 30), _turned),
    Change("occlusion", "of the area", (0.1, 0.2, 0.3), _covered),
)


def corrupted(pixels: Pixels, change: Change, strength: float) -> Pixels:
    """Change (N, C, S, S) uint8."""
    parts = []
    for start in range(0, len(pixels), BATCH):
        faces = torch.from_numpy(np.array(pixels[start : start + BATCH])).float()
        worse = change.apply(faces, strength).round().clamp(0, 255)
        parts.append(worse.to(torch.uint8).numpy())
    return np.concatenate(parts)


def measure(
    split: Split,
    predict: Callable[[Pixels], NDArray[np.float64]],
    progress: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Measure accuracy by the majority's label for every change and strength, the plain images first.

    predict: crops (N, C, S, S) uint8 to probabilities (N, K)."""
    truth = majority(split.votes, len(split.labels))
    kept = truth >= 0

    def accuracy(pixels: Pixels) -> float:
        return round(float((predict(pixels).argmax(axis=1) == truth)[kept].mean()), 5)

    rows: list[dict[str, Any]] = [
        {"change": "none", "strength": None, "unit": "", "accuracy": accuracy(split.crops.pixels)}
    ]
    for change in CHANGES:
        for strength in change.strengths:
            progress(f"robustness: {change.name} {strength:g} {change.unit}")
            rows.append(
                {
                    "change": change.name,
                    "strength": strength,
                    "unit": change.unit,
                    "accuracy": accuracy(corrupted(split.crops.pixels, change, strength)),
                }
            )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Format a line a change, for a terminal of 80 columns."""
    lines = [f"robustness, accuracy   plain {100 * rows[0]['accuracy']:.2f} %"]
    for change in CHANGES:
        own = [row for row in rows if row["change"] == change.name]
        cells = [f"{row['strength']:g}: {100 * row['accuracy']:.1f}" for row in own]
        lines.append(f"  {change.name:10} {change.unit:22} " + "  ".join(cells))
    return "\n".join(lines)
