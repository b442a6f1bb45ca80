"""Networks that users would pick instead, by architecture and with random weights: for timing alone.

EfficientNet-B0 at 224 (Tan and Le, ICML 2019) as transformers builds it, MobileFaceNet at 112 (Chen et
al., CCBR 2018, table 1) as written here.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from export.to_onnx import write_onnx


class _Unit(nn.Sequential):
    def __init__(
        self, inputs: int, outputs: int, side: int, stride: int, groups: int, linear: bool = False
    ) -> None:
        padding = side // 2 if side != 7 else 0
        conv = nn.Conv2d(inputs, outputs, side, stride, padding, groups=groups, bias=False)
        parts: list[nn.Module] = [conv, nn.BatchNorm2d(outputs)]
        super().__init__(*parts, *([] if linear else [nn.PReLU(outputs)]))


class _Bottleneck(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.same = stride == 1 and inputs == outputs
        self.body = nn.Sequential(
            _Unit(inputs, wide, 1, 1, 1),
            _Unit(wide, wide, 3, stride, wide),
            _Unit(wide, outputs, 1, 1, 1, linear=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return x + y if self.same else y


class MobileFaceNet(nn.Module):
    """Maps (B, 3, 112, 112) to logits (B, K)."""

    # Expansion, outputs, repeats and stride of each row of the paper's table.
    ROWS = ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1))

    def __init__(self, classes: int) -> None:
        super().__init__()
        parts: list[nn.Module] = [_Unit(3, 64, 3, 2, 1), _Unit(64, 64, 3, 1, 64)]
        inputs = 64
        for expansion, outputs, repeats, stride in self.ROWS:
            for index in range(repeats):
                parts.append(_Bottleneck(inputs, outputs, stride if index == 0 else 1, expansion))
                inputs = outputs
        parts += [_Unit(128, 512, 1, 1, 1), _Unit(512, 512, 7, 1, 512, linear=True)]
        self.body = nn.Sequential(*parts, _Unit(512, 128, 1, 1, 1, linear=True), nn.Flatten())
        self.head = nn.Linear(128, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))  # type: ignore[no-any-return]


def _efficientnet(classes: int) -> nn.Module:
    from transformers import EfficientNetConfig, EfficientNetForImageClassification

    config = EfficientNetConfig(
        width_coefficient=1.0,
        depth_coefficient=1.0,
        image_size=224,
        hidden_dim=1280,
        return_dict=False,
    )
    config.num_labels = classes
    return EfficientNetForImageClassification(config)


def write_baselines(folder: Path, classes: int) -> dict[str, tuple[Path, int]]:
    """Write ONNX files in float32, batch open; return them by name with the input's side in pixels."""
    torch.manual_seed(0)
    written = {}
    for name, network, side in (
        ("EfficientNet-B0 at 224", _efficientnet(classes), 224),
        ("MobileFaceNet at 112", MobileFaceNet(classes), 112),
    ):
        path = folder / f"{name.split()[0]}.onnx"
        write_onnx(network.eval(), (3, side, side), path)
        written[name] = (path, side)
    return written
