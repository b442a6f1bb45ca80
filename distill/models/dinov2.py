"""Load the scene's backbone: DINOv2 of any size, frozen (Oquab et al. 2023, through `transformers`).

grey crop -> 196x196 RGB -> (B, D, 14, 14), or 98x98 -> (B, D, 7, 7)

With registers or without; DINOv3's ViTs (Simeoni et al. 2025, patches of 16) are read likewise. Which
of them a folder holds is what its config.json says.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from distill.models.grids import GRID, as_rgb, to_grid
from edge.base.cli import say
from edge.base.errors import DataError

# transformers' class by the model_type of config.json.
KINDS = {
    "dinov2": "Dinov2Model",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
    "dinov3_vit": "DINOv3ViTModel",
}
# Of a model that was fine-tuned to name classes, which a backbone goes without.
HEAD = "classifier."


class Dinov2(nn.Module):
    """Run a frozen DINOv2 of any size: (B, C, S, S) of 0..255 -> (B, D, G, G)."""

    MEAN = (123.675, 116.28, 103.53)  # ImageNet's, times 255: what DINOv2 was trained with
    DEVIATION = (58.395, 57.12, 57.375)
    mean: Tensor
    deviation: Tensor

    def __init__(self, source: str, grid: int = GRID) -> None:
        """Load it from a local folder or by a hub's name; grid: side G of the grid of tokens.

        Raises DataError where transformers or the weights are missing, or are another network's."""
        super().__init__()
        model = _load(source)
        self.model: nn.Module = model.float().requires_grad_(False)
        self.width = int(self.model.config.hidden_size)
        self.side = grid * int(self.model.config.patch_size)
        # In front of the places stand the class token and the registers (Darcet et al., ICLR 2024).
        self._before = 1 + int(getattr(self.model.config, "num_register_tokens", 0))
        self.register_buffer("mean", torch.tensor(self.MEAN).reshape(1, 3, 1, 1))
        self.register_buffer("deviation", torch.tensor(self.DEVIATION).reshape(1, 3, 1, 1))

    def train(self, mode: bool = True) -> Dinov2:
        super().train(False)  # always in evaluation mode: no dropout
        return self

    @torch.no_grad()
    def forward(self, faces: Tensor) -> Tensor:
        pixels = (as_rgb(faces, self.side) - self.mean) / self.deviation
        return to_grid(self.model(pixel_values=pixels).last_hidden_state[:, self._before :])


def kind_of(source: str) -> str:
    """Return which of KINDS a folder or a hub's name holds, by its config alone. Raises DataError."""
    try:
        import transformers
    except ImportError as error:
        raise DataError("transformers is not installed; install the 'train' extra") from error
    try:
        kind = str(transformers.AutoConfig.from_pretrained(source).model_type)
    except (OSError, ValueError, RuntimeError) as error:
        raise _absent(source, error) from error
    if kind not in KINDS:
        raise DataError(
            f"'{source}' holds a '{kind}', which is not read; give one of {', '.join(KINDS)}"
        )
    return kind


def _absent(source: str, error: Exception) -> DataError:
    return DataError(
        f"no DINOv2 at '{source}' ({str(error).splitlines()[0][:100]}); give a local folder or a hub "
        f"name such as facebook/dinov2-small"
    )


def _load(source: str) -> Any:
    """Load the model that a folder or a hub's name holds, and nothing less. Raises DataError."""
    kind = kind_of(source)
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        if not hasattr(transformers, KINDS[kind]):
            raise DataError(
                f"'{source}' holds a '{kind}', which transformers {transformers.__version__} does not "
                f"know; update it, or give a DINOv2"
            )
        reader = getattr(transformers, KINDS[kind])
        model, found = reader.from_pretrained(source, output_loading_info=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise _absent(source, error) from error
    # transformers gives missing weights random values and drops others, with no more than a warning.
    if absent := [name for name in found["missing_keys"] if not name.endswith("mask_token")]:
        raise DataError(f"'{source}' is not a whole '{kind}': it lacks '{min(absent)}'")
    unread = sorted(found["unexpected_keys"])
    if other := [name for name in unread if not name.startswith(HEAD)]:
        raise DataError(
            f"'{source}' is not a '{kind}' alone: nothing reads its '{other[0]}'; give the folder "
            f"whose config.json fits its weights"
        )
    if unread:
        say(f"'{source}' has a head that names classes, which is left out: {', '.join(unread)}")
    return model
