"""Everything that needs an NVIDIA device, in one command: `make gpu` (or `pytest -m gpu -s tests/gpu`).

Builds both precisions and the detector, proves them, compares them with ONNX Runtime on varied faces,
and prints latency by batch with its conditions and what the inspector shows of the attention.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.base.errors import BackendError
from edge.detect import open_detector
from edge.inference.backends.trt import TensorRT
from edge.inference.bundle import TENSORRT_ROLES, load_bundle
from edge.inference.loader import engines_folder, open_backend, open_student
from edge.settings import Settings
from export.engine.builder import strongly_typed
from export.engine.to_engine import BuilderApi, as_text, export, this_device

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def api() -> BuilderApi:
    try:
        return this_device()
    except BackendError as error:
        pytest.skip(f"needs an NVIDIA device with TensorRT: {error}")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, detector_file: Path) -> Settings:
    return Settings.model_validate(
        {"runtime": {"engines": str(tmp_path_factory.mktemp("engines")), "backend": "trt"}}
    )


@pytest.fixture(scope="module")
def report(api: BuilderApi, settings: Settings) -> dict[str, Any]:
    import tensorrt

    made = export(load_bundle(), settings, "auto", api, strongly_typed(tensorrt), print)
    print(f"\n{as_text(made)}")
    return made


def varied(count: int) -> np.ndarray:
    """Known inputs, moved and relit at random: (N, C, S, S) float32, 0..255."""
    inputs, rng = load_bundle().known_inputs().astype(np.float32), np.random.default_rng(0)
    faces = inputs[rng.integers(0, len(inputs), count)]
    faces = np.stack([np.roll(f, rng.integers(-6, 7, 2), axis=(1, 2)) for f in faces])
    gain = rng.uniform(0.5, 1.5, (count, 1, 1, 1))
    return np.clip(faces * gain + rng.normal(0, 8, faces.shape), 0, 255).astype(np.float32)


def test_both_precisions_are_built_and_agree_with_onnx_runtime(
    report: dict[str, Any], settings: Settings
) -> None:
    bundle, faces = load_bundle(), varied(512)
    for precision, row in report["engines"].items():
        exact = open_backend("ort", bundle.file(TENSORRT_ROLES[precision]))
        runtime = TensorRT(engines_folder(settings) / row["file"])
        a, b = exact.run(faces)["logits"], runtime.run(faces)["logits"]
        changed = (a.argmax(axis=1) != b.argmax(axis=1)).mean()
        print(
            f"{precision}: TensorRT and ONNX Runtime differ by {np.abs(a - b).max():.3g} in a logit, "
            f"in {100 * changed:.2f} % of {len(faces)} decisions"
        )
        assert changed <= 0.03
        for count in (1, 7, 32, 33):
            alone = runtime.run(faces[:count])["logits"]
            assert np.abs(alone - b[:count]).max() < 0.05, "batch size changes no answer"
        runtime.close()


def test_every_precision_says_what_became_of_the_attention(report: dict[str, Any]) -> None:
    for row in report["engines"].values():
        assert row["attention"]
        assert "cannot be read" not in row["attention"]


def test_the_node_runs_on_what_was_built(report: dict[str, Any], settings: Settings) -> None:
    _, student = open_student(settings)
    detector, opened = open_detector(settings)
    assert (student.backend.name, opened.backend.name) == ("tensorrt", "tensorrt")
    assert student.precision == report["chosen"]
    student.backend.close()
    detector.backend.close()


def test_the_second_export_builds_nothing(
    report: dict[str, Any], api: BuilderApi, settings: Settings
) -> None:
    import tensorrt

    lines: list[str] = []
    export(load_bundle(), settings, "auto", api, strongly_typed(tensorrt), lines.append)
    assert sum("is built and verified" in line for line in lines) == 3
    assert not any("building" in line for line in lines)
