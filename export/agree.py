"""Checks that the exported files say what the trained network says."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from distill.models.predict import logits_of
from distill.models.student import Student
from edge.base.errors import EdgeError
from edge.classify import softmax

TORCH_TOLERANCE = 1e-4
ACCURACY_TOLERANCE = 0.005
CHANGED_TOLERANCE = 0.03


@dataclass(frozen=True, slots=True)
class Agreement:
    """Compares INT8 with float on one split. Shares are 0..1; kl in nats, mean over the images.

    accuracy_change: INT8 minus float, with its paired 95 % interval; recall_change: the same by class
    (None where a class has no image); changed_by_class: share of the images that float put there.
    """

    pictures: int
    labelled: int
    accuracy_float: float
    accuracy_int8: float
    accuracy_change: float
    interval: tuple[float, float]
    changed: float
    kl: float
    recall_change: dict[str, float | None]
    changed_by_class: dict[str, float | None]

    @property
    def within(self) -> bool:
        """Tell whether INT8 is within tolerance of float."""
        return self.accuracy_change >= -ACCURACY_TOLERANCE and self.changed <= CHANGED_TOLERANCE

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as bundle.json stores them, rounded to six decimals."""
        return _rounded(asdict(self))


def _rounded(facts: dict[str, Any]) -> dict[str, Any]:
    def one(value: Any) -> Any:
        if isinstance(value, dict):
            return _rounded(value)
        if isinstance(value, tuple):
            return [one(part) for part in value]
        return round(value, 6) if isinstance(value, float) else value

    return {key: one(value) for key, value in facts.items()}


@torch.no_grad()
def torch_equals_onnx(student: Student, model: Path, crops: NDArray[np.uint8]) -> float:
    """Return the largest difference of a logit; raises EdgeError above TORCH_TOLERANCE.

    crops: (N, C, S, S) uint8.
    """
    here = student(torch.from_numpy(np.array(crops)).float()).numpy()
    difference = float(np.abs(here - logits_of(model, crops)).max())
    if not difference <= TORCH_TOLERANCE:
        raise EdgeError(f"torch and ONNX differ by {difference:.2g}, {TORCH_TOLERANCE} is allowed")
    return difference


def divergence(exact: NDArray[np.float32], rounded: NDArray[np.float32]) -> tuple[float, float]:
    """Return the mean KL divergence in nats and the share of changed decisions, of logits (N, K)."""
    p, q = softmax(exact.astype(np.float64)), softmax(rounded.astype(np.float64))
    kl = (p * (np.log(p + 1e-12) - np.log(q + 1e-12))).sum(axis=1).mean()
    return float(kl), float((exact.argmax(axis=1) != rounded.argmax(axis=1)).mean())


def compare(
    exact: NDArray[np.float32],
    rounded: NDArray[np.float32],
    truth: NDArray[np.int64],
    labels: tuple[str, ...],
) -> Agreement:
    """Compare INT8's answers with float's.

    exact, rounded: logits (N, K) of float and INT8; truth: (N,), -1 for none; labels: K names. The
    interval is that of a difference of paired proportions (McNemar's table): with b images that only
    float and c that only INT8 gets right, the variance is ((b + c) - (b - c)^2 / n) / n^2.
    """
    one, other = exact.argmax(axis=1), rounded.argmax(axis=1)
    known = truth >= 0
    n = int(known.sum())
    right, right_int8 = (one == truth)[known], (other == truth)[known]
    b, c = int((right & ~right_int8).sum()), int((~right & right_int8).sum())
    change = (c - b) / n
    half = 1.96 * np.sqrt(max((b + c) - (b - c) ** 2 / n, 0.0)) / n
    kl, changed = divergence(exact, rounded)

    def by_class(
        values: NDArray[np.float64], classes: NDArray[np.int64]
    ) -> dict[str, float | None]:
        return {
            label: float(values[classes == k].mean()) if (classes == k).any() else None
            for k, label in enumerate(labels)
        }

    return Agreement(
        pictures=len(exact),
        labelled=n,
        accuracy_float=float(right.mean()),
        accuracy_int8=float(right_int8.mean()),
        accuracy_change=change,
        interval=(float(change - half), float(change + half)),
        changed=changed,
        kl=kl,
        recall_change=by_class(right_int8.astype(float) - right, truth[known]),
        changed_by_class=by_class((one != other).astype(float), one),
    )
