"""Compute losses, each a free function with its source.

Letters: B batch, K classes, N tokens, D width, H heads. Every loss is a mean over the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def soft_cross_entropy(logits: Tensor, targets: Tensor, prior: Tensor | None = None) -> Tensor:
    """Compute the cross-entropy against a distribution, -sum_k q_k log p_k.

    logits, targets: (B, K); each row of targets is non-negative and sums to 1. The FER+ paper's "PLD"
    (Barsoum et al., ICMI 2016): learn the distribution of votes, not the class with the most. prior:
    (K,), tau times the log of the classes' shares, added to the logits here alone, so that the bare
    ones need not learn it (Menon et al., "Long-tail learning via logit adjustment", ICLR 2021).
    """
    if prior is not None:
        logits = logits + prior
    return -(targets * functional.log_softmax(logits, dim=1)).sum(dim=1).mean()


def standardise(logits: Tensor) -> Tensor:
    """Scale each row to mean 0 and standard deviation 1, (B, K) -> (B, K), so that the student may
    choose its own scale (Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024)."""
    centred = logits - logits.mean(dim=1, keepdim=True)
    return centred / (centred.pow(2).mean(dim=1, keepdim=True).sqrt() + 1e-7)


def logit_distillation(student: Tensor, teacher: Tensor, temperature: float = 2.0) -> Tensor:
    """Compute KL(teacher || student) of standardised logits at a temperature, times its square.

    student, teacher: (B, K). Hinton et al. 2015, with the standardisation of Sun et al. 2024.
    """
    log_p = functional.log_softmax(standardise(student) / temperature, dim=1)
    log_q = functional.log_softmax(standardise(teacher) / temperature, dim=1)
    return (log_q.exp() * (log_q - log_p)).sum(dim=1).mean() * temperature**2


def decoupled_distillation(
    student: Tensor,
    teacher: Tensor,
    label: Tensor,
    temperature: float = 2.0,
    alpha: float = 1.0,
    beta: float = 2.0,
) -> Tensor:
    """Compute DKD: the labelled class against all others (alpha), and the others alone (beta).

    student, teacher: (B, K); label: (B,) int. Zhao et al., "Decoupled Knowledge Distillation",
    CVPR 2022, equation 7, on standardised logits.
    """
    s, t = standardise(student) / temperature, standardise(teacher) / temperature
    own = functional.one_hot(label, s.shape[1]).bool()
    log_p, log_q = functional.log_softmax(s, dim=1), functional.log_softmax(t, dim=1)

    def two(log_x: Tensor) -> Tensor:
        inside = log_x[own]
        outside = torch.logsumexp(log_x.masked_fill(own, -torch.inf), dim=1)
        return torch.stack([inside, outside], dim=1)  # (B, 2)

    target = (two(log_q).exp() * (two(log_q) - two(log_p))).sum(dim=1).mean()
    rest_p = functional.log_softmax(s.masked_fill(own, -1e4), dim=1)
    rest_q = functional.log_softmax(t.masked_fill(own, -1e4), dim=1)
    rest = (rest_q.exp() * (rest_q - rest_p)).masked_fill(own, 0.0).sum(dim=1).mean()
    return (alpha * target + beta * rest) * temperature**2


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Compute Pearson's correlation of each row of a with that of b."""
    a, b = a - a.mean(dim=1, keepdim=True), b - b.mean(dim=1, keepdim=True)
    return functional.cosine_similarity(a, b, dim=1, eps=1e-8)


def relation_distillation(student: Tensor, teacher: Tensor, temperature: float = 2.0) -> Tensor:
    """Compute DIST: 1 - correlation over each face's classes, plus 1 - correlation over each class's
    faces. student, teacher: (B, K). Huang et al., "Knowledge Distillation from A Stronger
    Teacher", NeurIPS 2022."""
    p = functional.softmax(student / temperature, dim=1)
    q = functional.softmax(teacher / temperature, dim=1)
    between = 1 - _correlation(p, q).mean()
    within = 1 - _correlation(p.T, q.T).mean()
    return (between + within) * temperature**2


class RunningStandard(nn.Module):
    """Scale the teacher's features to mean 0 and standard deviation 1 by channel, (..., D) -> (..., D).

    The running statistics change in training mode only. They are part of the state, so that a resumed
    run has the same ones.
    """

    mean: Tensor
    variance: Tensor
    seen: Tensor

    def __init__(self, width: int, momentum: float = 0.01) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, features: Tensor) -> Tensor:
        if self.training:
            flat = features.detach().reshape(-1, features.shape[-1]).float()
            # The plain mean of the first batches: an average that starts at 0 and 1 would lag.
            self.seen += 1
            step = (1.0 / self.seen.float()).clamp(min=self.momentum)
            self.mean.lerp_(flat.mean(dim=0), step)
            self.variance.lerp_(flat.var(dim=0, unbiased=False), step)
        return (features - self.mean) / (self.variance + 1e-6).sqrt()


def feature_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute half the cosine distance plus half smooth-L1, over the last dimension.

    student, teacher: (..., D), the teacher's standardised. Smooth-L1 (Girshick 2015) keeps a
    transformer's few large channels from dominating the sum.
    """
    cosine = 1 - functional.cosine_similarity(student, teacher, dim=-1).mean()
    return 0.5 * cosine + 0.5 * functional.smooth_l1_loss(student, teacher)


def attention_relations(student: Tensor, teacher: Tensor, heads: int) -> Tensor:
    """Compute KL between the tokens' relations, scaled dot products in `heads` relation heads.

    student: (B, N, D), teacher: (B, N, D'), both queries, both keys or both values; the networks'
    own heads do not matter. MiniLMv2 (Wang et al., Findings of ACL 2021), equations 4 and 5.
    """

    def relations(x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        split = x.reshape(batch, tokens, heads, width // heads).transpose(1, 2)  # (B, H, N, D/H)
        scores = split @ split.transpose(2, 3) / (width // heads) ** 0.5  # (B, H, N, N)
        return functional.log_softmax(scores, dim=-1)

    log_p, log_q = relations(student), relations(teacher)
    return (log_q.exp() * (log_q - log_p)).sum(dim=-1).mean()
