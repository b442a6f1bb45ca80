"""The teacher's two pretrained backbones, each giving one grid of tokens.

    DINOv2 (scene)   grey crop > 196x196 RGB > (B, D, 14, 14), or 98x98 > (B, D, 7, 7)
    SFace, IR-50     grey crop > 112x112 RGB > (B, D, 14, 14), or a stage later (B, D, 7, 7)

B batch, D width. A grid (B, D, G, G) and its tokens (B, G * G, D) are the same places: token n is the
place (n // G, n % G), for every backbone.

DINOv2: Oquab et al. 2023, through `transformers`. SFace: Zhong et al. 2021 on MobileNet-v1, read
from the OpenCV Zoo's ONNX initialisers by name (Apache-2.0, the default). IR-50: ArcFace (Deng et
al., CVPR 2019); InsightFace's own weights are for non-commercial research only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from distill.models import store
from edge.base.errors import DataError

GRID = 14


def as_rgb(faces: Tensor, side: int) -> Tensor:
    """(B, 1 or 3, S, S) of 0..255, BGR where three, to (B, 3, side, side) RGB of 0..255."""
    faces = faces.flip(1) if faces.shape[1] == 3 else faces.expand(-1, 3, -1, -1)
    return functional.interpolate(faces, size=(side, side), mode="bilinear", antialias=True)


def to_tokens(grid: Tensor) -> Tensor:
    """(B, D, G, G) -> (B, G * G, D): places stay places, which a plain reshape would mix."""
    return grid.flatten(2).transpose(1, 2)


def to_grid(tokens: Tensor) -> Tensor:
    """(B, G * G, D) -> (B, D, G, G), the other way."""
    side = math.isqrt(tokens.shape[1])
    return tokens.transpose(1, 2).reshape(len(tokens), tokens.shape[2], side, side)


class Dinov2(nn.Module):
    """A frozen DINOv2 of any size from a local folder or the hub's name."""

    MEAN = (123.675, 116.28, 103.53)  # ImageNet's, times 255: what DINOv2 was trained with
    DEVIATION = (58.395, 57.12, 57.375)

    def __init__(self, source: str, grid: int = GRID) -> None:
        """grid: side of the grid of tokens. Raises DataError where transformers or the weights are
        missing."""
        super().__init__()
        try:
            from transformers import Dinov2Model
            from transformers.utils import logging
        except ImportError as error:
            raise DataError("transformers is not installed; install the 'train' extra") from error
        logging.disable_progress_bar()  # of a second's reading
        try:
            model, found = Dinov2Model.from_pretrained(source, output_loading_info=True)
        except (OSError, ValueError) as error:
            raise DataError(
                f"no DINOv2 at '{source}' ({str(error).splitlines()[0][:100]}); give a local folder "
                f"or a hub name such as facebook/dinov2-small"
            ) from error
        # Otherwise they would be random, with a warning.
        if absent := [name for name in found["missing_keys"] if not name.endswith("mask_token")]:
            raise DataError(f"'{source}' is no DINOv2: it lacks '{sorted(absent)[0]}'")
        self.model: nn.Module = model.float().requires_grad_(False)
        self.width = int(self.model.config.hidden_size)
        self.side = grid * int(self.model.config.patch_size)
        self.register_buffer("mean", torch.tensor(self.MEAN).reshape(1, 3, 1, 1))
        self.register_buffer("deviation", torch.tensor(self.DEVIATION).reshape(1, 3, 1, 1))

    def train(self, mode: bool = True) -> Dinov2:
        super().train(False)  # frozen: no dropout
        return self

    @torch.no_grad()
    def forward(self, faces: Tensor) -> Tensor:
        pixels = (as_rgb(faces, self.side) - self.mean) / self.deviation
        tokens = self.model(pixel_values=pixels).last_hidden_state[:, 1:]  # without the class token
        return to_grid(tokens)


class _PReLU(nn.PReLU):
    """PReLU whose gradient in bfloat16 on a CPU takes 0.6 times as long as torch's own, which was a
    third of the time of a learning unit."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.bfloat16 and torch.is_grad_enabled():
            slope = self.weight.to(x.dtype)[:, None, None]
            return torch.relu(x) - slope * torch.relu(-x)
        return super().forward(x)


class _Separable(nn.Module):
    """SFace's unit: depthwise and pointwise convolution, each with BatchNorm and PReLU."""

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
    """SFace up to `conv_12_relu`, its last 14x14 grid of 512 channels, or to `conv_14_relu`, 7x7 of
    1024."""

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
        """grid: 14 or 7. Raises DataError where the file is no SFace by its initialisers' names
        and shapes."""
        import onnx
        from google.protobuf.message import DecodeError
        from onnx import numpy_helper

        try:
            graph = onnx.load(str(path)).graph
        except (OSError, DecodeError) as error:
            raise DataError(f"{path} is no ONNX file that can be read; give SFace's") from error
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
                raise DataError(f"{path} is no SFace: '{there}' is missing or of another shape")
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
    """ArcFace's improved residual unit; the names are those of the usual checkpoints."""

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
    """ArcFace's IR-50 up to its third stage, the last 14x14 grid of 256 channels, or whole, 7x7 of
    512."""

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
        """grid: 14 or 7. A state dict, alone or under `state_dict` or `model`, with or without the
        prefixes `module.` and `backbone.`; later stages are left out. Raises DataError otherwise."""
        content = store.load(path)
        for key in ("state_dict", "model"):
            if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
                content = content[key]
        if not isinstance(content, Mapping):
            raise DataError(f"{path} is no state dict of IR-50")
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
            raise DataError(f"{path} is no IR-50: '{missing[0]}' is missing or of another shape")
        model.load_state_dict({name: plain.get(name, value) for name, value in own.items()})
        model.eval()
        return model


def split(face: SFace | IR50, trained_units: int) -> tuple[nn.Sequential, nn.Sequential]:
    """The face backbone below and above: what stays frozen, and the last units, which learn.

    Raises DataError where it has fewer units than that."""
    stages = face.stages()
    place = len(stages) - trained_units
    if place < 0:
        raise DataError(f"trained_units {trained_units}: the backbone has only {len(stages)}")
    below, above = nn.Sequential(*stages[:place]), nn.Sequential(*stages[place:])
    below.requires_grad_(False)
    above.requires_grad_(True)
    return below, above


class Lower(nn.Module):
    """The face backbone below the units that learn: faces (B, C, S, S) of 0..255 to (B, C', G, G)."""

    def __init__(self, face: SFace | IR50, below: nn.Sequential) -> None:
        super().__init__()
        self.prepare, self.side = face.prepare, face.side
        self.below = below
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Lower:
        super().train(False)  # frozen: no batch statistics
        return self

    @torch.no_grad()
    def forward(self, faces: Tensor) -> Tensor:
        pixels = self.prepare(faces).to(memory_format=torch.channels_last)
        return self.below(pixels)  # type: ignore[no-any-return]


class Frozen(nn.Module):
    """What does not learn: DINOv2, and the face backbone below the units that do.

    forward: faces (B, C, S, S) of 0..255 to the scene's grid (B, Ds, G, G) and to what the face's
    learning units read, (B, C', G', G').
    """

    def __init__(self, scene: Dinov2, lower: Lower) -> None:
        super().__init__()
        self.scene, self.lower = scene, lower

    def forward(self, faces: Tensor) -> tuple[Tensor, Tensor]:
        return self.scene(faces), self.lower(faces)
