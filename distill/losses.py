"""Losses, each a free function with its source."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy against a distribution: -sum_k q_k log p_k, mean over the batch.

    logits, targets: (B, K); targets are non-negative and sum to 1 a row. The FER+ paper's "PLD"
    (Barsoum et al., ICMI 2016): learn the annotators' votes, not their winner.
    """
    return -(targets * functional.log_softmax(logits, dim=1)).sum(dim=1).mean()
