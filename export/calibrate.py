"""Real crops -> the ranges of every tensor, once for all INT8 files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader

from edge.base.errors import DataError
from export.to_onnx import INPUT

LEAST_CROPS = 512
BATCH = 32


class Crops(CalibrationDataReader):  # type: ignore[misc]
    """Feeds the calibrator."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        """Take (N, C, S, S) uint8; raises DataError where N is below LEAST_CROPS."""
        if len(pixels) < LEAST_CROPS:
            raise DataError(
                f"{len(pixels)} crops to calibrate on, at least {LEAST_CROPS} are needed; give more "
                f"data"
            )
        self._batches: Iterator[NDArray[np.uint8]] = iter(
            [pixels[i : i + BATCH] for i in range(0, len(pixels), BATCH)]
        )

    def get_next(self) -> dict[str, Any] | None:
        """Return the next batch as the graph's input, or None at the end."""
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch.astype(np.float32)}


def balanced(
    labels: NDArray[np.int64], classes: int, wanted: int, seed: int = 0
) -> NDArray[np.int64]:
    """Choose about `wanted` images, equally many of each class as far as it has them; their indices.

    labels: (N,), -1 for none. Raises DataError where fewer than LEAST_CROPS can be had.
    """
    rng = np.random.default_rng(seed)
    pools = [rng.permutation(np.flatnonzero(labels == k)) for k in range(classes)]
    chosen: list[int] = []
    # Round robin: a rare class gives all it has, the others share the rest.
    for turn in range(max((len(pool) for pool in pools), default=0)):
        for pool in pools:
            if turn < len(pool) and len(chosen) < wanted:
                chosen.append(int(pool[turn]))
    if len(chosen) < LEAST_CROPS:
        raise DataError(
            f"{len(chosen)} labelled crops to calibrate on, at least {LEAST_CROPS} are needed; "
            f"give more data"
        )
    return np.array(sorted(chosen), dtype=np.int64)
