"""Load the teacher's two pretrained backbones, each of which gives one grid of tokens.

    DINOv2 (scene)        grey crop -> 196x196 RGB -> (B, D, 14, 14), or 98x98 -> (B, D, 7, 7)
    SFace, IR-50 (face)   grey crop -> 112x112 RGB -> (B, D, 14, 14), or a stage later (B, D, 7, 7)

B batch, D width. Token n of (B, G * G, D) is the place (n // G, n % G) of the grid (B, D, G, G), for
every backbone.

DINOv2: Oquab et al. 2023, through `transformers`. SFace: Zhong et al. 2021 on MobileNet-v1, read
from the OpenCV Zoo's ONNX initialisers by name (Apache-2.0, the default). IR-50: ArcFace (Deng et
al., CVPR 2019); InsightFace's own weights are for non-commercial research only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from distill.models import store
from edge.base.errors import DataError

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


class FrozenStem(nn.Module):
    """Run the face backbone's frozen first units: faces (B, C, S, S) of 0..255 -> (B, C', G, G)."""

    def __init__(self, face: SFace | IR50, stages: nn.Sequential) -> None:
        super().__init__()
        self.prepare, self.side = face.prepare, face.side
        self.stages = stages
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> FrozenStem:
        super().train(False)  # always in evaluation mode: no batch statistics
        return self

    @torch.no_grad()
    def forward(self, faces: Tensor) -> Tensor:
        pixels = self.prepare(faces).to(memory_format=torch.channels_last)
        return self.stages(pixels)  # type: ignore[no-any-return]


def split_backbone(face: SFace | IR50, trained_units: int) -> tuple[FrozenStem, nn.Sequential]:
    """Split the face backbone into its frozen stem and its trainable tail, the last units.

    Raises DataError where it has fewer units than `trained_units`."""
    stages = face.stages()
    place = len(stages) - trained_units
    if place < 0:
        raise DataError(f"trained_units {trained_units}: the backbone has only {len(stages)}")
    stem = FrozenStem(face, nn.Sequential(*stages[:place]))
    return stem, nn.Sequential(*stages[place:]).requires_grad_(True)


class FrozenBackbones(nn.Module):
    """Run all that does not learn, DINOv2 and the face backbone's stem.

    Faces (B, C, S, S) of 0..255 -> the scene's grid (B, Ds, G, G) and the stem's (B, C', G', G').
    """

    def __init__(self, scene: Dinov2, stem: FrozenStem) -> None:
        super().__init__()
        self.scene, self.stem = scene, stem

    def forward(self, faces: Tensor) -> tuple[Tensor, Tensor]:
        return self.scene(faces), self.stem(faces)
