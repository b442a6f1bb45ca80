"""NVIDIA's own code without a GPU: its parser and builder on the shipped files, and the bindings of
every TensorRT that we claim, for each attribute that we touch. `make tensorrt` fetches both.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edge.inference.bundle import SHIPPED
from export.describe import FILES
from support.paths import ROOT

BINDINGS = ROOT / ".tensorrt"
VERSIONS = ("10.3", "10.13", "10.16", "11.4")
# What the bindings' library wants of TensorRT's own, which is not there: functions that answer null.
SYMBOLS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)
LIBRARIES = ("nvinfer", "nvonnxparser", "nvinfer_plugin")
# The classes behind our names for them, in the files that talk to TensorRT.
OBJECTS = {
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "self._engine": "ICudaEngine",
    "context": "IExecutionContext",
    "self._context": "IExecutionContext",
    "inspector": "EngineInspector",
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "config": "IBuilderConfig",
    "shapes": "IOptimizationProfile",
    "cache": "ITimingCache",
}
FILES_THAT_TALK = {
    "edge/inference/backends/trt.py": {"runtime", "engine", "self._engine", "context", "self._context",
                             "inspector"},
    "export/engine/builder.py": {"builder", "network", "parser", "config", "shapes",
                          "cache"},
}  # fmt: skip


def touched(path: Path, objects: set[str]) -> set[str]:
    """Every `trt.A.B` and `Class.method` that a file names, as the bindings know them."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Attribute):
            continue
        text = ast.unparse(node)
        for prefix in ("self._trt.", "trt."):
            if text.startswith(prefix) and "(" not in text:
                found.add(text.removeprefix(prefix).removesuffix(".__init__"))
        owner = ast.unparse(node.value)
        if owner in objects:
            found.add(f"{OBJECTS[owner]}.{node.attr}")
    return found


def all_touched() -> set[str]:
    return {
        name for file, objects in FILES_THAT_TALK.items() for name in touched(ROOT / file, objects)
    }


@pytest.mark.process
def test_the_scan_sees_the_calls_that_differ_between_versions() -> None:
    seen = all_touched()
    assert {
        "Logger.ERROR",
        "Runtime.deserialize_cuda_engine",
        "ICudaEngine.get_tensor_profile_shape",
        "IExecutionContext.execute_async_v3",
        "IBuilderConfig.set_memory_pool_limit",
        "Builder.build_serialized_network",
        "ITimingCache.serialize",
        "MemoryPoolType.WORKSPACE",
    } <= seen
    assert not any("calibrat" in name.lower() for name in seen), "INT8 is in the file"


@pytest.fixture(scope="session")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Empty shared libraries under the names that the bindings ask for."""
    folder = tmp_path_factory.mktemp("stubs")
    source = folder / "stub.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in SYMBOLS))
    for name in LIBRARIES:
        for major in (10, 11):
            library = f"lib{name}.so.{major}"
            try:
                subprocess.run(
                    ["cc", "-shared", "-fPIC", f"-Wl,-soname,{library}", source, "-o",
                     folder / library],
                    check=True,
                )  # fmt: skip
            except FileNotFoundError:
                pytest.skip("needs a C compiler (Debian: apt-get install gcc)")
    return folder


@pytest.mark.process
@pytest.mark.parametrize("version", VERSIONS)
def test_every_attribute_that_we_touch_is_in_the_bindings(version: str, stubs: Path) -> None:
    folders = sorted(BINDINGS.glob(f"{version}.*"))
    if not folders:
        pytest.skip(f"needs the bindings of TensorRT {version}: make tensorrt")
    names = sorted(all_touched())
    script = (
        "import json, tensorrt_bindings as trt\n"
        "def there(name):\n"
        "    at = trt\n"
        "    for part in name.split('.'):\n"
        "        if not hasattr(at, part): return False\n"
        "        at = getattr(at, part)\n"
        "    return True\n"
        f"print(json.dumps([trt.__version__, [n for n in {names!r} if not there(n)],\n"
        "    there('NetworkDefinitionCreationFlag.STRONGLY_TYPED')]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(folders[-1]), "LD_LIBRARY_PATH": str(stubs)},
    )
    assert done.returncode == 0, done.stderr
    found, missing, strong = json.loads(done.stdout)
    assert found.startswith(version)
    assert missing == []
    assert strong, "the branch that NVIDIA's builder takes in test_builder.py"


BUILD = """
import json, sys
import tensorrt_rtx_bindings as trt
log = trt.Logger(trt.Logger.ERROR)
sizes = []
for path in sys.argv[1:]:
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    with open(path, "rb") as file:
        if not parser.parse(file.read()):
            sys.exit(f"{path}: {parser.get_error(0).desc()}")
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    source = network.get_input(0)
    shape = tuple(source.shape)[1:]
    profile = builder.create_optimization_profile()
    profile.set_shape(source.name, (1, *shape), (8, *shape), (32, *shape))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        sys.exit(f"{path}: not built")
    sizes.append(plan.nbytes)
print(json.dumps(sizes))
"""


def rtx(*files: Path) -> subprocess.CompletedProcess[str]:
    if importlib.util.find_spec("tensorrt_rtx_bindings") is None:
        pytest.skip("needs NVIDIA's tensorrt-rtx packages: make tensorrt")
    return subprocess.run(
        [sys.executable, "-c", BUILD, *map(str, files)], capture_output=True, text=True
    )


@pytest.mark.process
def test_nvidias_parser_and_strongly_typed_builder_take_the_shipped_files() -> None:
    files = [SHIPPED / FILES[role] for role in ("fp32", "fp16-trt", "int8-trt")]
    done = rtx(*files)
    assert done.returncode == 0, done.stderr
    sizes = json.loads(done.stdout)
    assert sizes[2] < sizes[0], "INT8 weights are kept as such"


@pytest.mark.process
def test_the_gate_refuses_the_file_that_is_for_onnx_runtime() -> None:
    """uint8 with zero points is no TensorRT file: were it taken, the gate would see nothing."""
    done = rtx(SHIPPED / FILES["int8-cpu"])
    assert done.returncode != 0
    assert "int8-cpu.onnx" in done.stderr
