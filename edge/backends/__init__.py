"""One small protocol, one file a runtime. Each file imports its library inside."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge.errors import BackendError, UsageError

BACKENDS = ("auto", "ort", "trt", "fake")


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
    """Open `model` (an ONNX file) with the runtime named by `choice` (one of BACKENDS).

    `auto` takes ONNX Runtime, and never the fake. Raises BackendError where the runtime is missing
    or refuses the file, UsageError for an unknown choice.
    """
    if choice in ("auto", "ort"):
        from edge.backends.ort import OnnxRuntime

        return OnnxRuntime(model, threads)
    if choice == "fake":
        from edge.backends.fake import Fake

        return Fake(model)
    if choice == "trt":
        raise BackendError(
            "this version builds no TensorRT engine yet; run with --backend ort (or auto)"
        )
    raise UsageError(f"unknown backend '{choice}'; choose one of {', '.join(BACKENDS)}")
