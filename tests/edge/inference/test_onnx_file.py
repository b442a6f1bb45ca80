"""A model that takes weights from another file is refused, wherever in it a tensor says so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.base.errors import BackendError, BundleError
from edge.base.files import sha256
from edge.inference.bundle import SHIPPED, load_bundle
from edge.inference.loader import open_backend
from edge.inference.onnx_file import FIELDS, refuse_external_data


def field(number: int, content: bytes | int) -> bytes:
    """One field of protobuf's wire format."""
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(number: int) -> bytes:
    found = b""
    while number > 0x7F:
        found, number = found + bytes([number & 0x7F | 0x80]), number >> 7
    return found + bytes([number])


def entry(key: bytes, value: bytes) -> bytes:
    return field(1, key) + field(2, value)


# Dimension, type, name, and that its values are in /etc/passwd.
INSIDE = field(1, 1) + field(2, 1) + field(8, b"w") + field(9, bytes(4))
OUTSIDE = {
    "location": field(1, 1) + field(8, b"w") + field(14, 1),
    "path": INSIDE + field(13, entry(b"location", b"/etc/passwd")),
    "both": INSIDE + field(13, entry(b"location", b"../w")) + field(14, 1),
}


def ways(kind: str = "model", seen: tuple[str, ...] = ()) -> list[list[int]]:
    """Numbers of the fields on each way from a model to a tensor, through no message three times."""
    if kind == "tensor":
        return [[]]
    found = []
    for number, inner in FIELDS[kind].items():
        if seen.count(inner) < 2:
            found += [[number, *rest] for rest in ways(inner, (*seen, inner))]
    return found


def wrapped(way: list[int], tensor: bytes) -> bytes:
    for number in reversed(way):
        tensor = field(number, tensor)
    return tensor


def judge(folder: Path, content: bytes) -> str:
    path = folder / "model.onnx"
    path.write_bytes(content)
    try:
        refuse_external_data(path)
    except BundleError as error:
        return str(error)
    return ""


def test_a_tensor_outside_is_found_on_every_way_to_one(tmp_path: Path) -> None:
    assert len(ways()) > 100
    for way in ways():
        assert judge(tmp_path, wrapped(way, INSIDE)) == ""
        for said in OUTSIDE.values():
            # Also where another field of the same number stands before and after it.
            model = wrapped(way, INSIDE) + wrapped(way, said) + wrapped(way, INSIDE)
            assert "takes weights from another file" in judge(tmp_path, model), way


def test_the_ways_are_all_that_onnx_knows() -> None:
    onnx = pytest.importorskip("onnx", reason="the node has no onnx; the training set-up has")
    names = {
        "ModelProto": "model", "TrainingInfoProto": "training", "FunctionProto": "function",
        "GraphProto": "graph", "NodeProto": "node", "AttributeProto": "attribute",
        "SparseTensorProto": "sparse", "TensorProto": "tensor",
    }  # fmt: skip

    def leads(kind: Any, seen: tuple[str, ...] = ()) -> bool:
        if kind.name == "TensorProto":
            return True
        return kind.name not in seen and any(
            leads(f.message_type, (*seen, kind.name)) for f in kind.fields if f.message_type
        )

    for name, ours in names.items():
        descriptor = getattr(onnx, name).DESCRIPTOR
        expected = {
            f.number: names[f.message_type.name]
            for f in descriptor.fields
            if f.message_type and leads(f.message_type)
        }
        assert FIELDS.get(ours, {}) == ({} if ours == "tensor" else expected), name


def test_the_shipped_models_are_whole() -> None:
    for path in SHIPPED.glob("*.onnx"):
        refuse_external_data(path)


@given(st.binary(max_size=60) | st.lists(st.sampled_from(ways()), max_size=3).map(
    lambda some: b"".join(wrapped(way, INSIDE) for way in some)))  # fmt: skip
def test_any_bytes_are_a_whole_file_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    said = judge(tmp_path_factory.mktemp("any"), content)
    assert "\n" not in said
    cut = judge(tmp_path_factory.mktemp("cut"), content[:-1])
    assert cut == "" or "whole ONNX file" in cut or "another file" in cut


def test_a_graph_within_graphs_without_end_is_refused(tmp_path: Path) -> None:
    deep = b""
    for _ in range(5000):
        deep = field(1, field(5, field(6, deep)))
    assert "nested deeper" in judge(tmp_path, field(7, deep))


@pytest.mark.parametrize("name", ["int8-cpu.onnx", "renamed.bin"])
def test_a_bundle_whose_model_reads_another_file_is_refused(tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(SHIPPED, tmp_path / "bundle"))
    model = (folder / "int8-cpu.onnx").read_bytes() + wrapped([7, 5], OUTSIDE["path"])
    (folder / name).write_bytes(model)
    data = json.loads((folder / "bundle.json").read_text())
    data["files"]["int8-cpu"] = {"name": name, "sha256": sha256(model)}
    (folder / "bundle.json").write_text(json.dumps(data))
    with pytest.raises(BundleError, match="takes weights from another file"):
        load_bundle(folder)
    with pytest.raises(BackendError, match="takes weights from another file"):
        open_backend("ort", folder / name)
