"""One small protocol, one file a runtime. Each file imports its library inside."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge.base.errors import UsageError


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


def open_backend(choice: str, model: Path, threads: int = 2) -> Backend:
    """Open `model` (an ONNX file) with ONNX Runtime ("ort") or the fake ("fake"); TensorRT runs
    engines, see `edge.inference.loader`.

    Raises BackendError where the runtime is missing or refuses the file.
    """
    if choice == "fake":
        from edge.inference.backends.fake import Fake

        return Fake(model)
    if choice == "ort":
        from edge.inference.backends.ort import OnnxRuntime

        return OnnxRuntime(model, threads)
    raise UsageError(f"no backend '{choice}' runs an ONNX file; choose ort or fake")
