"""Scores from probabilities and votes; plain NumPy, so that the laboratory and any reviewer agree."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from distill.data.splits import argmax, majority
from edge.classify import softmax

PROTOCOLS = ("majority-8", "argmax-8")
LABELS = "labels"  # of data with one label an image: nothing is left out, nothing is voted
ECE_BINS = 15
# Share of all votes that the label got, as bins from one to below the next; the last holds 1.
AGREEMENT = (0.0, 0.5, 0.7, 0.9, 1.0)


@dataclass(frozen=True, slots=True)
class Agreed:
    """Accuracy on the n images whose label got from `low` to below `high` of all votes (the last bin
    with `high`); None where n is 0."""

    low: float
    high: float
    n: int
    accuracy: float | None


@dataclass(frozen=True, slots=True)
class Scores:
    """One protocol's scores of n images. Shares are 0..1; intervals are 95 % bootstrap percentiles.

    ece, nll_label: against the protocol's label. ece_votes, nll: against the shares of the votes;
    ece_votes is None, and agreement empty, where the data has a label an image and no votes."""

    protocol: str
    n: int
    excluded: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    mean_class_accuracy: float
    mean_class_accuracy_interval: tuple[float, float]
    macro_f1: float
    ece: float
    ece_votes: float | None
    nll: float
    nll_label: float
    agreement: list[Agreed]
    recall: dict[str, float]
    confusion: list[list[int]]


def _class_mean(truth: NDArray[np.int64], hit: NDArray[np.bool_], classes: int) -> float:
    recalls = [hit[truth == k].mean() for k in range(classes) if (truth == k).any()]
    return float(np.mean(recalls))


def confidence_bin(confidence: NDArray[np.float64]) -> NDArray[np.int64]:
    """Sort into bins of equal width: (N,), 0 to ECE_BINS - 1."""
    return np.minimum((confidence * ECE_BINS).astype(np.int64), ECE_BINS - 1)


def truth_of(votes: NDArray[np.int64], labels: tuple[str, ...], protocol: str) -> NDArray[np.int64]:
    """Label (N,) by a protocol, -1 for what it leaves out. labels: of the first K columns."""
    return argmax(votes, labels) if protocol == PROTOCOLS[1] else majority(votes, len(labels))


def has_votes(votes: NDArray[np.int64]) -> bool:
    """Tell whether images (N, K + extra) were voted on, or carry one label each."""
    return bool((votes.sum(axis=1) > 1).any())


def expected_calibration_error(
    confidence: NDArray[np.float64], hit: NDArray[np.bool_] | NDArray[np.float64]
) -> float:
    """Average |accuracy - confidence| over ECE_BINS equal bins, weighted by their share (Guo et al.
    2017). hit: (N,), whether the answer is the label, or which share of the votes it got."""
    place = confidence_bin(confidence)
    parts = [
        abs(hit[place == b].mean() - confidence[place == b].mean()) * (place == b).mean()
        for b in range(ECE_BINS)
        if (place == b).any()
    ]
    return float(sum(parts))


def accuracy_by_agreement(
    votes: NDArray[np.int64], truth: NDArray[np.int64], hit: NDArray[np.bool_]
) -> list[Agreed]:
    """Sort images by the share of all their votes (N, K + extra) that their label truth (N,) got, and
    count hits (N,) in each bin of AGREEMENT."""
    share = votes[np.arange(len(truth)), truth] / votes.sum(axis=1)
    place = np.digitize(share, AGREEMENT[1:-1])
    bins = []
    for b, (low, high) in enumerate(pairwise(AGREEMENT)):
        inside = hit[place == b]
        accuracy = round(float(inside.mean()), 5) if len(inside) else None
        bins.append(Agreed(low, high, len(inside), accuracy))
    return bins


def score(
    probabilities: NDArray[np.float64],
    votes: NDArray[np.int64],
    labels: tuple[str, ...],
    protocol: str,
    rounds: int = 2000,
    seed: int = 0,
) -> Scores:
    """Score probabilities (N, K), whose rows sum to 1, against votes (N, K + extra). rounds: of the
    bootstrap."""
    classes = len(labels)
    truth = truth_of(votes, labels, protocol)
    kept = truth >= 0
    truth, p = truth[kept], probabilities[kept].astype(np.float64)
    q = votes[kept][:, :classes].astype(np.float64)
    q /= q.sum(axis=1, keepdims=True)
    answer, row = p.argmax(axis=1), np.arange(len(p))
    hit, confidence, logs = answer == truth, p.max(axis=1), np.log(np.maximum(p, 1e-7))
    voted = has_votes(votes[kept])
    confusion = np.zeros((classes, classes), dtype=int)
    np.add.at(confusion, (truth, answer), 1)
    present = confusion.sum(axis=1) > 0
    right = np.diag(confusion)
    # A class that occurs nowhere in the truth has no recall and does not enter the means.
    f1 = 2 * right / np.maximum(confusion.sum(axis=1) + confusion.sum(axis=0), 1)
    rng = np.random.RandomState(seed)
    draws = [rng.randint(0, len(truth), len(truth)) for _ in range(rounds)]
    spread = np.array([(hit[i].mean(), _class_mean(truth[i], hit[i], classes)) for i in draws])
    low, high = np.percentile(spread, [2.5, 97.5], axis=0) if rounds else np.full((2, 2), np.nan)
    return Scores(
        protocol=protocol,
        n=len(truth),
        excluded=int((~kept).sum()),
        accuracy=float(hit.mean()),
        accuracy_interval=(float(low[0]), float(high[0])),
        mean_class_accuracy=_class_mean(truth, hit, classes),
        mean_class_accuracy_interval=(float(low[1]), float(high[1])),
        macro_f1=float(f1[present].mean()),
        ece=expected_calibration_error(confidence, hit),
        ece_votes=expected_calibration_error(confidence, q[row, answer]) if voted else None,
        nll=float(-(q * logs).sum(axis=1).mean()),
        nll_label=float(-logs[row, truth].mean()),
        agreement=accuracy_by_agreement(votes[kept], truth, hit) if voted else [],
        recall={
            labels[k]: float(right[k] / confusion[k].sum()) for k in range(classes) if present[k]
        },
        confusion=confusion.tolist(),
    )


def tempered(probabilities: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    """Compute softmax(logits / T) from the probabilities at T = 1, (N, K) both."""
    powers = np.maximum(probabilities, 1e-12) ** (1 / temperature)
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def fit_temperature(logits: NDArray[np.float32], targets: NDArray[np.float32]) -> float:
    """Find the T that minimises the cross-entropy of softmax(logits / T) against targets, (N, K) both
    (Guo et al. 2017); golden-section search over log T in [-2, 2]: the loss is convex in 1 / T."""

    def loss(log_t: float) -> float:
        p = softmax(logits.astype(np.float64) / np.exp(log_t))
        return float(-(targets * np.log(np.maximum(p, 1e-12))).sum(axis=1).mean())

    ratio = (5**0.5 - 1) / 2
    low, high = -2.0, 2.0
    a, b = high - ratio * (high - low), low + ratio * (high - low)
    loss_a, loss_b = loss(a), loss(b)
    while high - low > 1e-4:
        if loss_a < loss_b:
            high, b, loss_b = b, a, loss_a
            a = high - ratio * (high - low)
            loss_a = loss(a)
        else:
            low, a, loss_a = a, b, loss_b
            b = low + ratio * (high - low)
            loss_b = loss(b)
    return float(np.exp((low + high) / 2))
