"""Load IR-50, a face backbone (ArcFace: Deng et al., CVPR 2019).

    crop -> 112x112 RGB -> (B, 256, 14, 14), or a stage later (B, 512, 7, 7)

InsightFace's own weights are for non-commercial research only.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from distill.models import store
from distill.models.grids import GRID, as_rgb
from edge.base.errors import DataError


class _Bottleneck(nn.Module):
    """Compute ArcFace's improved residual unit; attributes have the names of usual checkpoints."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.shortcut_layer: nn.Module
        if inputs == outputs:
            self.shortcut_layer = nn.MaxPool2d(1, stride)
        else:
            self.shortcut_layer = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False),
            nn.PReLU(outputs),
            nn.Conv2d(outputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.res_layer(x) + self.shortcut_layer(x)  # type: ignore[no-any-return]


class IR50(nn.Module):
    """Run ArcFace's IR-50 to its third stage, the last 14x14 grid of 256 channels, or whole, 7x7 of
    512: faces (B, C, S, S) of 0..255 -> (B, 256, 14, 14) or (B, 512, 7, 7)."""

    side = 112
    STAGES = ((64, 3), (128, 4), (256, 14), (512, 3))

    def __init__(self, grid: int = GRID) -> None:
        super().__init__()
        stages = self.STAGES if grid == 7 else self.STAGES[:-1]
        self.width = stages[-1][0]
        self.input_layer = nn.Sequential(
            nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.PReLU(64)
        )
        inputs, units = 64, []
        for outputs, count in stages:
            for index in range(count):
                units.append(_Bottleneck(inputs, outputs, 2 if index == 0 else 1))
                inputs = outputs
        self.body = nn.Sequential(*units)

    def prepare(self, faces: Tensor) -> Tensor:
        return (as_rgb(faces, self.side) - 127.5) / 127.5

    def stages(self) -> list[nn.Module]:
        return [self.input_layer, *self.body]

    def forward(self, faces: Tensor) -> Tensor:
        return nn.Sequential(*self.stages())(self.prepare(faces))  # type: ignore[no-any-return]

    @classmethod
    def from_checkpoint(cls, path: Path, grid: int = GRID) -> IR50:
        """Read a state dict, alone or under `state_dict` or `model`, with or without the prefixes
        `module.` and `backbone.`; grid: 14 or 7. Later stages are left out.

        Raises DataError where a weight is missing or of another shape."""
        content = store.load(path)
        for key in ("state_dict", "model"):
            if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
                content = content[key]
        if not isinstance(content, Mapping):
            raise DataError(f"{path} is not a state dict of IR-50")
        plain = {
            str(k).replace("module.", "").replace("backbone.", ""): v for k, v in content.items()
        }
        model = cls(grid)
        own = model.state_dict()
        if missing := [
            name
            for name, value in own.items()
            if not name.endswith("num_batches_tracked")
            and (name not in plain or plain[name].shape != value.shape)
        ]:
            raise DataError(f"{path} is not IR-50: '{missing[0]}' is missing or of another shape")
        model.load_state_dict({name: plain.get(name, value) for name, value in own.items()})
        model.eval()
        return model
