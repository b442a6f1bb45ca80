"""TensorRT's side of the node, over a fake driver: one owner thread, copies, faults, falling back."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge import assemble as assembly
from edge.base.errors import BackendError, BundleError, DeviceError
from edge.base.files import sha256
from edge.base.jetson import l4t_release
from edge.detect import open_detector
from edge.inference.backends import trt as trt_module
from edge.inference.backends.cuda import open_cuda
from edge.inference.backends.trt import TensorRT
from edge.inference.bundle import load_bundle
from edge.inference.engine_cache import (
    Device,
    Latency,
    Sidecar,
    engine_file,
    facts_of,
    write_sidecar,
)
from edge.inference.loader import open_student, student_profile
from edge.settings import Settings
from fakes.cuda import FakeCuda, fake_tensorrt, plan
from support.command import Done

JETSON = Device("Orin", "8.7", "10.3.0", "R36.4.3", 7600, True)


@pytest.fixture(params=[False, True], ids=["copies", "zero copy"])
def cuda(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda(shared=request.param)
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt(fake))
    return fake


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    path = tmp_path / "a.engine"
    path.write_bytes(plan(load_bundle().model("fp32")))
    return path


def faces(count: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, 1, 64, 64)).astype(np.float32)


def test_answers_are_the_networks_for_any_batch(cuda: FakeCuda, engine: Path) -> None:
    from edge.inference.loader import open_backend

    exact = open_backend("ort", load_bundle().model("fp32"), 1)
    runtime = TensorRT(engine, cuda)
    for count in (1, 3, 4, 9):  # the engine's largest batch is 4
        got = runtime.run(faces(count))["logits"]
        assert np.abs(got - exact.run(faces(count))["logits"]).max() < 1e-5
    assert runtime.run(faces(0))["logits"].shape == (0, 8)
    first = runtime.run(faces(2))["logits"]
    kept = first.copy()
    runtime.run(255 - faces(2))
    assert (first == kept).all(), "an answer is the caller's own, not the buffer"
    runtime.close()


def test_one_thread_owns_the_device_and_buffers_are_made_once(cuda: FakeCuda, engine: Path) -> None:
    runtime = TensorRT(engine, cuda)
    workers = [threading.Thread(target=runtime.run, args=(faces(2),)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    runtime.close()
    runtime.close()
    names = [name for name, _ in cuda.calls]
    assert len({thread for _, thread in cuda.calls}) == 1
    assert threading.get_ident() not in {thread for _, thread in cuda.calls}
    assert names[:3] == ["enter", "buffer", "buffer"]
    assert names.count("buffer") == 2
    assert names[3:7] == ["upload", "execute", "download", "wait"]
    assert names[-1] == "leave"
    assert names.count("leave") == 1


def test_what_cannot_be_served_is_one_line_and_leaves_the_context(
    cuda: FakeCuda, engine: Path, tmp_path: Path
) -> None:
    cut = tmp_path / "cut.engine"
    cut.write_bytes(engine.read_bytes()[:20])
    with pytest.raises(BackendError, match=r"not an engine for TensorRT 10\.3\.0 .* export-engine"):
        TensorRT(cut, cuda)
    assert cuda.calls[-1][0] == "leave"
    two = tmp_path / "two.engine"
    two.write_bytes(plan(load_bundle().model("fp32"), inputs=2))
    with pytest.raises(BackendError, match="2 inputs, one is served"):
        TensorRT(two, cuda)
    cuda.fail = "context"
    with pytest.raises(BackendError, match="no memory"):
        TensorRT(engine, cuda)
    cuda.fail = ""
    runtime = TensorRT(engine, cuda)
    with pytest.raises(BackendError, match="not a batch of"):
        runtime.run(np.zeros((1, 1, 7, 7), np.float32))
    cuda.fail = "execute"
    with pytest.raises(BackendError, match="did not run"):
        runtime.run(faces(1))
    cuda.fail = ""
    assert runtime.run(faces(1))["logits"].shape == (1, 8), "and goes on"
    assert json.loads(runtime.inspect())["Layers"] == ["json"]
    runtime.close()


def test_a_lost_device_is_its_own_error_and_everything_is_given_back(
    cuda: FakeCuda, engine: Path
) -> None:
    """An illegal address stays: no later call of the process succeeds, and closing has to all the
    same."""
    before, other = threading.active_count(), TensorRT(engine, cuda)
    runtime = TensorRT(engine, cuda)
    cuda.fail = "lost"
    with pytest.raises(
        DeviceError, match=r"lost to this process .*ILLEGAL_ADDRESS.*start it again"
    ):
        runtime.run(faces(1))
    cuda.fail = ""
    with pytest.raises(DeviceError):
        other.run(faces(1))
    for opened in (runtime, other, runtime):
        opened.close()
    assert [name for name, _ in cuda.calls].count("leave") == 2
    assert threading.active_count() == before


@pytest.mark.parametrize("call", ["enter", "buffer"])
def test_an_engine_that_opens_by_half_gives_everything_back(
    cuda: FakeCuda, engine: Path, call: str
) -> None:
    before, cuda.fail = threading.active_count(), call
    with pytest.raises(BackendError):
        TensorRT(engine, cuda)
    assert cuda.calls[-1][0] == "leave"
    assert threading.active_count() == before
    cuda.fail = ""
    TensorRT(engine, cuda).close()


@pytest.fixture
def node(cuda: FakeCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A node with a fake device and verified engines of its bundle."""
    monkeypatch.setattr(trt_module, "open_cuda", lambda: cuda)
    monkeypatch.setattr(trt_module, "device", lambda: JETSON)
    bundle = load_bundle()
    for precision, p50 in (("int8", 1.0), ("fp16", 2.0)):
        role = f"{precision}-trt"
        facts = facts_of(bundle.file(role), precision, student_profile(bundle), JETSON)
        path = engine_file(tmp_path, facts)
        path.write_bytes(plan(bundle.file(role)))
        data = path.read_bytes()
        write_sidecar(
            path,
            Sidecar(
                facts={"precision": precision}, bytes=len(data), sha256=sha256(data),
                answer_error=0.0, build_seconds=1.0, workspace_mib=64, attention="fused",
                latency={"8": Latency(p50_ms=p50, p95_ms=p50)},
            ),
        )  # fmt: skip
    return Settings.model_validate({"runtime": {"engines": str(tmp_path), "threads": 1}})


