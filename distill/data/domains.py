"""Group crops by how the picture was taken, so that one kind can be kept from training.

Three statistics of a crop (grey levels): brightness, its mean; contrast, its deviation; sharpness, the
log of the Laplacian's deviation as a share of the contrast. Each is counted in deviations from the mean
of the training split. A crop belongs to the side of that statistic which is farthest out, or is
ordinary where none is farther out than EXTREME. Labels play no part, and equal crops always fall alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from distill.data.crops import Crops
from distill.recipe import Domain

ORDINARY = "ordinary"
SIDES: tuple[str, ...] = get_args(Domain)  # low and high side of each statistic, in their order
DOMAINS = (ORDINARY, *SIDES)
EXTREME = 1.25
BLOCK = 1024


def statistics(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return brightness, contrast and sharpness of crops (N, C, S, S) as (N, 3)."""
    rows: list[tuple[float, float, float]] = []
    for crop in _blocks(pixels):
        grey = crop.mean(axis=0, dtype=np.float32)
        contrast = float(grey.std())
        edges = float(cv2.Laplacian(grey, cv2.CV_32F).std())
        rows.append((float(grey.mean()), contrast, float(np.log((edges + 1) / (contrast + 1)))))
    return np.array(rows, dtype=np.float64).reshape(-1, 3)


def _blocks(pixels: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """Yield crop by crop; a memory map is read a block at a time."""
    for start in range(0, len(pixels), BLOCK):
        yield from np.array(pixels[start : start + BLOCK])


@dataclass(frozen=True, slots=True)
class Grouping:
    """mean, deviation: (3,), of the training split's statistics."""

    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]

    @classmethod
    def by(cls, training: Crops) -> Grouping:
        """Measure what is ordinary on a training split."""
        found = statistics(training.pixels)
        return cls(found.mean(axis=0), np.maximum(found.std(axis=0), 1e-6))

    def of(self, pixels: NDArray[np.uint8]) -> NDArray[np.str_]:
        """Name the domain of each crop of (N, C, S, S), one of DOMAINS."""
        away = (statistics(pixels) - self.mean) / self.deviation
        at = np.abs(away).argmax(axis=1)
        out = np.take_along_axis(away, at[:, None], axis=1)[:, 0]
        side = 1 + 2 * at + (out > 0)
        return np.array(DOMAINS)[np.where(np.abs(out) > EXTREME, side, 0)]


def names_in(training: Crops, domain: Domain | None) -> set[str]:
    """Return the names of a training split's images of one domain; of None, none."""
    if domain is None:
        return set()
    inside = Grouping.by(training).of(training.pixels) == domain
    return {name for name, held in zip(training.names, inside, strict=True) if held}
