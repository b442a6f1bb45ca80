"""export-engine and the node's side of it with a fake builder: cache, key, quarantine, choice."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge.base.errors import BackendError, DeviceError
from edge.inference import engine_cache as cache
from edge.inference.bundle import ANSWER_TOLERANCE, SHIPPED, load_bundle
from edge.inference.engine_cache import Engine, Facts, Latency, Sidecar, build_lock, choose, find
from edge.inference.loader import open_backend
from edge.settings import Settings
from export.engine.attention import Attention, fusion_report
from export.engine.builder import workspace_mib
from export.engine.to_engine import Network, as_text, export, make, student_networks
from fakes.device import JETSON, FakeBuilder, FakeRuntime, builder_api
from support.command import Done

PROFILE = ((1, 1, 64, 64), (8, 1, 64, 64), (32, 1, 64, 64))
FACTS = Facts("0" * 64, "int8", PROFILE, "10.3.0", "8.7", "Orin", "R36.4.3")


def quiet(line: str) -> None:
    pass


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake device's latency is nobody's figure."""
    monkeypatch.setattr("export.engine.to_engine.LATENCY_ROUNDS", 2)
    monkeypatch.setattr("export.engine.to_engine.WARM_UP", 0)


@pytest.fixture
def settings(tmp_path: Path, detector_file: Path) -> Settings:
    return Settings.model_validate(
        {
            "runtime": {"engines": str(tmp_path / "engines")},
            "detector": {"width": 320, "height": 256},
        }
    )


@pytest.fixture
def student() -> Network:
    return student_networks(load_bundle(), "int8", quiet)["int8"]


def test_the_key_holds_everything_that_an_engine_depends_on() -> None:
    changes = {
        "onnx_sha256": "1" * 64,
        "precision": "fp16",
        "profile": ((1, 1, 64, 64), (8, 1, 64, 64), (64, 1, 64, 64)),
        "tensorrt": "10.3.1",
        "compute_capability": "8.9",
        "device": "Orin Nano",
        "l4t": "R36.4.4",
        "builder": cache.BUILDER + 1,
    }
    assert set(changes) == set(Facts.__dataclass_fields__)
    keys = {replace(FACTS, **{name: value}).key for name, value in changes.items()}
    assert len(keys | {FACTS.key}) == len(changes) + 1
    assert replace(FACTS).key == FACTS.key


def off_on_this_machine() -> float:
    """How far ONNX Runtime itself, which plays the engine here, is from the shipped answers: they were
    computed on another processor, whose INT8 kernels round otherwise."""
    bundle = load_bundle()
    backend = open_backend("ort", bundle.file("int8-trt"), 1)
    logits = backend.run(bundle.known_inputs().astype(np.float32))["logits"]
    stored = np.asarray(bundle.description.known_answers.logits["int8-trt"])
    return float(np.abs(logits - stored).max())


def test_an_engine_is_built_once_and_proven(tmp_path: Path, student: Network) -> None:
    builder = FakeBuilder()
    engine, built = make(builder_api(builder), tmp_path, student, "int8", quiet)
    assert built
    assert engine.sidecar.answer_error == pytest.approx(off_on_this_machine(), abs=1e-3)
    assert engine.sidecar.answer_error < ANSWER_TOLERANCE
    again, built = make(builder_api(builder), tmp_path, student, "int8", quiet)
    assert not built
    assert again == engine
    assert len(builder.calls) == 1
    # Another TensorRT, another board: another engine, with no timings of the first.
    newer = replace(JETSON, tensorrt="10.13.0")
    make(builder_api(builder, newer), tmp_path, student, "int8", quiet)
    assert [timings for _, _, timings in builder.calls] == [b"", b""]
    assert len(list(tmp_path.glob("*.engine"))) == 2


def test_timings_of_one_build_help_the_next_on_the_same_device(tmp_path: Path) -> None:
    builder = FakeBuilder()
    for precision, network in student_networks(load_bundle(), "auto", quiet).items():
        make(builder_api(builder), tmp_path, network, precision, quiet)
    assert [timings for _, _, timings in builder.calls] == [b"", b"timings"]


@pytest.mark.parametrize("word", [b"bent", b"cut"], ids=["disagrees", "does not load"])
def test_a_wrong_engine_is_set_aside_and_built_again(
    tmp_path: Path, student: Network, word: bytes
) -> None:
    builder, lines = FakeBuilder([word, b"good"]), list[str]()
    engine, _ = make(builder_api(builder), tmp_path, student, "int8", lines.append)
    assert FakeRuntime(engine.path).run(np.zeros((1, 1, 64, 64), np.float32))
    [aside] = (tmp_path / "set-aside").glob("*.engine")
    assert aside.read_bytes().startswith(word)
    reason = aside.with_suffix(".reason").read_text()
    assert ("answers" if word == b"bent" else "is not an engine") in reason
    assert any("set aside" in line for line in lines)


