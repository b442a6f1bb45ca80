"""The model bundle: a folder that `export` leaves and the node reads. Labels and crop are data."""

from __future__ import annotations

import json
import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edge.base.errors import BundleError
from edge.base.files import sha256, sha256_of
from edge.inference.backends import Backend
from edge.inference.onnx_file import refuse_external_data
from edge.records import OTHER, UNCLASSIFIED, Counting

SCHEMA = "edge.bundle/2"
# Version 1 had no `counting`: its graph's logits are as they were learned.
READ = (SCHEMA, "edge.bundle/1")
SHIPPED = Path(__file__).parents[1] / "models"
# The precisions of each runtime, best first, and the file's role in bundle.json.
ROLES = {"int8": "int8-cpu", "fp32": "fp32"}
TENSORRT_ROLES = {"int8": "int8-trt", "fp16": "fp16-trt"}
ANSWER_TOLERANCE = 0.25
MOST_LABELS = 62  # with the two below, the columns of a reading
RESERVED = frozenset({UNCLASSIFIED, OTHER})  # columns of a reading that are not classes


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class FileEntry(_Part):
    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class InputEntry(_Part):
    """What the graph takes: float32 (N, channels, size, size), values as in the picture."""

    name: str
    size: int = Field(ge=8, le=1024)
    channels: int = Field(ge=1, le=3)
    range: list[float] = Field(min_length=2, max_length=2)
    layout: str = Field(pattern="^NCHW$")
    colour: str = Field(pattern="^(grey|bgr)$")


class CropEntry(_Part):
    size: int = Field(ge=8, le=1024)
    channels: int = Field(ge=1, le=3)
    template: list[list[float]] = Field(min_length=5, max_length=5)


class AnswerEntry(_Part):
    """Known answers: the file holds `faces` (N, C, S, S) uint8; logits by role, (N, K)."""

    inputs: FileEntry
    logits: dict[str, list[list[float]]]


class CountingEntry(_Part):
    """Constants on the logits for each way of counting, one a label, and whose lie in the graph's bias
    by now; fitted: by which method, on which data."""

    folded: Counting | None
    constants: dict[Counting, list[Annotated[float, Field(allow_inf_nan=False)]]]
    fitted: dict[str, Any]


class BundleFile(_Part):
    """bundle.json."""

    schema_: str = Field(alias="schema")
    labels: list[Annotated[str, Field(min_length=1, max_length=64)]] = Field(
        min_length=2, max_length=MOST_LABELS
    )
    input: InputEntry
    crop: CropEntry
    files: dict[str, FileEntry]
    known_answers: AnswerEntry
    counting: CountingEntry | None = None
    scores: list[dict[str, Any]]
    provenance: dict[str, Any]


@dataclass(frozen=True, slots=True)
class CropSpec:
    """Where the five landmarks land, in pixels of a size x size picture; channels 1 is grey, 3 BGR."""

    size: int
    channels: int
    template: tuple[tuple[float, float], ...]

    def as_dict(self) -> dict[str, object]:
        return {
            "size": self.size,
            "channels": self.channels,
            "template": [list(point) for point in self.template],
        }


