"""Load SFace, a face backbone (Zhong et al. 2021 on MobileNet-v1, Apache-2.0, the default).

    crop -> 112x112 RGB -> (B, 512, 14, 14), or two units later (B, 1024, 7, 7)

Read from the OpenCV Zoo's ONNX initialisers by name.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from distill.models.grids import GRID, as_rgb
from edge.base.errors import DataError


class _PReLU(nn.PReLU):
    """Replace torch's PReLU, whose gradient in bfloat16 on a CPU takes 1.7 times as long: that was a
    third of the time of a trainable unit."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.bfloat16 and torch.is_grad_enabled():
            slope = self.weight.to(x.dtype)[:, None, None]
            return torch.relu(x) - slope * torch.relu(-x)
        return super().forward(x)


class _Separable(nn.Module):
    """Convolve depthwise, then pointwise, each with BatchNorm and PReLU: SFace's unit."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.dw_conv2d = nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False)
        self.dw_batchnorm = nn.BatchNorm2d(inputs, eps=1e-3)
        self.dw_relu = _PReLU(inputs)
        self.conv2d = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.batchnorm = nn.BatchNorm2d(outputs, eps=1e-3)
        self.relu = _PReLU(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dw_relu(self.dw_batchnorm(self.dw_conv2d(x)))
        return self.relu(self.batchnorm(self.conv2d(x)))  # type: ignore[no-any-return]


class SFace(nn.Module):
    """Run SFace to `conv_12_relu`, its last 14x14 grid of 512 channels, or to `conv_14_relu`, 7x7 of
    1024: faces (B, C, S, S) of 0..255 -> (B, 512, 14, 14) or (B, 1024, 7, 7)."""

    side = 112
    # Outputs and strides of units 2 to 14; the last two make the 7x7 grid.
    UNITS = (
        (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2),
        (512, 1), (512, 1), (512, 1), (512, 1), (512, 1), (1024, 2), (1024, 1),
    )  # fmt: skip

    def __init__(self, grid: int = GRID) -> None:
        super().__init__()
        shape = self.UNITS if grid == 7 else self.UNITS[:-2]
        self.width = shape[-1][0]
        self.conv_1_conv2d = nn.Conv2d(3, 32, 3, 1, 1, bias=False)
        self.conv_1_batchnorm = nn.BatchNorm2d(32, eps=1e-3)
        self.conv_1_relu = _PReLU(32)
        inputs, units = 32, []
        for outputs, stride in shape:
            units.append(_Separable(inputs, outputs, stride))
            inputs = outputs
        self.units = nn.Sequential(*units)

    def prepare(self, faces: Tensor) -> Tensor:
        return (as_rgb(faces, self.side) - 127.5) * 0.0078125  # scalar_op1, scalar_op2 of the file

    def stages(self) -> list[nn.Module]:
        first = nn.Sequential(self.conv_1_conv2d, self.conv_1_batchnorm, self.conv_1_relu)
        return [first, *self.units]

    def forward(self, faces: Tensor) -> Tensor:
        return nn.Sequential(*self.stages())(self.prepare(faces))  # type: ignore[no-any-return]

    @classmethod
    def from_onnx(cls, path: Path, grid: int = GRID) -> SFace:
        """Read the Zoo's file; grid: 14 or 7.

        Raises DataError where its initialisers have not SFace's names and shapes."""
        import onnx
        from google.protobuf.message import DecodeError
        from onnx import numpy_helper

        try:
            graph = onnx.load(str(path)).graph
        except (OSError, DecodeError) as error:
            raise DataError(f"{path} is not a readable ONNX file; give SFace's") from error
        arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        model = cls(grid)
        own = model.state_dict()
        loaded = {}
        for name, value in own.items():
            if name.endswith("num_batches_tracked"):
                loaded[name] = value
                continue
            there = cls._onnx_name(name)
            if there not in arrays or arrays[there].size != value.numel():
                raise DataError(f"{path} is not SFace: '{there}' is missing or of another shape")
            loaded[name] = torch.from_numpy(arrays[there].copy()).reshape(value.shape)
        model.load_state_dict(loaded)
        model.eval()
        return model

    @staticmethod
    def _onnx_name(name: str) -> str:
        layer, kind = name.rsplit(".", 1)
        if layer.startswith("units."):
            _, index, rest = layer.split(".")
            layer = f"conv_{int(index) + 2}_{rest}"
        ending = {
            "running_mean": "moving_mean",
            "running_var": "moving_var",
            "bias": "beta",
            "weight": "weight" if layer.endswith("conv2d") else "gamma",
        }[kind]
        return f"{layer}_{ending}"