def with_backend(settings: Settings, backend: str) -> Settings:
    runtime = settings.runtime.model_copy(update={"backend": backend})
    return settings.model_copy(update={"runtime": runtime})


def test_auto_takes_the_fastest_proven_engine(node: Settings) -> None:
    bundle, opened = open_student(node)
    assert (opened.backend.name, opened.precision, opened.fallback) == ("tensorrt", "int8", None)
    assert opened.engine is not None
    assert bundle.self_test(opened.backend, "int8") < 0.25
    opened.backend.close()
    # No engine of the detector: that one alone falls back.
    _, detector = open_detector(node)
    assert detector.backend.name == "onnxruntime"
    assert "run export-engine" in str(detector.fallback)


def test_an_engine_that_answers_wrongly_is_set_aside_before_it_serves(
    node: Settings, tmp_path: Path
) -> None:
    bundle = load_bundle()
    facts = facts_of(bundle.file("int8-trt"), "int8", student_profile(bundle), JETSON)
    path = engine_file(tmp_path, facts)
    path.write_bytes(plan(bundle.file("int8-trt"), bent=1.0))
    mark = path.with_suffix(".json")
    sidecar = Sidecar.model_validate_json(mark.read_text())
    data = path.read_bytes()
    write_sidecar(path, sidecar.model_copy(update={"bytes": len(data), "sha256": sha256(data)}))
    _, opened = open_student(node)
    assert opened.backend.name == "onnxruntime"
    assert "set aside" in str(opened.fallback)
    assert not path.exists()
    assert len(list((tmp_path / "set-aside").glob("*.engine"))) == 1
    # The next start finds the other precision.
    _, opened = open_student(node)
    assert (opened.backend.name, opened.precision) == ("tensorrt", "fp16")
    opened.backend.close()


def test_an_engine_that_loses_the_device_at_the_start_ends_the_process(
    node: Settings, cuda: FakeCuda, tmp_path: Path
) -> None:
    """No falling back in a process whose device is lost: the next one is clean, and finds the engine
    set aside."""
    cuda.fail = "lost"
    with pytest.raises(DeviceError, match="start it again"):
        open_student(node)
    assert len(list((tmp_path / "set-aside").glob("*.engine"))) == 1
    cuda.fail, cuda.lost = "", False
    _, opened = open_student(node)
    assert (opened.backend.name, opened.precision) == ("tensorrt", "fp16")
    opened.backend.close()