@dataclass(frozen=True, slots=True)
class Bundle:
    """A checked bundle. `sha256` is bundle.json's own, which names all other hashes."""

    folder: Path
    description: BundleFile
    sha256: str

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.description.labels)

    @property
    def crop(self) -> CropSpec:
        entry = self.description.crop
        points = tuple((float(x), float(y)) for x, y in entry.template)
        return CropSpec(size=entry.size, channels=entry.channels, template=points)

    def offsets(self, counting: Counting) -> NDArray[np.float32]:
        """Return what a way of counting adds to the graph's logits, (K,) float32: its constants less
        those that the graph holds; zeros in a bundle without constants."""
        entry = self.description.counting
        row = entry.constants.get(counting) if entry else None
        wanted = np.zeros(len(self.labels)) if row is None else np.asarray(row)
        return np.asarray(wanted - self.folded, dtype=np.float32)

    @property
    def folded(self) -> NDArray[np.float64]:
        """The constants that the graph's bias holds, (K,): the logits less these are as learned."""
        entry = self.description.counting
        if entry is None or entry.folded is None:
            return np.zeros(len(self.labels))
        return np.asarray(entry.constants[entry.folded], dtype=np.float64)

    def model(self, precision: str = "int8") -> Path:
        """Return ONNX Runtime's file of a precision; raises BundleError where the bundle has none."""
        return self.file(ROLES[precision])

    def file(self, role: str) -> Path:
        entry = self.description.files.get(role)
        if entry is None:
            raise BundleError(f"{self.folder} has no file for the role '{role}'; export it again")
        return self.folder / entry.name

    def known_inputs(self) -> NDArray[np.uint8]:
        """Return (N, C, S, S) uint8; raises BundleError."""
        path = self.folder / self.description.known_answers.inputs.name
        try:
            return np.asarray(np.load(path, allow_pickle=False), dtype=np.uint8)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise BundleError(
                f"{path} holds no array ({error}); export the bundle again"
            ) from error

    def answer_error(self, backend: Backend, precision: str = "int8") -> float:
        """Return the largest difference between the backend's logits and the stored ones.

        Raises BundleError where there are not as many logits as labels."""
        roles = TENSORRT_ROLES if backend.name == "tensorrt" else ROLES
        rows = self.description.known_answers.logits.get(roles[precision], [])
        if len({len(row) for row in rows}) != 1:
            raise BundleError(f"{self.folder}: known answers of unequal length; export it again")
        stored = np.asarray(rows, dtype=np.float64)
        logits = backend.run(self.known_inputs().astype(np.float32))["logits"]
        if logits.shape != stored.shape or stored.shape[1] != len(self.labels):
            raise BundleError(
                f"{self.folder}: {len(self.labels)} labels, {logits.shape[-1]} logits, known answers "
                f"of shape {stored.shape}; export the bundle again"
            )
        return float(np.abs(logits - stored).max())

    def self_test(self, backend: Backend, precision: str = "int8") -> float:
        """Return answer_error; raises BundleError where it is above ANSWER_TOLERANCE."""
        error = self.answer_error(backend, precision)
        if not error <= ANSWER_TOLERANCE:  # also refuses NaN
            raise BundleError(
                f"{backend.name} answers {self.folder} {precision} wrongly (off by {error:.3g} in a "
                f"logit, {ANSWER_TOLERANCE} allowed); reinstall the runtime or the bundle"
            )
        return error


def _check_file(folder: Path, entry: FileEntry) -> None:
    path = folder / entry.name
    try:
        digest = sha256_of(path)
    except OSError as error:
        raise BundleError(
            f"bundle {folder}: {entry.name} cannot be read ({error.strerror}); copy it again whole"
        ) from error
    if digest != entry.sha256:
        raise BundleError(
            f"bundle {folder}: {entry.name} has sha256 {digest[:12]}..., bundle.json says "
            f"{entry.sha256[:12]}...; copy the bundle again whole"
        )


def load_bundle(folder: Path | None = None) -> Bundle:
    """Read and check a bundle (default: the shipped one). Raises BundleError in one line."""
    folder = folder or SHIPPED
    path = folder / "bundle.json"
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise BundleError(
            f"{path} cannot be read ({error.strerror}); give the folder that export-model wrote"
        ) from error
    try:
        data = json.loads(raw)
        if isinstance(data, dict) and data.get("schema") not in READ:
            raise BundleError(
                f"{path} has schema {data.get('schema')!r}, this version reads '{SCHEMA}'; "
                f"export it again with this version"
            )
        description = BundleFile.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise BundleError(f"{path}: '{place}' {first['msg'].lower()}; export it again") from error
    except (ValueError, RecursionError) as error:
        raise BundleError(
            f"{path} is not valid JSON ({str(error)[:80]}); copy it again whole"
        ) from error
    crop, model_input = description.crop, description.input
    if (crop.size, crop.channels) != (model_input.size, model_input.channels):
        raise BundleError(f"{path}: crop and input differ in size or channels; export it again")
    if len(set(description.labels)) != len(description.labels):
        raise BundleError(f"{path}: a label appears twice; export it again")
    if reserved := RESERVED & set(description.labels):
        raise BundleError(f"{path}: label {sorted(reserved)[0]!r} is reserved; rename the class")
    if (c := description.counting) is not None:
        if any(len(row) != len(description.labels) for row in c.constants.values()):
            raise BundleError(f"{path}: 'counting' needs a constant a label; export it again")
        if c.folded is not None and c.folded not in c.constants:
            raise BundleError(
                f"{path}: 'counting' lacks the constants of {c.folded}; export it again"
            )
    # Python's JSON knows NaN. By such points, or by one point five times, each crop is of one colour,
    # and everybody is counted alike: the known answers begin behind the crop, and would not tell.
    points = crop.template
    pairs = all(len(point) == 2 and all(map(math.isfinite, point)) for point in points)
    if not pairs or len({tuple(point) for point in points}) < 5:
        raise BundleError(
            f"{path}: 'crop.template' must hold five x y pairs, all different; export it again"
        )
    for entry in [*description.files.values(), description.known_answers.inputs]:
        _check_file(folder, entry)
    for role, entry in description.files.items():
        # bundle.json has no hash of what a model would read besides itself.
        if role in (*ROLES.values(), *TENSORRT_ROLES.values()):
            refuse_external_data(folder / entry.name)
    return Bundle(folder=folder, description=description, sha256=sha256(raw))
