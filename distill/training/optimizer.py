"""Move weights: parameter groups, the schedule, the moving average, and sharpness-aware steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from distill.recipe import Training
from distill.training.losses import RunningStandard


def learning_rate(training: Training, step: int, steps: int) -> float:
    """Return the rate of one of `steps` steps: linear warm-up, then half a cosine to zero."""
    warm = training.warmup_epochs * steps / training.epochs
    if step < warm:
        return training.learning_rate * (step + 1) / warm
    done = (step - warm) / max(steps - warm, 1)
    return training.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def adamw(
    network: nn.Module, training: Training, pretrained: nn.Module | None, rate: float
) -> torch.optim.AdamW:
    """Build AdamW (Loshchilov and Hutter, ICLR 2019), without decay on biases and normalisation.

    pretrained: a part whose learning rate is `rate` times the rest's; each parameter group keeps that
    factor as its `share`.
    """
    slow = {id(p) for p in pretrained.parameters()} if pretrained else set()
    groups = []
    for share, inside in ((1.0, False), (rate, True)):
        own = [p for p in network.parameters() if p.requires_grad and (id(p) in slow) == inside]
        for decay, params in (
            (training.weight_decay, [p for p in own if p.ndim > 1]),
            (0.0, [p for p in own if p.ndim <= 1]),
        ):
            if params:
                groups.append({"params": params, "weight_decay": decay, "share": share})
    return torch.optim.AdamW(groups, lr=training.learning_rate)


def set_learning_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Set each group's learning rate to its share of `rate`."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["share"]


@torch.no_grad()
def update_ema(ema: nn.Module, network: nn.Module, decay: float) -> None:
    """Move the exponential average of weights and batch statistics towards the network's."""
    new = network.state_dict()
    for name, value in ema.state_dict().items():
        if value.dtype.is_floating_point:
            value.lerp_(new[name].to(value.device), 1 - decay)
        else:
            value.copy_(new[name])


def sam_gradients(
    loss: Callable[[], Tensor], network: nn.Module, parameters: Iterable[nn.Parameter], rho: float
) -> None:
    """Replace the gradients of `loss`, which were computed already, by those at the worst point within
    `rho`; batch statistics stay those of the first pass.

    SAM: Foret et al., "Sharpness-Aware Minimization", ICLR 2021, equations 2 and 3."""
    moved = [p for p in parameters if p.grad is not None]
    norm = torch.stack([p.grad.norm() for p in moved if p.grad is not None]).norm()
    steps = []
    with torch.no_grad():
        for p in moved:
            assert p.grad is not None
            step = p.grad * (rho / (norm + 1e-12))
            p.add_(step)
            steps.append(step)
            p.grad = None
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    kept = [m.momentum for m in norms]
    for m in norms:
        m.momentum = 0.0
    standards = [m for m in network.modules() if isinstance(m, RunningStandard)]
    for s in standards:
        s.eval()
    loss().backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for p, step in zip(moved, steps, strict=True):
            p.sub_(step)
    for m, momentum in zip(norms, kept, strict=True):
        m.momentum = momentum
    for s in standards:
        s.train()
