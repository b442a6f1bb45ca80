"""Proof that the exported files say what the trained network says."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from distill.metrics import softmax
from distill.student import Student
from edge.backends import open_backend
from edge.errors import EdgeError

TORCH_TOLERANCE = 1e-4
ACCURACY_TOLERANCE = 0.005
CHANGED_TOLERANCE = 0.03


@dataclass(frozen=True, slots=True)
class Agreement:
    """INT8 against float on one split. Shares are 0..1; kl in nats, mean over the pictures.

    accuracy_change: INT8 minus float, with its paired 95 % interval.
    """

    pictures: int
    labelled: int
    accuracy_float: float
    accuracy_int8: float
    accuracy_change: float
    interval: tuple[float, float]
    changed: float
    kl: float

    @property
    def within(self) -> bool:
        return self.accuracy_change >= -ACCURACY_TOLERANCE and self.changed <= CHANGED_TOLERANCE

    def as_dict(self) -> dict[str, Any]:
        return {k: round(v, 6) if isinstance(v, float) else v for k, v in asdict(self).items()}


def logits_of(model: Path, crops: NDArray[np.uint8], batch: int = 64) -> NDArray[np.float32]:
    """(N, K) by ONNX Runtime."""
    backend = open_backend("ort", model)
    try:
        parts = [
            backend.run(crops[i : i + batch].astype(np.float32))["logits"]
            for i in range(0, len(crops), batch)
        ]
    finally:
        backend.close()
    return np.concatenate(parts)


@torch.no_grad()
def torch_equals_onnx(student: Student, model: Path, crops: NDArray[np.uint8]) -> float:
    """Largest difference of a logit; raises EdgeError above TORCH_TOLERANCE."""
    here = student(torch.from_numpy(np.array(crops)).float()).numpy()
    difference = float(np.abs(here - logits_of(model, crops)).max())
    if not difference <= TORCH_TOLERANCE:
        raise EdgeError(f"torch and ONNX differ by {difference:.2g}, {TORCH_TOLERANCE} is allowed")
    return difference


def compare(
    exact: NDArray[np.float32], rounded: NDArray[np.float32], labels: NDArray[np.int64]
) -> Agreement:
    """exact, rounded: logits (N, K) of float and INT8; labels: (N,), -1 for none.

    The interval is that of a difference of paired proportions (McNemar's table): with b pictures
    that only float and c that only INT8 gets right, variance ((b + c) - (b - c)^2 / n) / n^2.
    """
    p, q = softmax(exact), softmax(rounded)
    one, other = exact.argmax(axis=1), rounded.argmax(axis=1)
    known = labels >= 0
    n = int(known.sum())
    right, right_int8 = (one == labels)[known], (other == labels)[known]
    b, c = int((right & ~right_int8).sum()), int((~right & right_int8).sum())
    change = (c - b) / n
    half = 1.96 * np.sqrt(max((b + c) - (b - c) ** 2 / n, 0.0)) / n
    return Agreement(
        pictures=len(exact),
        labelled=n,
        accuracy_float=float(right.mean()),
        accuracy_int8=float(right_int8.mean()),
        accuracy_change=change,
        interval=(float(change - half), float(change + half)),
        changed=float((one != other).mean()),
        kl=float((p * (np.log(p + 1e-12) - np.log(q + 1e-12))).sum(axis=1).mean()),
    )
