"""Every message the node publishes, as a model: the contract, its JSON Schema, its bytes.

`edge/delivery/schemas.py` writes the schemas into `edge/schemas/`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, Union

from pydantic import BaseModel, ConfigDict, Field

from edge.base.clock import clock_synced, parse_rfc3339, rfc3339, utc_now
from edge.records import Counting, Reading

PREFIX = "edge/v1"
NODE_PATTERN = r"^[a-z0-9-]+/[a-z0-9-]+/[a-z0-9-]+$"
TIME_PATTERN = r"^\d{4,}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$"


# Why a node's outbox began another log than it had; what each means is in docs/operate.md.
Begun = Literal["recorder-ahead", "other-machine", "incomplete", "damaged"]

# The name that a recorder gives itself; "" of one that knew of none.
RECORDER_PATTERN = r"^[a-z0-9-]{0,32}$"

# Whole numbers that every JSON reader keeps exactly (RFC 8259, section 6).
LARGEST = 2**53 - 1
Number = Annotated[int, Field(ge=0, le=LARGEST)]
Cells = Annotated[dict[Annotated[str, Field(max_length=64)], Number], Field(max_length=64)]


class _Message(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False
    )


class Faces(_Message):
    """People in view at once."""

    mean: float = Field(ge=0, le=1e6, description="average over the seen part of the window")
    max: int = Field(ge=0, le=1_000_000)


class Quality(_Message):
    """How much of the window the counts rest on."""

    seen: float = Field(ge=0, le=1, description="share of the window covered by pictures")
    frames: Number | None = Field(description="pictures analysed; null when suppressed")
    dropped: Number | None = Field(description="due, but skipped to keep up; null when suppressed")
    low_confidence: float | None = Field(description="share of person-time; null when suppressed")
    camera: str


class Counts(_Message):
    """One window of one room. Receivers deduplicate on (node, log, seq)."""

    schema_: Literal["edge.counts/2"] = Field(default="edge.counts/2", alias="schema")
    node: str = Field(pattern=NODE_PATTERN, max_length=200)
    log: str = Field(max_length=64, description="UUID of the node's outbox")
    seq: int = Field(ge=1, le=LARGEST, description="counts up by one within a log")
    start: str = Field(pattern=TIME_PATTERN)
    end: str = Field(pattern=TIME_PATTERN)
    window_seconds: float = Field(gt=0, le=3600)
    time_base: Literal["utc", "file"] = Field(
        description="file: windows follow a file's own time, counted from the run's start"
    )
    clock_synced: bool | None = Field(description="null where the system does not say")
    historical: bool = Field(description="sent more than one window after it closed")
    min_group: int = Field(ge=1, le=1000)
    min_cell: int = Field(ge=1, le=1000)
    counting: Counting | None = Field(
        default=None,
        description="expected: sums of probabilities; dominant: each person for the most probable "
        "class; null from a node that knew the latter alone",
    )
    faces: Union[Faces, str, None] = Field(
        description='"<K" when fewer than min_group were in view at some moment; null when not seen'
    )
    counts: Cells | None = Field(description="people by label; null when suppressed")
    person_seconds: Cells | None
    quality: Quality


class Status(_Message):
    """Retained. The broker itself publishes `lost`, which has neither n nor time."""

    schema_: Literal["edge.status/1"] = Field(default="edge.status/1", alias="schema")
    node: str = Field(pattern=NODE_PATTERN, max_length=200)
    session: str = Field(max_length=64, description="UUID of this start")
    state: Literal["starting", "online", "degraded", "stopped", "lost"]
    reason: str | None = None
    n: Number | None = None
    time: str | None = Field(default=None, pattern=TIME_PATTERN)
    clock_synced: bool | None = None


class Model(_Message):
    """What reads the expressions."""

    bundle_sha256: str
    labels: list[str]
    backend: str
    precision: str
    engine: str | None = Field(description="TensorRT engine in use")
    fallback: str | None = Field(
        default=None, description="why backend auto took ONNX Runtime and not TensorRT"
    )


class PrivacyPolicy(_Message):
    min_group: int
    min_cell: int
    legal_basis: str


class Info(_Message):
    """Retained: what this node is and how it is set."""

    schema_: Literal["edge.info/2"] = Field(default="edge.info/2", alias="schema")
    node: str = Field(pattern=NODE_PATTERN, max_length=200)
    session: str = Field(max_length=64)
    n: Number
    time: str = Field(pattern=TIME_PATTERN)
    clock_synced: bool | None
    versions: dict[str, str]
    model: Model
    detector: dict[str, str]
    camera: str = Field(description="kind of source; never an address")
    window_seconds: float
    counting: Counting | None = Field(default=None, description="as in counts")
    analyse_per_second: float | None = Field(
        default=None, description="pictures looked at a second; null for every one"
    )
    privacy: PrivacyPolicy


class Latency(_Message):
    p50_ms: float
    p95_ms: float


class Health(_Message):
    """How the node does. Holds no figure that moves with one person: stages whose time grows with
    the number of faces are left out, and so are the pictures skipped; frames/s hold those too."""

    schema_: Literal["edge.health/3"] = Field(default="edge.health/3", alias="schema")
    node: str = Field(pattern=NODE_PATTERN, max_length=200)
    session: str = Field(max_length=64)
    n: Number
    time: str = Field(pattern=TIME_PATTERN)
    clock_synced: bool | None
    uptime_seconds: int
    camera: str
    unmoved_faces: bool = Field(
        default=False, description="faces in view do not move, for minutes, and are not counted"
    )
    frames_per_second: int | None = Field(
        description="due by camera.analyse_per_second, those dropped too; null for a file"
    )
    stages: dict[str, Latency]
    backend: str
    fallback: str | None = Field(
        default=None, description="why backend auto took ONNX Runtime and not TensorRT"
    )
    temperature_celsius: float | None
    throttled: bool = Field(description="the kernel slows the board down for heat or power")
    pace: int = Field(description="work taken on: 0 every picture ... 3 every third, at half size")
    power_mode: str | None = Field(description="of a Jetson, as nvpmodel names it")
    memory_mib: int | None
    outbox_pending: Number
    outbox_dropped: Number = Field(
        description="readings lost: too old, too many, not written, or not readable any more"
    )
    outbox_unreadable: Number = Field(
        default=0, description="of those lost, the ones whose bytes had changed on the disk"
    )
    log: str = Field(max_length=64, description="UUID of the node's outbox, as in counts")
    log_begun: Begun | None = Field(
        default=None, description="why that log was begun; null for a node's first one"
    )
    outbox_first: Number = Field(description="seq of that log below which nothing will come")
    outbox_damaged: int = Field(description="1 when a damaged file was set aside since the start")
    recorders_behind: dict[Annotated[str, Field(max_length=32)], Number] = Field(
        default={},
        max_length=16,
        description="of outbox.recorders, who lacks readings that are minutes old, and how many",
    )
    certificate_expires: str | None = Field(
        pattern=TIME_PATTERN, description="the node's own, for the broker; null where it has none"
    )
    update: str | None = Field(
        max_length=300, description="what became of the last release tried; null before the first"
    )


class Ack(_Message):
    """Retained, written by a recorder: everything up to seq of this log is stored, without a gap.

    Several recorders share the topic, and the broker retains the last that spoke; each answers a
    node's `status` anew."""

    schema_: Literal["edge.ack/1"] = Field(default="edge.ack/1", alias="schema")
    node: str = Field(pattern=NODE_PATTERN, max_length=200)
    log: str = Field(max_length=64, description="UUID of the node's outbox")
    seq: Number
    recorder: str = Field(
        default="",
        pattern=RECORDER_PATTERN,
        description="its name, one for all that share a database; empty from an older one",
    )


