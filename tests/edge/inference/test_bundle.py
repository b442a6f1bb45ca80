from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.base.errors import BackendError, BundleError, UsageError
from edge.inference.bundle import SHIPPED, load_bundle
from edge.inference.loader import open_backend
from support.paths import ROOT


@pytest.fixture
def bundle_copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SHIPPED, tmp_path / "bundle"))


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "bundle.json"
    data = json.loads(path.read_text())
    data.update(changes)
    path.write_text(json.dumps(data))


def refused(folder: Path) -> str:
    with pytest.raises(BundleError) as caught:
        load_bundle(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_shipped_bundle_passes_its_own_known_answers_in_both_precisions() -> None:
    bundle = load_bundle()
    for precision in ("int8", "fp32"):
        backend = open_backend("ort", bundle.model(precision), 1)
        assert bundle.self_test(backend, precision) < 0.25
        backend.close()


def test_known_answers_tell_a_wrong_network(bundle_copy: Path) -> None:
    bundle = load_bundle(bundle_copy)
    fake = open_backend("fake", bundle.model(), 1)
    with pytest.raises(BundleError, match="answers"):
        bundle.self_test(fake)


def test_a_changed_file_is_refused_by_its_hash(bundle_copy: Path) -> None:
    model = bundle_copy / "int8-cpu.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    assert "int8-cpu.onnx has sha256" in refused(bundle_copy)


def test_a_half_copied_bundle_is_refused(bundle_copy: Path) -> None:
    (bundle_copy / "fp32.onnx").unlink()
    assert "fp32.onnx cannot be read" in refused(bundle_copy)
    (bundle_copy / "bundle.json").write_text('{"schema": "edge.bundle/1", "labels": [')
    assert "is not valid JSON" in refused(bundle_copy)
    (bundle_copy / "bundle.json").unlink()
    assert "bundle.json cannot be read" in refused(bundle_copy)
    assert "cannot be read" in refused(bundle_copy / "absent")


def test_another_schema_a_missing_part_and_impossible_values_are_refused(bundle_copy: Path) -> None:
    original = json.loads((bundle_copy / "bundle.json").read_text())
    edit(bundle_copy, schema="edge.bundle/9")
    assert "has schema 'edge.bundle/9'" in refused(bundle_copy)
    edit(bundle_copy, schema="edge.bundle/1", labels=["glad", "glad"])
    assert "a label appears twice" in refused(bundle_copy)
    edit(bundle_copy, labels=["glad", "other"])
    assert "'other' is reserved" in refused(bundle_copy)
    edit(bundle_copy, labels=original["labels"], crop={**original["crop"], "size": 32})
    assert "differ in size" in refused(bundle_copy)
    edit(bundle_copy, crop={"size": 64})
    assert "'crop.channels'" in refused(bundle_copy)
    files = {"int8-cpu": {"name": "../../etc/passwd", "sha256": "0" * 64}}
    edit(bundle_copy, crop=original["crop"], files=files)
    assert "'files.int8-cpu.name'" in refused(bundle_copy)


def test_offsets_are_a_countings_constants_less_those_in_the_graph(bundle_copy: Path) -> None:
    edit(bundle_copy, schema="edge.bundle/1", counting=None)
    assert not load_bundle(bundle_copy).offsets("expected").any(), "as before there were constants"
    n = len(load_bundle(bundle_copy).labels)
    constants = {"dominant": [1.0] * n, "expected": [0.25] * n}
    counting = {"folded": "dominant", "constants": constants, "fitted": {}}
    edit(bundle_copy, schema="edge.bundle/2", counting=counting)
    bundle = load_bundle(bundle_copy)
    assert bundle.offsets("dominant").tolist() == [0.0] * n
    assert bundle.offsets("expected").tolist() == [-0.75] * n
    edit(bundle_copy, counting={**counting, "folded": None})
    assert load_bundle(bundle_copy).offsets("dominant").tolist() == [1.0] * n


def test_constants_that_are_not_one_a_label_or_not_finite_are_refused(bundle_copy: Path) -> None:
    entry = {"folded": None, "constants": {"dominant": [1.0]}, "fitted": {}}
    edit(bundle_copy, counting=entry)
    assert "'counting' needs a constant a label" in refused(bundle_copy)
    n = len(json.loads((bundle_copy / "bundle.json").read_text())["labels"])
    edit(bundle_copy, counting={**entry, "constants": {"dominant": [float("nan")] * n}})
    assert "finite number" in refused(bundle_copy)
    edit(bundle_copy, counting={**entry, "constants": {}, "folded": "dominant"})
    assert "lacks the constants of dominant" in refused(bundle_copy)


def test_backends_refuse_what_they_cannot_run(tmp_path: Path) -> None:
    broken = tmp_path / "model.onnx"
    broken.write_bytes(b"no model")
    with pytest.raises(BackendError, match="is not a model that ONNX Runtime"):
        open_backend("ort", broken)
    with pytest.raises(UsageError, match="'trt' runs an ONNX file"):
        open_backend("trt", broken)
    with pytest.raises(BackendError, match=r"bundle\.json"):
        open_backend("fake", broken)


def test_an_empty_batch_gives_empty_logits_of_the_same_rank() -> None:
    bundle = load_bundle()
    for choice in ("ort", "fake"):
        backend = open_backend(choice, bundle.model(), 1)
        empty = np.zeros((0, 1, bundle.crop.size, bundle.crop.size), np.float32)
        assert backend.run(empty)["logits"].shape == (0, len(bundle.labels))
        backend.close()


def test_a_batch_of_another_shape_is_an_error_of_ours() -> None:
    bundle = load_bundle()
    backend = open_backend("ort", bundle.model(), 1)
    with pytest.raises(BackendError, match="refused a batch of shape"):
        backend.run(np.zeros((1, 1, 7, 7), np.float32))


def test_batching_changes_no_answer() -> None:
    bundle = load_bundle()
    backend = open_backend("ort", bundle.model(), 1)
    faces = bundle.known_inputs().astype(np.float32)
    together = backend.run(faces)["logits"]
    alone = np.concatenate([backend.run(face[None])["logits"] for face in faces])
    assert np.abs(together - alone).max() < 1e-4


def test_labels_that_do_not_fit_the_graph_are_refused(bundle_copy: Path) -> None:
    labels = json.loads((bundle_copy / "bundle.json").read_text())["labels"]
    edit(bundle_copy, labels=labels[1:])
    with pytest.raises(BundleError, match="'counting' needs a constant a label"):
        load_bundle(bundle_copy)
    edit(bundle_copy, labels=labels[1:], counting=None)
    bundle = load_bundle(bundle_copy)
    with pytest.raises(BundleError, match="7 labels, 8 logits"):
        bundle.self_test(open_backend("ort", bundle.model(), 1))


@pytest.mark.process
def test_onnx_runtime_keeps_nothing_to_report(tmp_path: Path) -> None:
    """Its wheels for Linux report to their maker since 1.29, unless told not to before they load."""
    script = (
        "from edge.inference.loader import open_backend\n"
        "from edge.inference.bundle import load_bundle\n"
        "bundle = load_bundle()\nbundle.self_test(open_backend('ort', bundle.model(), 1))"
    )
    silent = ("CI", "ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")
    env = {k: v for k, v in os.environ.items() if k not in silent}
    done = subprocess.run(
        [sys.executable, "-c", script], env={**env, "HOME": str(tmp_path)}, cwd=ROOT
    )
    assert done.returncode == 0
    assert not list(tmp_path.rglob("*onnxruntime*"))


@pytest.mark.parametrize("point", [[float("nan"), 1.0], [1.0, float("inf")], [1.0], "the second"])
def test_a_crop_that_nobody_can_be_cut_by_is_refused(bundle_copy: Path, point: Any) -> None:
    path = bundle_copy / "bundle.json"
    data = json.loads(path.read_text())
    template = data["crop"]["template"]
    template[0] = template[1] if point == "the second" else point
    path.write_text(json.dumps(data))
    with pytest.raises(BundleError, match=r"'crop.template' must hold five x y pairs"):
        load_bundle(bundle_copy)


def test_brackets_by_thousands_are_one_line(bundle_copy: Path) -> None:
    (bundle_copy / "bundle.json").write_text("[" * 200_000)
    with pytest.raises(BundleError, match="is not valid JSON"):
        load_bundle(bundle_copy)
