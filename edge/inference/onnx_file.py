"""What an ONNX file may not do: take its weights from another file.

ONNX lets a tensor name a file beside the model, or anywhere, that holds its values (`external_data`).
That file has no hash in bundle.json, and its path may leave the folder. The kit's models are whole,
so a model that names one is refused before any runtime reads it. The node has no `onnx` package: only
the few fields on the way to each tensor are read here, of protobuf's wire format. Every part of
onnx.proto (1.23) that can hold a tensor is in FIELDS.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from edge.base.errors import BundleError

MOST_DEPTH = 64  # of graphs within attributes within nodes
# message -> its fields that hold a message with a tensor somewhere in it.
FIELDS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
EXTERNAL_DATA, DATA_LOCATION = 13, 14  # of a tensor; the second one is 0 for values in the file


def refuse_external_data(path: Path) -> None:
    """Raise BundleError where a tensor of an ONNX file lies outside of it, or where the file is none.

    Raises OSError where it cannot be read."""
    try:
        _look(memoryview(path.read_bytes()), "model", 0)
    except (IndexError, ValueError) as error:
        raise BundleError(
            f"{path.name} is not a whole ONNX file ({error}); copy it again whole"
        ) from error
    except _External:
        raise BundleError(
            f"{path.name} takes weights from another file, which has no hash here; export it with the "
            f"weights inside"
        ) from None


class _External(Exception):
    """A tensor names a file."""


def _look(message: memoryview, kind: str, depth: int) -> None:
    if depth > MOST_DEPTH:
        raise ValueError(f"nested deeper than {MOST_DEPTH}")
    for field, value in _fields(message):
        if kind == "tensor":
            if field == EXTERNAL_DATA or (field == DATA_LOCATION and value != 0):
                raise _External
        elif (inner := FIELDS[kind].get(field)) is not None:
            if not isinstance(value, memoryview):
                raise ValueError(f"field {field} of a {kind} is no message")
            _look(value, inner, depth + 1)


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield each field's number and content, bytes or a whole number; raises ValueError, IndexError."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        wire = tag & 7
        value: int | memoryview
        if wire == 0:
            value, at = _varint(message, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
            value, at = message[at : at + size], at + size
        elif wire == 2:
            size, at = _varint(message, at)
            value, at = message[at : at + size], at + size
        else:
            # Groups, which no writer has made since protobuf 2, could hide a field.
            raise ValueError(f"wire type {wire}")
        if at > len(message):
            raise ValueError("it ends too soon")
        yield tag >> 3, value


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Read a whole number of at most 64 bits; return it and where it ends."""
    number = 0
    for place in range(10):
        byte = message[at + place]
        number |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return number & (2**64 - 1), at + place + 1
    raise ValueError("a number of more than ten bytes")
