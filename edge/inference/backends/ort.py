"""ONNX Runtime: the backend that runs on any machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.base.errors import BackendError, BundleError
from edge.inference.backends import TensorSpec
from edge.inference.onnx_file import refuse_external_data


def _errors() -> tuple[type[Exception], ...]:
    """Return ONNX Runtime's own exceptions, which share only Exception as their base."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoSuchFile")
    more = ("NoModel", "NotImplemented", "RuntimeException", "EngineError", "EPFail")
    return tuple(getattr(state, name) for name in names + more if hasattr(state, name))


class OnnxRuntime:
    """One ONNX file under ONNX Runtime's CPU kernels."""

    name = "onnxruntime"

    def __init__(self, model: Path, threads: int = 2) -> None:
        """Load the file; threads: cores for one call. Raises BackendError."""
        try:
            import onnxruntime as ort
        except ImportError as error:
            raise BackendError(
                f"onnxruntime is not installed ({error}); install the kit again: pip install ."
            ) from error
        try:
            refuse_external_data(model)
        except (OSError, BundleError) as error:
            raise BackendError(
                f"{model} is not a model that ONNX Runtime {ort.__version__} can load: {error}"
            ) from error
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Two sessions take turns here: the idle one's spinning threads would steal the other's cores.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session: Any = ort.InferenceSession(
                str(model), options, providers=["CPUExecutionProvider"]
            )
        except _errors() as error:
            raise BackendError(
                f"{model} is not a model that ONNX Runtime {ort.__version__} can load: "
                f"{str(error).splitlines()[0][:160]}"
            ) from error
        first = self._session.get_inputs()[0]
        self.input = TensorSpec(
            first.name, tuple(d if isinstance(d, int) else None for d in first.shape)
        )
        self._outputs = {
            output.name: [d if isinstance(d, int) else 0 for d in output.shape]
            for output in self._session.get_outputs()
        }

    def run(self, batch: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """See Backend.run."""
        if batch.shape[0] == 0:
            return {
                name: np.zeros([0, *shape[1:]], dtype=np.float32)
                for name, shape in self._outputs.items()
            }
        try:
            values = self._session.run(None, {self.input.name: batch})
        except _errors() as error:
            raise BackendError(
                f"ONNX Runtime refused a batch of shape {batch.shape} for input "
                f"'{self.input.name}' {self.input.shape}: {str(error).splitlines()[0][:160]}"
            ) from error
        return dict(zip(self._outputs, values, strict=True))

    def close(self) -> None:
        self._session = None
