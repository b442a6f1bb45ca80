"""Load the scene's backbone: DINOv2 of any size, frozen (Oquab et al. 2023, through `transformers`).

grey crop -> 196x196 RGB -> (B, D, 14, 14), or 98x98 -> (B, D, 7, 7)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from distill.models.grids import GRID, as_rgb, to_grid
from edge.base.errors import DataError


class Dinov2(nn.Module):
    """Run a frozen DINOv2 of any size: (B, C, S, S) of 0..255 -> (B, D, G, G)."""

    MEAN = (123.675, 116.28, 103.53)  # ImageNet's, times 255: what DINOv2 was trained with
    DEVIATION = (58.395, 57.12, 57.375)
    mean: Tensor
    deviation: Tensor

    def __init__(self, source: str, grid: int = GRID) -> None:
        """Load it from a local folder or by a hub's name; grid: side G of the grid of tokens.

        Raises DataError where transformers or the weights are missing."""
        super().__init__()
        try:
            from transformers import Dinov2Model
            from transformers.utils import logging
        except ImportError as error:
            raise DataError("transformers is not installed; install the 'train' extra") from error
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        try:
            loaded: Any = Dinov2Model.from_pretrained(source, output_loading_info=True)
        except (OSError, ValueError) as error:
            raise DataError(
                f"no DINOv2 at '{source}' ({str(error).splitlines()[0][:100]}); give a local folder "
                f"or a hub name such as facebook/dinov2-small"
            ) from error
        model, found = loaded
        # transformers gives missing weights random values, with no more than a warning.
        if absent := [name for name in found["missing_keys"] if not name.endswith("mask_token")]:
            raise DataError(f"'{source}' is not a DINOv2: it lacks '{sorted(absent)[0]}'")
        self.model: nn.Module = model.float().requires_grad_(False)
        self.width = int(self.model.config.hidden_size)
        self.side = grid * int(self.model.config.patch_size)
        self.register_buffer("mean", torch.tensor(self.MEAN).reshape(1, 3, 1, 1))
        self.register_buffer("deviation", torch.tensor(self.DEVIATION).reshape(1, 3, 1, 1))

    def train(self, mode: bool = True) -> Dinov2:
        super().train(False)  # always in evaluation mode: no dropout
        return self

    @torch.no_grad()
    def forward(self, faces: Tensor) -> Tensor:
        pixels = (as_rgb(faces, self.side) - self.mean) / self.deviation
        tokens = self.model(pixel_values=pixels).last_hidden_state[:, 1:]  # without the class token
        return to_grid(tokens)