def test_a_node_whose_device_fails_ends_with_one_line_and_closes_everything(
    node: Settings, cuda: FakeCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []
    for name in ("open_outbox", "open_detector", "open_source"):
        monkeypatch.setattr(f"edge.assemble.{name}", noted(closed, name, getattr(assembly, name)))
    whole = {
        **node.model_dump(exclude_unset=True),
        "camera": {"source": "test"},
        "broker": {"url": "-"},
    }
    whole["runtime"] = {**whole["runtime"], "state": tmp_path / "state"}
    stop = threading.Event()
    running = assembly.assemble(Settings.model_validate(whole), 30.0, stop, stop)
    assert running.student.backend.name == "tensorrt"
    cuda.fail = "lost"
    with pytest.raises(DeviceError, match="lost to this process") as seen:
        running.run()
    assert "\n" not in str(seen.value)
    assert str(tmp_path) not in seen.value.public
    assert sorted(set(closed)) == ["open_detector", "open_outbox", "open_source"]
    assert cuda.calls[-1][0] == "leave"
    assert not [t for t in threading.enumerate() if t.name.startswith("trt-")]


def noted(closed: list[str], name: str, opener: Callable[..., Any]) -> Callable[..., Any]:
    """Let what is opened note in `closed` that it was closed."""

    def ending(inner: Callable[[], None]) -> Callable[[], None]:
        def close() -> None:
            closed.append(name)
            inner()

        return close

    def opened(*arguments: Any) -> Any:
        made = opener(*arguments)
        part = made[0].backend if isinstance(made, tuple) else made
        for method in ("close", "remove"):
            if hasattr(part, method):
                setattr(part, method, ending(getattr(part, method)))
        return made

    return opened


def test_trt_asked_for_by_name_does_not_fall_back(
    node: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in tmp_path.glob("*.engine"):
        file.unlink()
    with pytest.raises(BackendError, match="run export-engine"):
        open_student(with_backend(node, "trt"))
    with pytest.raises(BackendError, match="run export-engine"):
        open_detector(with_backend(node, "trt"))
    _, opened = open_student(node)
    assert (opened.backend.name, opened.precision) == ("onnxruntime", "int8")
    monkeypatch.setattr(trt_module, "device", no_device)
    with pytest.raises(BackendError, match="no driver"):
        open_student(with_backend(node, "trt"))


def no_device() -> Device:
    raise BackendError("no driver")


def test_an_old_bundle_without_tensorrt_files_runs_on_onnx_runtime(
    node: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = load_bundle()
    del bundle.description.files["int8-trt"]
    monkeypatch.setattr("edge.inference.loader.load_bundle", lambda folder: bundle)
    _, opened = open_student(node)
    assert opened.backend.name == "onnxruntime"
    assert "no file for the role 'int8-trt'" in str(opened.fallback)
    with pytest.raises(BundleError):
        open_student(with_backend(node, "trt"))


def test_a_machine_without_pycuda_and_cuda_bindings_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("pycuda", "pycuda.driver", "cuda", "cuda.bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BackendError, match=r"no CUDA device can be used .* --backend ort") as seen:
        open_cuda()
    assert "\n" not in str(seen.value)


def test_tensorrt_that_is_not_installed_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BackendError, match=r"TensorRT is not installed .* nvidia-jetpack"):
        trt_module.import_tensorrt()


def test_the_release_of_a_jetson(tmp_path: Path) -> None:
    file = tmp_path / "nv_tegra_release"
    assert l4t_release(file) == ""
    file.write_text("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic\n")
    assert l4t_release(file) == "R36.4.3"


@pytest.mark.slow
def test_info_says_which_runtime_and_why(command: Callable[..., Done]) -> None:
    done = command("edge.run", "--camera", "test", "--max-seconds", 1, "--broker", "-", "--verbose")
    assert done.code == 0, done.err
    lines = [json.loads(line) for line in done.out.splitlines()]
    info = next(line["payload"] for line in lines if line["topic"].endswith("/info"))
    assert info["model"]["backend"] == "onnxruntime"
    assert "no CUDA device" in info["model"]["fallback"]
    assert "student on onnxruntime: no CUDA device" in done.err
    done = command("edge.run", "--camera", "test", "--backend", "trt", "--broker", "-")
    assert done.code == 1
    assert "no CUDA device can be used" in done.last
