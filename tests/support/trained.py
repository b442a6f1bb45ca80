"""What several tests train, and networks that look as if they had been trained."""

from __future__ import annotations

from torch import nn

RECIPE = """
name: tiny
crop:
  size: 32
  template: [[10, 11], [22, 11], [16, 18], [11, 25], [21, 25]]
student: {widths: [4, 6, 8, 8], depths: [1, 1, 1], width: 8, heads: 2}
training: {epochs: 4, batch: 32, learning_rate: 0.01, seed: 3, average: 0.9}
"""


def in_use(network: nn.Module) -> None:
    """Batch statistics as those of a network in use, not the initial ones."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2.0)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.2)
