"""What the ONNX files say of themselves, and that a stamp changes nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edge.base.files import sha256_of
from edge.inference.bundle import SHIPPED, load_bundle
from edge.inference.loader import open_backend
from export import metadata
from export.metadata import COVERS, content_sha256, stamp, without_metadata
from support.notes import notes


def description(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "bundle.json").read_text()))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """The shipped bundle with files that say nothing."""
    folder = tmp_path / "bundle"
    shutil.copytree(SHIPPED, folder)
    content = description(folder)
    for entry in content["files"].values():
        path = folder / entry["name"]
        path.write_bytes(without_metadata(path))
        entry["sha256"] = sha256_of(path)
    content["provenance"].pop("content_sha256", None)
    (folder / "bundle.json").write_text(json.dumps(content))
    return folder


def test_the_shipped_files_say_what_the_shipped_bundle_says() -> None:
    told, content = description(SHIPPED), content_sha256(SHIPPED, description(SHIPPED))
    assert told["provenance"]["content_sha256"] == content
    for role, entry in told["files"].items():
        found = notes(SHIPPED / entry["name"])
        assert json.loads(found["edge.labels"]) == told["labels"]
        assert json.loads(found["edge.crop"]) == told["crop"]
        assert json.loads(found["edge.input"]) == told["input"]
        assert found["model_license"] == told["provenance"]["weights_licence"]
        assert (found["edge.role"], found["edge.content_covers"]) == (role, COVERS)
        assert found["edge.content_sha256"] == content


def test_a_stamp_adds_to_a_file_and_changes_nothing_in_it(bundle: Path) -> None:
    before = {path.name: path.read_bytes() for path in bundle.glob("*.onnx")}
    faces = np.load(bundle / "known-inputs.npy").astype(np.float32)
    backend = open_backend("ort", bundle / "int8-cpu.onnx", 1)
    logits = backend.run(faces)["logits"]
    assert metadata.main([str(bundle)]) == 0
    load_bundle(bundle)
    for name, content in before.items():
        after = (bundle / name).read_bytes()
        assert after.startswith(content), name
        assert len(after) > len(content)
        onnx.checker.check_model(onnx.load(str(bundle / name)))
    stamped = open_backend("ort", bundle / "int8-cpu.onnx", 1)
    assert np.array_equal(stamped.run(faces)["logits"], logits)
    # Stamped again, nothing changes.
    first = {path.name: path.read_bytes() for path in bundle.iterdir()}
    assert metadata.main([str(bundle)]) == 0
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == first
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"], "no draft left"


def test_the_content_hash_is_of_what_is_computed_and_of_nothing_else(bundle: Path) -> None:
    told = description(bundle)
    plain = content_sha256(bundle, told)
    stamp(bundle, told)
    assert content_sha256(bundle, told) == plain
    assert content_sha256(bundle, told | {"scores": [], "schema": "another"}) == plain
    assert content_sha256(bundle, told | {"labels": told["labels"][::-1]}) != plain
    path = bundle / "int8-cpu.onnx"
    model = onnx.load(str(path))
    bias = next(t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT)
    values = onnx.numpy_helper.to_array(bias) + np.float32(1)
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
    onnx.save(model, str(path))
    assert content_sha256(bundle, told) != plain


def test_what_is_not_what_its_bundle_says_is_not_stamped(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = bundle / "fp32.onnx"
    path.write_bytes(path.read_bytes() + b"\0")
    before = (bundle / "bundle.json").read_bytes()
    assert metadata.main([str(bundle)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "fp32.onnx" in line
    assert (bundle / "bundle.json").read_bytes() == before
    assert metadata.main([str(bundle.parent / "nowhere")]) == 1
