"""One small protocol, one file a runtime. Each file imports its library inside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name and shape of an input; None where the graph leaves a side open."""

    name: str
    shape: tuple[int | None, ...]


class Backend(Protocol):
    """Runs one network. Pre- and post-processing belong to the model and live outside."""

    name: str
    input: TensorSpec

    def run(self, batch: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """batch: float32 of `input.shape`. Returns the outputs by name; an empty batch gives
        empty outputs of the same rank."""

    def close(self) -> None: ...