class Command(_Message):
    """Written by the school to `cmd/{name}`; see `commands.py` for the names. Done once an id."""

    schema_: Literal["edge.cmd/1"] = Field(default="edge.cmd/1", alias="schema")
    node: str = Field(pattern=NODE_PATTERN, max_length=200)
    id: str = Field(pattern=r"^[A-Za-z0-9-]{1,64}$")
    expires: str = Field(pattern=TIME_PATTERN, description="after that it is not done any more")
    arguments: dict[str, float] = {}


class Result(_Message):
    """On `cmd/{name}/result`: what became of a command."""

    schema_: Literal["edge.cmd-result/1"] = Field(default="edge.cmd-result/1", alias="schema")
    node: str = Field(pattern=NODE_PATTERN, max_length=200)
    session: str = Field(max_length=64)
    n: Number
    time: str = Field(pattern=TIME_PATTERN)
    clock_synced: bool | None
    id: str
    name: str
    ok: bool
    text: str


MESSAGES: tuple[type[_Message], ...] = (Counts, Status, Info, Health, Ack, Command, Result)


Kind = TypeVar("Kind", bound=_Message)


def parse(kind: type[Kind], raw: bytes | str, strict: bool = False) -> Kind:
    """Read a message that another release may have written: fields that this one does not know are
    passed over. strict: nothing is converted. Raises ValidationError."""
    return kind.model_validate_json(raw, strict=strict, extra="ignore")


