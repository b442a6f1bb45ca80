"""Built TensorRT engines on disk: found by everything that matters, never served unverified.

ENGINES/KEY.engine   what the builder wrote
ENGINES/KEY.json     the sidecar: what is inside, its sha256, that it passed its self-test; an engine
                     without one is not served
ENGINES/set-aside/   engines that disagreed, were cut or would not load, each with a .reason

KEY is a hash of the ONNX file, the TensorRT version, the device, the precision and the profile: an
engine is good for just these.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edge.base.errors import BackendError
from edge.base.files import file_lock, sha256, write_atomically

SCHEMA = "edge.engine/1"
# Counts up when the builder's settings change in a way that makes older engines wrong to use.
BUILDER = 1
# Shapes of an engine's one input: smallest, usual and largest.
Profile = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
FACES = (1, 8, 32)  # smallest, usual and largest batch of the student
CHOSEN_AT = str(FACES[1])


@dataclass(frozen=True, slots=True)
class Device:
    """What an engine is bound to, and what a builder must know. memory_mib: of the whole device;
    shared: memory is the processor's own, as on a Jetson."""

    name: str
    compute_capability: str
    tensorrt: str
    l4t: str
    memory_mib: int
    shared: bool


@dataclass(frozen=True, slots=True)
class Facts:
    """All that an engine depends on."""

    onnx_sha256: str
    precision: str
    profile: Profile
    tensorrt: str
    compute_capability: str
    device: str
    l4t: str
    builder: int = BUILDER

    @property
    def key(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:24]


def facts_of(
    model: Path,
    precision: str,
    profile: Profile,
    device: Device,
) -> Facts:
    """Collect what an engine of `model` (an ONNX file) for `device` depends on; raises OSError."""
    return Facts(
        onnx_sha256=sha256(model.read_bytes()),
        precision=precision,
        profile=profile,
        tensorrt=device.tensorrt,
        compute_capability=device.compute_capability,
        device=device.name,
        l4t=device.l4t,
    )


class Latency(BaseModel):
    """Milliseconds for one batch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    p50_ms: float
    p95_ms: float


class Sidecar(BaseModel):
    """KEY.json. answer_error: largest difference of a logit to the known answers; attention and
    convolutions: what the engine inspector shows of them, "" in a sidecar of 0.1.0; latency by batch,
    empty where it was not measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_: str = Field(default=SCHEMA, alias="schema")
    facts: dict[str, Any]
    bytes: int = Field(gt=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    answer_error: float
    build_seconds: float
    workspace_mib: int
    attention: str
    convolutions: str = ""
    latency: dict[str, Latency] = {}


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine that may be served."""

    path: Path
    sidecar: Sidecar

    @property
    def precision(self) -> str:
        return str(self.sidecar.facts["precision"])


def engine_file(folder: Path, facts: Facts) -> Path:
    """Return where the engine for these facts is, once it is built."""
    return folder / f"{facts.key}.engine"


def find(folder: Path, facts: Facts) -> Engine | None:
    """Return the verified engine for these facts, or None; a damaged one is quarantined."""
    path = engine_file(folder, facts)
    mark = path.with_suffix(".json")
    try:
        sidecar = Sidecar.model_validate_json(mark.read_bytes())
        plan = path.read_bytes()
    except FileNotFoundError:
        return None
    except ValidationError:
        quarantine(path, "its sidecar cannot be read")
        return None
    if sidecar.schema_ != SCHEMA:
        quarantine(path, f"its sidecar has schema {sidecar.schema_}")
        return None
    if len(plan) != sidecar.bytes or sha256(plan) != sidecar.sha256:
        quarantine(path, f"{len(plan)} bytes that are not those that were verified")
        return None
    return Engine(path, sidecar)


def write_sidecar(path: Path, sidecar: Sidecar) -> Engine:
    """Make an engine servable: from the moment that its sidecar is there, the node finds it."""
    text = json.dumps(sidecar.model_dump(by_alias=True), indent=1) + "\n"
    write_atomically(path.with_suffix(".json"), text.encode())
    return Engine(path, sidecar)


def quarantine(path: Path, reason: str) -> Path:
    """Move an engine to set-aside/, its sidecar first, so that it is never found while it moves.

    Returns where the engine is now."""
    folder = path.parent / "set-aside"
    folder.mkdir(parents=True, exist_ok=True)
    number = sum(1 for _ in folder.glob(f"{path.stem}-*.reason"))
    away = folder / f"{path.stem}-{number}"
    write_atomically(away.with_suffix(".reason"), f"{reason}\n".encode())
    for suffix in (".json", ".engine"):
        source = path.with_suffix(suffix)
        if source.exists():
            os.replace(source, away.with_suffix(suffix))
    return away.with_suffix(".engine")


def build_lock(folder: Path) -> AbstractContextManager[bool]:
    """Hold the folder's one place for a builder; yields whether another one had to be waited for."""
    return file_lock(folder / ".lock")


def choose(engines: Sequence[Engine]) -> Engine:
    """Return the fastest engine at the usual batch; INT8 where nothing was measured.

    Raises BackendError where there is none."""
    if not engines:
        raise BackendError("no engine is built for this device; run export-engine first")

    def cost(engine: Engine) -> tuple[float, bool]:
        latency = engine.sidecar.latency.get(CHOSEN_AT)
        return (latency.p50_ms if latency else float("inf"), engine.precision != "int8")

    return min(engines, key=cost)