def test_two_wrong_engines_are_an_error_and_none_is_served(
    tmp_path: Path, student: Network
) -> None:
    with pytest.raises(BackendError, match="2 engines were built and both are wrong"):
        make(builder_api(FakeBuilder([b"bent"])), tmp_path, student, "int8", quiet)
    assert not list(tmp_path.glob("*.engine"))
    assert not list(tmp_path.glob("*.json"))
    assert len(list((tmp_path / "set-aside").glob("*.engine"))) == 2


def test_a_lost_device_sets_one_engine_aside_and_ends_the_build(
    tmp_path: Path, student: Network
) -> None:
    """In this process a second engine would fail too, however good it is."""
    builder = FakeBuilder([b"lost", b"good"])
    with pytest.raises(DeviceError, match="lost to this process"):
        make(builder_api(builder), tmp_path, student, "int8", quiet)
    assert len(builder.calls) == 1
    assert len(list((tmp_path / "set-aside").glob("*.engine"))) == 1
    _, built = make(builder_api(builder), tmp_path, student, "int8", quiet)
    assert built, "the next start builds it"


@pytest.mark.parametrize("damage", ["cut", "empty", "other byte", "sidecar cut", "old schema"])
def test_a_damaged_engine_is_set_aside_and_built_again(
    tmp_path: Path, student: Network, damage: str
) -> None:
    builder = FakeBuilder()
    engine, _ = make(builder_api(builder), tmp_path, student, "int8", quiet)
    plan, mark = engine.path.read_bytes(), engine.path.with_suffix(".json")
    if damage == "sidecar cut":
        mark.write_bytes(mark.read_bytes()[:100])
    elif damage == "old schema":
        mark.write_text(mark.read_text().replace("edge.engine/1", "edge.engine/0"))
    else:
        new = {"cut": plan[: len(plan) // 2], "empty": b"", "other byte": plan[:-1] + b"x"}
        engine.path.write_bytes(new[damage])
    again, built = make(builder_api(builder), tmp_path, student, "int8", quiet)
    assert built
    assert again.path.read_bytes() == plan
    assert len(list((tmp_path / "set-aside").glob("*.reason"))) == 1


def test_an_engine_without_its_sidecar_is_not_served(tmp_path: Path, student: Network) -> None:
    """Killed between the plan and its proof: built again."""
    builder = FakeBuilder()
    engine, _ = make(builder_api(builder), tmp_path, student, "int8", quiet)
    engine.path.with_suffix(".json").unlink()
    _, built = make(builder_api(builder), tmp_path, student, "int8", quiet)
    assert built


def test_a_full_disk_is_an_error_that_leaves_nothing_half_written(
    tmp_path: Path, student: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        make(builder_api(FakeBuilder()), tmp_path, student, "int8", quiet)
    assert not list(tmp_path.glob("*.engine"))
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def hold(folder: Path, seconds: float) -> None:
    with build_lock(folder):
        (folder / "held").touch()
        time.sleep(seconds)


@pytest.mark.process
def test_two_processes_build_one_after_the_other(tmp_path: Path) -> None:
    other = multiprocessing.get_context("fork").Process(target=hold, args=(tmp_path, 0.5))
    other.start()
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    with build_lock(tmp_path) as waited:
        assert waited
        assert not other.is_alive() or other.join() is None
    with build_lock(tmp_path) as waited:
        assert not waited


def engine(precision: str, p50: float | None) -> Engine:
    latency = {} if p50 is None else {"8": Latency(p50_ms=p50, p95_ms=2 * p50)}
    facts = {"precision": precision}
    sidecar = Sidecar(
        facts=facts, bytes=1, sha256="0" * 64, answer_error=0.0, build_seconds=1.0,
        workspace_mib=64, attention="fused", latency=latency,
    )  # fmt: skip
    return Engine(Path(precision), sidecar)


def test_the_faster_precision_is_chosen_and_int8_where_nothing_was_measured() -> None:
    assert choose([engine("int8", 2.0), engine("fp16", 1.5)]).precision == "fp16"
    assert choose([engine("fp16", 2.0), engine("int8", 1.5)]).precision == "int8"
    assert choose([engine("fp16", None), engine("int8", None)]).precision == "int8"
    assert choose([engine("int8", None), engine("fp16", 9.0)]).precision == "fp16"
    with pytest.raises(BackendError, match="run export-engine"):
        choose([])


@pytest.mark.slow
def test_everything_the_node_needs_is_built_timed_and_reported(settings: Settings) -> None:
    builder = FakeBuilder()
    bundle = load_bundle()
    report = export(bundle, settings, "auto", builder_api(builder), False, quiet)
    assert [(m, p) for m, p, _ in builder.calls[:2]] == [
        ("int8-trt.onnx", "int8"),
        ("fp16-trt.onnx", "fp16"),
    ]
    assert builder.calls[2][1] == "fp16", "the detector, weakly typed"
    assert report["detector"]["facts"]["precision"] == "fp16"
    assert set(report["engines"]["int8"]["latency"]) == {"1", "8", "32"}
    assert report["chosen"] in ("int8", "fp16")
    text = as_text(report)
    assert f"chosen: {report['chosen']} (faster at batch 8)" in text
    assert max(map(len, text.splitlines())) <= 100
    # The second call builds nothing.
    export(bundle, settings, "auto", builder_api(builder), False, quiet)
    assert len(builder.calls) == 3
    # One precision asked for: the other is no longer found.
    report = export(bundle, settings, "fp16", builder_api(builder), False, quiet)
    assert (report["chosen"], report["why"]) == ("fp16", "the only one")
    folder = settings.runtime.engines
    assert folder is not None
    assert len(list(folder.glob("*.engine"))) == 2


def test_int8_that_strays_is_left_out_of_auto_and_built_on_demand() -> None:
    bundle = load_bundle()
    bundle.description.provenance["agreement"] = {"int8-trt": {"within": False}}
    lines: list[str] = []
    assert set(student_networks(bundle, "auto", lines.append)) == {"fp16"}
    assert "strays from float" in lines[0]
    assert set(student_networks(bundle, "int8", quiet)) == {"int8"}


def test_a_detector_that_finds_other_faces_is_refused(settings: Settings) -> None:
    builder = FakeBuilder([b"good", b"good", b"bent"])
    with pytest.raises(BackendError, match=r"detector fp16: 2 engines .* in the portrait"):
        export(load_bundle(), settings, "auto", builder_api(builder), False, quiet)


def test_a_small_board_gets_a_quarter_of_its_memory() -> None:
    assert workspace_mib(3600) == 900
    assert workspace_mib(64000) == 1024
    assert workspace_mib(128) == 64


ATTENTION = Attention("node_matmul", "node_softmax", "node_matmul_1")


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (["{ForeignNode[node_matmul...node_matmul_1]} node_softmax"], "fused"),
        ([{"Name": "_gemm_mha_v2", "Metadata": "node_matmul node_softmax node_matmul_1"}], "fused"),
        ([{"Name": "_gemm_mha_v2_myl0_1", "Metadata": ""}], "fused"),
        (["node_matmul", "node_softmax", "node_matmul_1"], "split over 3 kernels"),
        (["node_matmul + node_softmax", "node_matmul_1"], "split over 2 kernels"),
        (["node_conv2d + node_relu"], "not shown"),
        (["node_matmul_12", "node_softmax_1"], "not shown"),
    ],
)
def test_what_the_inspector_shows_of_the_attention(layers: list[object], expected: str) -> None:
    import json

    assert fusion_report(json.dumps({"Layers": layers}), [ATTENTION]) == f"node_softmax: {expected}"
    assert "cannot be read" in fusion_report("no JSON", [ATTENTION])


def test_without_a_device_the_command_says_what_to_do(
    command: Callable[..., Done], tmp_path: Path
) -> None:
    done = command("export.engine.to_engine", SHIPPED, "--engines", tmp_path)
    assert done.code == 1
    assert "no CUDA device can be used" in done.last
    assert "--backend ort" in done.last
    done = command("export.engine.to_engine", tmp_path)
    assert done.code == 1
    assert "bundle.json cannot be read" in done.last
    assert command("export.engine.to_engine", SHIPPED, "--precision", "int4").code == 2


def test_find_needs_the_very_same_facts(tmp_path: Path, student: Network) -> None:
    made, _ = make(builder_api(FakeBuilder()), tmp_path, student, "int8", quiet)
    facts = cache.facts_of(student.model, "int8", student.profile, JETSON)
    assert find(tmp_path, facts) == made
    assert find(tmp_path, replace(facts, precision="fp16")) is None
    assert find(tmp_path / "elsewhere", facts) is None
