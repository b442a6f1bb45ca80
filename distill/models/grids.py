"""Turn faces into what a backbone reads, and its grids into tokens and back.

B batch, D width. Token n of (B, G * G, D) is the place (n // G, n % G) of the grid (B, D, G, G), for
every backbone.
"""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional

GRID = 14


def as_rgb(faces: Tensor, side: int) -> Tensor:
    """Resize grey (B, 1, S, S) or BGR (B, 3, S, S) to RGB (B, 3, side, side); all 0..255."""
    faces = faces.flip(1) if faces.shape[1] == 3 else faces.expand(-1, 3, -1, -1)
    return functional.interpolate(faces, size=(side, side), mode="bilinear", antialias=True)


def to_tokens(grid: Tensor) -> Tensor:
    """Turn (B, D, G, G) into (B, G * G, D), one token a place; a plain reshape would mix them."""
    return grid.flatten(2).transpose(1, 2)


def to_grid(tokens: Tensor) -> Tensor:
    """Turn (B, G * G, D) back into (B, D, G, G)."""
    side = math.isqrt(tokens.shape[1])
    return tokens.transpose(1, 2).reshape(len(tokens), tokens.shape[2], side, side)
