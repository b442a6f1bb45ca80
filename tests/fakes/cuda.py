"""TensorRT and the CUDA driver as far as our backend touches them, in Python: a "plan" is JSON that
names an ONNX file, "device memory" is an array elsewhere. For the order of calls, copies and faults;
that the real bindings have these names is another test (tests/export/engine/test_tensorrt.py).
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from edge.base.errors import BackendError
from edge.inference.backends.cuda import Buffer, DeviceFacts
from edge.inference.loader import open_backend


class FakeCuda:
    """shared: as a Jetson, the device reads the host's memory. Every call is noted with its thread.

    fail: a call that does not succeed, as long as it is named here. With "lost", an illegal address of
    the next kernel: from then on every call that can answer repeats it, as a CUDA context does."""

    def __init__(self, shared: bool = False, fail: str = "") -> None:
        self.shared, self.fail, self.lost = shared, fail, False
        self.calls: list[tuple[str, int]] = []
        self.memory: dict[int, np.ndarray] = {}
        self.stream = 7

    def _note(self, name: str) -> None:
        self.calls.append((name, threading.get_ident()))
        self.lost |= (name, self.fail) == ("execute", "lost")
        if self.fail == name or (self.lost and name not in ("execute", "leave")):
            raise BackendError("the NVIDIA driver answers CUDA_ERROR_ILLEGAL_ADDRESS")

    def facts(self) -> DeviceFacts:
        return DeviceFacts("Orin", "8.7", 7600, self.shared)

    def enter(self) -> None:
        self._note("enter")

    def buffer(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Buffer:
        self._note("buffer")
        host = np.full(shape, np.nan, dtype)
        address = 1000 * (len(self.memory) + 1)
        self.memory[address] = host if self.shared else np.full(shape, np.nan, dtype)
        return Buffer(host, address, self.shared)

    def upload(self, buffer: Buffer, count: int) -> None:
        self._note("upload")
        if not buffer.mapped:
            flat = self.memory[buffer.address].reshape(-1).view(np.uint8)
            flat[:count] = buffer.host.reshape(-1).view(np.uint8)[:count]

    def download(self, buffer: Buffer, count: int) -> None:
        self._note("download")
        if not buffer.mapped:
            flat = buffer.host.reshape(-1).view(np.uint8)
            flat[:count] = self.memory[buffer.address].reshape(-1).view(np.uint8)[:count]

    def wait(self) -> None:
        self._note("wait")

    def leave(self) -> None:
        self._note("leave")


def plan(model: Path, largest: int = 4, inputs: int = 1, bent: float = 0.0) -> bytes:
    """bent: added to every output."""
    facts = {"model": str(model), "largest": largest, "inputs": inputs, "bent": bent}
    return json.dumps(facts).encode()


def fake_tensorrt(cuda: FakeCuda) -> ModuleType:
    """The module, over the device memory of `cuda`."""
    trt = ModuleType("tensorrt")

    class Engine:
        def __init__(self, facts: dict[str, Any]) -> None:
            self.facts = facts
            self.backend = open_backend("ort", Path(facts["model"]), 1)
            sides = [-1 if side is None else side for side in self.backend.input.shape]
            self.shapes: dict[str, tuple[int, ...]] = {"faces": tuple(sides), "logits": (-1, 8)}
            self.names = list(self.shapes) * 1
            self.modes = {"faces": "in", "logits": "out"}
            if facts["inputs"] == 2:
                self.names.append("more")
                self.modes["more"] = "in"

        num_io_tensors = property(lambda self: len(self.names))

        def get_tensor_name(self, index: int) -> str:
            return self.names[index]

        def get_tensor_mode(self, name: str) -> str:
            return self.modes[name]

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return self.shapes[name]

        def get_tensor_dtype(self, name: str) -> str:
            return "float32"

        def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
            return [(n, *self.shapes[name][1:]) for n in (1, 2, self.facts["largest"])]

        def create_execution_context(self) -> Any:
            return None if cuda.fail == "context" or cuda.lost else Context(self)

        def create_engine_inspector(self) -> Any:
            return Inspector()

    class Inspector:
        def get_engine_information(self, form: str) -> str:
            return json.dumps({"Layers": [form]})

    class Context:
        def __init__(self, engine: Engine) -> None:
            self.engine, self.addresses = engine, dict[str, int]()
            self.shape: tuple[int, ...] = ()

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            self.shape = tuple(shape)
            return True

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return (self.shape[0], 8)

        def set_tensor_address(self, name: str, address: int) -> bool:
            self.addresses[name] = address
            return True

        def execute_async_v3(self, stream: int) -> bool:
            if cuda.fail == "execute":
                return False
            cuda._note("execute")
            assert stream == cuda.stream
            faces = cuda.memory[self.addresses["faces"]][: self.shape[0]]
            logits = self.engine.backend.run(np.array(faces))["logits"] + self.engine.facts["bent"]
            cuda.memory[self.addresses["logits"]][: self.shape[0]] = logits
            return True

    class Runtime:
        def __init__(self, logger: object) -> None:
            pass

        def deserialize_cuda_engine(self, data: bytes) -> Any:
            try:
                return Engine(json.loads(data))
            except ValueError:
                return None

    class Logger:
        ERROR = 1

        def __init__(self, level: int) -> None:
            pass

    class TensorIOMode:
        INPUT = "in"

    class LayerInformationFormat:
        JSON = "json"

    for item in (Runtime, Logger, TensorIOMode, LayerInformationFormat):
        setattr(trt, item.__name__, item)
    trt.__dict__.update(__version__="10.3.0", nptype=lambda name: np.dtype(name))
    return trt
