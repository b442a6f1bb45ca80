"""A builder and a device for faults: an "engine" is the ONNX file behind a word of what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge.base.errors import BackendError, DeviceError
from edge.inference.backends import TensorSpec
from edge.inference.engine_cache import Device
from edge.inference.loader import open_backend
from export.engine.builder import Plan
from export.engine.to_engine import BuilderApi

JETSON = Device("Orin", "8.7", "10.3.0", "R36.4.3", 7600, True)


class FakeRuntime:
    """Runs the engine's ONNX file by ONNX Runtime; `bent` adds an error to every output, `lost` loses
    the device."""

    name = "tensorrt"

    def __init__(self, engine: Path) -> None:
        word, _, rest = engine.read_bytes().partition(b"\n")
        if word not in (b"good", b"bent", b"lost"):
            raise BackendError(f"{engine} is not an engine for TensorRT 10.3.0 on this device")
        copy = engine.with_name(f"{engine.stem}.onnx")
        copy.write_bytes(rest)
        self._backend = open_backend("ort", copy, 1)
        copy.unlink()
        self._error, self._lost = 1.0 if word == b"bent" else 0.0, word == b"lost"
        self.input: TensorSpec = self._backend.input

    def run(self, batch: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        if self._lost:
            raise DeviceError("the NVIDIA device is lost to this process")
        return {k: v + self._error for k, v in self._backend.run(batch).items()}

    def inspect(self) -> str:
        return json.dumps({"Layers": []})

    def close(self) -> None:
        self._backend.close()


@dataclass
class FakeBuilder:
    """words: what each build in turn is worth; the last one for all that follow. calls: what was
    asked for."""

    words: list[bytes] = field(default_factory=lambda: [b"good"])
    calls: list[tuple[str, str, bytes]] = field(default_factory=list)

    def __call__(
        self,
        model: Path,
        precision: str,
        profile: object,
        timings: bytes,
        workspace: int,
        say: Callable[[str], None],
    ) -> Plan:
        self.calls.append((model.name, precision, timings))
        word = self.words.pop(0) if len(self.words) > 1 else self.words[0]
        return Plan(word + b"\n" + model.read_bytes(), b"timings", 1.5)


def builder_api(builder: FakeBuilder, device: Device = JETSON) -> BuilderApi:
    return BuilderApi(device, builder, FakeRuntime)
