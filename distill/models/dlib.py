"""Load dlib's face recognition ResNet, a face backbone (Davis King 2017, CC0).

    crop -> 123x123 RGB -> stem and two levels   -> (B, 64, 14, 14)
    crop -> 131x131 RGB -> stem and three levels -> (B, 128, 7, 7)

At these sides every level's width is odd, so it halves to whole places; behind an even one dlib puts
rows of zeros. Faces are about a tenth smaller than in the 150x150 chips that it was trained on. The
third level would have 14x14 places at 243x243, with faces 1.7 times as large as those.

The file: safetensors, of any float type, with the names `conv`, `affine`, `levels.L.N.conv1`,
`.affine1`, `.conv2` and `.affine2`, each `.weight` and `.bias`. The scale and shift are those that
dlib folded its batch statistics into.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from distill.models.grids import GRID, as_rgb
from edge.base.errors import DataError


def _match(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Put zeros behind the last channel, row and column of the smaller of two, as dlib adds them."""
    sizes = [max(a, b) for a, b in zip(x.shape[1:], y.shape[1:], strict=True)]

    def fill(z: Tensor) -> Tensor:
        more = [want - have for want, have in zip(sizes, z.shape[1:], strict=True)]
        return functional.pad(z, (0, more[2], 0, more[1], 0, more[0]))

    return fill(x), fill(y)


class _Unit(nn.Module):
    """Add two 3x3 convolutions with BatchNorm to the input, which the first unit of a level halves."""

    def __init__(self, inputs: int, outputs: int, halve: bool) -> None:
        super().__init__()
        self.halve = halve
        # Without padding where it halves.
        self.conv1 = nn.Conv2d(inputs, outputs, 3, 2 if halve else 1, 0 if halve else 1)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.norm2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        if self.halve:
            x, y = _match(functional.avg_pool2d(x, 2), y)
        return torch.relu(x + y)


class DlibFace(nn.Module):
    """Run dlib's ResNet up to a grid: faces (B, C, S, S) of 0..255 -> (B, 64, 14, 14) or
    (B, 128, 7, 7)."""

    MEAN = (122.782, 117.001, 104.298)  # red, green, blue
    LEVELS = ((32, 3), (64, 4), (128, 3), (256, 3), (256, 1))  # channels, units; the first keeps
    # By the grid's side: the image's, and levels read.
    GRIDS: ClassVar[dict[int, tuple[int, int]]] = {14: (123, 2), 7: (131, 3)}

    def __init__(self, grid: int = GRID) -> None:
        """grid: side of the grid, 14 or 7."""
        super().__init__()
        self.side, count = self.GRIDS[grid]
        self.conv, self.norm = nn.Conv2d(3, 32, 7, 2), nn.BatchNorm2d(32)
        levels, inputs = [], 32
        for level, (outputs, units) in enumerate(self.LEVELS[:count]):
            made = []
            for unit in range(units):
                made.append(_Unit(inputs, outputs, halve=level > 0 and unit == 0))
                inputs = outputs
            levels.append(nn.Sequential(*made))
        self.levels = nn.Sequential(*levels)
        self.width = inputs

    def prepare(self, faces: Tensor) -> Tensor:
        mean = torch.tensor(self.MEAN, device=faces.device)[:, None, None]
        return (as_rgb(faces, self.side) - mean) / 256

    def stages(self) -> list[nn.Module]:
        first = nn.Sequential(self.conv, self.norm, nn.ReLU(), nn.MaxPool2d(3, 2))
        return [first, *(unit for level in self.levels.children() for unit in level.children())]

    def forward(self, faces: Tensor) -> Tensor:
        return nn.Sequential(*self.stages())(self.prepare(faces))  # type: ignore[no-any-return]

    @classmethod
    def from_safetensors(cls, path: Path, grid: int = GRID) -> DlibFace:
        """Read the file; grid: 14 or 7. Levels beyond that grid are left out.

        Raises DataError where a weight is missing or of another shape."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            there = load_file(str(path))
        except (OSError, SafetensorError) as error:
            raise DataError(
                f"{path} is not a readable safetensors file; give dlib's face network"
            ) from error
        model = cls(grid)
        # As it is made, a BatchNorm has mean 0 and variance 1: divided by their root, scale and shift
        # are its gain and bias.
        loaded = model.state_dict()
        for name, value in loaded.items():
            if name.endswith("running_var"):
                value.fill_(1 - model.norm.eps)
            if "running_" in name or name.endswith("num_batches_tracked"):
                continue
            stored = name.replace("norm", "affine")
            if stored not in there or there[stored].shape != value.shape:
                raise DataError(
                    f"{path} is not dlib's face network: '{stored}' is missing or of another shape"
                )
            value.copy_(there[stored])
        model.load_state_dict(loaded)
        model.eval()
        return model


@torch.no_grad()
def settle(tail: nn.Module, grid: Tensor) -> None:
    """Give each BatchNorm the statistics of these faces, in place, and the gain and bias with which it
    computes what it did: training begins with the network that was loaded.

    grid: (B, C, G, G), what the tail reads."""

    def recalibrate(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        mean = inputs[0].mean(dim=(0, 2, 3))
        variance = inputs[0].var(dim=(0, 2, 3), unbiased=False)
        old = norm.weight / (norm.running_var + norm.eps).sqrt()
        norm.bias.add_(old * (mean - norm.running_mean))
        norm.weight.copy_(old * (variance + norm.eps).sqrt())
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)

    run: Callable[[Tensor], Tensor] = tail.eval()
    norms = [m for m in tail.modules() if isinstance(m, nn.BatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(recalibrate) for norm in norms]
    run(grid)
    for hook in hooks:
        hook.remove()