def dumps(payload: dict[str, Any]) -> str:
    """One line of RFC 8259 JSON: no NaN, keys in the model's order."""
    return json.dumps(payload, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def as_dict(message: _Message) -> dict[str, Any]:
    drop_none = isinstance(message, Status)  # the will has neither n nor time
    return message.model_dump(mode="json", by_alias=True, exclude_none=drop_none)


def counts_message(
    reading: Reading,
    node: str,
    min_group: int,
    min_cell: int,
    time_base: Literal["utc", "file"],
    counting: Counting,
) -> dict[str, Any]:
    """A Reading as the content of `counts`, still without log and seq, which the outbox gives."""
    if reading.faces_mean is None:
        faces: dict[str, Any] | str | None = None
    elif reading.suppressed:
        faces = f"<{min_group}"
    else:
        faces = {"mean": reading.faces_mean, "max": reading.faces_max}
    message = Counts(
        node=node,
        log="",
        seq=1,
        start=rfc3339(reading.start),
        end=rfc3339(reading.end),
        window_seconds=round(reading.end - reading.start, 3),
        time_base=time_base,
        clock_synced=clock_synced(),
        historical=False,
        min_group=min_group,
        min_cell=min_cell,
        counting=counting,
        faces=Faces(**faces) if isinstance(faces, dict) else faces,
        counts=reading.counts,
        person_seconds=reading.person_seconds,
        quality=Quality(
            seen=reading.seen,
            frames=reading.frames,
            dropped=reading.dropped,
            low_confidence=reading.low_confidence,
            camera=reading.camera,
        ),
    )
    return as_dict(message)


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One message on its way: the last part of its topic, its content, whether it is retained."""

    kind: str
    payload: dict[str, Any]
    retain: bool

    @property
    def topic(self) -> str:
        """Every message lies under the node that it names."""
        return f"{PREFIX}/{self.payload['node']}/{self.kind}"


def as_sent(payload: dict[str, Any]) -> Outgoing:
    """Make a message of a reading from the outbox as it goes out now, under the name of the node that
    counted it: `historical` when it is more than a window late, which a file's own time never is."""
    age = (utc_now() - parse_rfc3339(payload["end"])).total_seconds()
    late = payload["time_base"] == "utc" and age > payload["window_seconds"]
    return Outgoing("counts", {**payload, "historical": late}, retain=False)


def readable(payload: dict[str, Any]) -> Outgoing | None:
    """Make a message as `as_sent`; None for what came off a disk and is no reading, whatever its
    checksum says."""
    try:
        message = as_sent(payload)
        dumps(message.payload)
        return message if re.match(NODE_PATTERN, payload["node"]) else None
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError):
        return None


def schema_of(message: type[_Message]) -> dict[str, Any]:
    """The JSON Schema 2020-12 of a message."""
    schema = message.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
