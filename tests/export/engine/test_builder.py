"""builder.py against NVIDIA's own strongly typed builder (no GPU), which takes the same branch as
every board from TensorRT 10.0 on; and both branches against a fake."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from edge.base.errors import BackendError, BundleError
from edge.inference.bundle import SHIPPED, load_bundle
from edge.inference.loader import student_profile
from export.engine.builder import build, strongly_typed

PROFILE = student_profile(load_bundle())


def quiet(line: str) -> None:
    pass


@pytest.fixture
def rtx(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """tensorrt-rtx in TensorRT's place: the same interface, and it builds for a device by number."""
    if importlib.util.find_spec("tensorrt_rtx_bindings") is None:
        pytest.skip("needs NVIDIA's tensorrt-rtx packages: make tensorrt")
    import tensorrt_rtx_bindings as real

    class Builder(real.Builder):
        def create_builder_config(self) -> Any:
            config = super().create_builder_config()
            config.num_compute_capabilities = 1
            config.set_compute_capability(real.ComputeCapability.SM86, 0)
            return config

    module = ModuleType("tensorrt")
    module.__dict__.update({k: v for k, v in vars(real).items() if not k.startswith("__")})
    module.__dict__.update(Builder=Builder, __version__=real.__version__)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    return module


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_the_shipped_files_build_by_our_own_code(rtx: ModuleType, precision: str) -> None:
    assert strongly_typed(rtx)
    model = load_bundle().file(f"{precision}-trt")
    plan = build(model, precision, PROFILE, b"", 256, quiet)
    assert len(plan.data) > 100_000
    assert plan.seconds > 0


def test_nvidias_parser_names_what_it_refuses(rtx: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"refuses int8-cpu\.onnx: .*export the bundle again"):
        build(SHIPPED / "int8-cpu.onnx", "int8", PROFILE, b"", 256, quiet)
    cut = tmp_path / "cut.onnx"
    cut.write_bytes((SHIPPED / "fp32.onnx").read_bytes()[:1000])
    with pytest.raises(BundleError, match=r"refuses cut\.onnx"):
        build(cut, "fp32", PROFILE, b"", 256, quiet)


class Notes(SimpleNamespace):
    """What the fake builder was told."""


# What the bindings of each release have of flags for a network and for its builder.
FLAGS = {
    "8.6.2": ({"EXPLICIT_BATCH": 0}, ("FP16", "INT8", "TF32")),
    "10.0.1": ({"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1}, ("FP16", "INT8", "TF32")),
    "10.13.0": ({"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1}, ("FP16", "INT8", "TF32")),
    "11.4.0": ({"STRONGLY_TYPED": 1}, ("TF32",)),
}


def fake_tensorrt(version: str, plan: bytes | None, refused: str = "") -> tuple[ModuleType, Notes]:
    """refused: "made" or "set", where timings of earlier builds are not taken."""
    notes = Notes(network=None, flags=[], timings=None, workspace=None)
    trt = ModuleType("tensorrt")

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING = range(3)

        def __init__(self) -> None:
            pass

    class Config:
        def set_memory_pool_limit(self, pool: str, count: int) -> None:
            notes.workspace = count

        def set_flag(self, flag: str) -> None:
            notes.flags.append(flag)

        def add_optimization_profile(self, profile: object) -> None:
            pass

        def create_timing_cache(self, data: bytes) -> SimpleNamespace | None:
            if data and refused == "made":
                return None
            return SimpleNamespace(data=data, serialize=lambda: b"new timings")

        def set_timing_cache(self, cache: SimpleNamespace, ignore_mismatch: bool) -> bool:
            assert not ignore_mismatch, "timings of another device are no timings"
            if cache.data and refused == "set":
                return False
            notes.timings = cache.data
            return True

    class Builder:
        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def create_network(self, flags: int) -> SimpleNamespace:
            notes.network = flags
            return SimpleNamespace(get_input=lambda index: SimpleNamespace(name="faces"))

        def create_builder_config(self) -> Config:
            return Config()

        def create_optimization_profile(self) -> SimpleNamespace:
            return SimpleNamespace(set_shape=lambda name, *shapes: None)

        def build_serialized_network(self, network: object, config: Config) -> bytes | None:
            if plan is None:
                self.logger.log(ILogger.ERROR, "out of memory")
            return plan

    kinds, flags = FLAGS[version]
    trt.__dict__.update(
        __version__=version,
        ILogger=ILogger,
        Builder=Builder,
        OnnxParser=lambda network, logger: SimpleNamespace(parse=lambda data: True),
        BuilderFlag=SimpleNamespace(**dict(zip(flags, flags, strict=True))),
        NetworkDefinitionCreationFlag=SimpleNamespace(**kinds),
        MemoryPoolType=SimpleNamespace(WORKSPACE="workspace"),
        ProfilingVerbosity=SimpleNamespace(DETAILED="detailed"),
    )
    return trt, notes


@pytest.mark.parametrize(
    ("version", "precision", "flags", "network"),
    [
        ("8.6.2", "int8", ["FP16", "INT8"], 1),
        ("8.6.2", "fp16", ["FP16"], 1),
        ("8.6.2", "fp32", [], 1),
        ("10.0.1", "int8", [], 3),
        ("10.0.1", "fp16", [], 3),
        ("10.13.0", "int8", [], 3),
        ("10.13.0", "fp32", [], 3),
        ("11.4.0", "int8", [], 2),
        ("11.4.0", "fp16", [], 2),
    ],
)
def test_types_are_the_file_s_own_from_10_on_and_flags_say_them_before(
    monkeypatch: pytest.MonkeyPatch, version: str, precision: str, flags: list[str], network: int
) -> None:
    trt, notes = fake_tensorrt(version, b"plan")
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    lines: list[str] = []
    made = build(SHIPPED / "fp32.onnx", precision, PROFILE, b"old timings", 256, lines.append)
    assert (notes.flags, notes.network) == (flags, network)
    assert any("weakly typed" in line for line in lines) == (version == "8.6.2")
    assert notes.workspace == 256 * 2**20
    assert (made.data, made.timings) == (b"plan", b"new timings")
    assert notes.timings == b"old timings"


@pytest.mark.parametrize("refused", ["made", "set"])
def test_timings_that_are_refused_are_a_fresh_cache_and_one_line(
    monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    trt, notes = fake_tensorrt("8.6.2", b"plan", refused)
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    lines: list[str] = []
    made = build(SHIPPED / "fp32.onnx", "fp32", PROFILE, b"cut", 256, lines.append)
    assert (made.data, made.timings, notes.timings) == (b"plan", b"new timings", b"")
    assert sum("refuses the timings" in line for line in lines) == 1
    assert build(SHIPPED / "fp32.onnx", "fp32", PROFILE, b"", 256, quiet).data == b"plan"


def test_a_builder_that_gives_nothing_is_one_line_with_its_last_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trt, _ = fake_tensorrt("8.6.2", None)
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    with pytest.raises(BackendError, match=r"8\.6\.2 built no int8 engine .* out of memory; free"):
        build(SHIPPED / "fp32.onnx", "int8", PROFILE, b"", 256, quiet)
