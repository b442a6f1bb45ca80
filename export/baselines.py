"""Networks that users would pick instead, by architecture and with random weights: for timing alone.

Random weights must keep numbers at a usual size. Those of transformers' own deviation let
EfficientNet's activations sink to 1e-40, and on such denormal numbers an Intel Xeon takes 20 times as
long as on others (onnxruntime issue 7448): a ratio to it would say nothing.

EfficientNet-B0 at 224 (Tan and Le, ICML 2019) as transformers builds it, MobileFaceNet at 112 (Chen et
al., CCBR 2018, table 1) as written here.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from edge.base.errors import EdgeError
from export.to_onnx import write_onnx

SMALLEST_NORMAL = torch.finfo(torch.float32).tiny


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


@torch.no_grad()
def make_healthy(network: nn.Module, faces: Tensor) -> nn.Module:
    """Give a network weights of He's deviation (He et al., ICCV 2015) and its BatchNorm the statistics
    of `faces` (B, C, S, S), in place, so that activations neither sink nor grow with depth."""
    network.eval()
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()  # transformers draws gains of deviation 0.02, which multiply up
            module.momentum = 1.0  # the statistics of these faces alone
            module.train()
    network(faces)
    return network.eval()


@torch.no_grad()
def denormal_share(network: nn.Module, faces: Tensor) -> float:
    """Return the largest share, over the network's modules, of outputs for `faces` (B, C, S, S) that
    are denormal, infinite or no number; and 1.0 where a module answers nothing but zeros."""
    worst = 0.0

    def look(module: nn.Module, inputs: object, output: object) -> None:
        nonlocal worst
        for x in output if isinstance(output, tuple) else (output,):
            if isinstance(x, Tensor) and x.numel():
                size = x.abs()
                odd = ((size > 0) & (size < SMALLEST_NORMAL)) | ~torch.isfinite(x)
                share = float(odd.float().mean()) if size.any() else 1.0
                worst = max(worst, share)

    hooks = [module.register_forward_hook(look) for module in network.modules()]
    try:
        network(faces)
    finally:
        for hook in hooks:
            hook.remove()
    return worst


def write_baselines(folder: Path, classes: int) -> dict[str, tuple[Path, int]]:
    """Write ONNX files in float32, batch open; return them by name with the input's side in pixels.

    Raises EdgeError where a network computes on denormal numbers: its time would be nobody's."""
    torch.manual_seed(0)
    written = {}
    for name, network, side in (
        ("EfficientNet-B0 at 224", _efficientnet(classes), 224),
        ("MobileFaceNet at 112", MobileFaceNet(classes), 112),
    ):
        path = folder / f"{name.split()[0]}.onnx"
        faces = torch.randint(0, 256, (4, 3, side, side)).float()
        if share := denormal_share(make_healthy(network, faces), faces):
            raise EdgeError(
                f"{name}: {100 * share:.2g} % of a layer's values are no normal numbers; time it "
                f"with --without-baselines, and report this"
            )
        write_onnx(network, (3, side, side), path)
        written[name] = (path, side)
    return written
