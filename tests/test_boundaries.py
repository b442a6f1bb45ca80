"""The order of the folders, as a test: who may import what."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

from support.trees import parsed

ROOT = Path(__file__).parents[1]
PACKAGES = ("edge", "distill", "export")
# Lowest first: what is named in a line may import the lines above it, and itself where it is a folder.
LAYERS = {
    "edge": """
        base
        records
        settings
        sources inference delivery sizes
        detect track liveness unmoved pose crop aggregate
        classify
        pipeline health
        node
        assemble
        tools update watch
        run flash
    """,
    "distill": """
        recipe progress
        data
        models
        training
        evaluation train
    """,
    "export": """
        engine operator_forms
        to_onnx
        source
        agree baselines calibrate card describe
        folder
        metadata
        to_int8
        sensitivity to_fp16
        precisions
        model bench
    """,
}
SHORT = {
    "edge/watch/migrations/versions/0003_counting.py": "one column",
    "edge/watch/migrations/versions/0004_retired.py": "one table",
    "edge/watch/migrations/versions/0005_slices.py": "one table",
    "edge/watch/migrations/versions/0006_places.py": "three columns",
    "edge/watch/migrations/env.py": "runs the migrations, as Alembic demands a file to",
    "edge/health/probes.py": "two files of the kernel",
    "distill/models/precision.py": "one choice that models and training share",
}


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@functools.cache
def imports(path: Path) -> set[str]:
    """Every module that a file names in an import, also inside functions."""
    found = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def imports_any(path: Path, *names: str) -> bool:
    return any(i == n or i.startswith(f"{n}.") for i in imports(path) for n in names)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def graph(package: str) -> dict[str, set[str]]:
    """By module, those of its package that it imports, also inside functions."""
    names = {module_name(path): path for path in modules(package)}
    found: dict[str, set[str]] = {name: set() for name in names}
    for name, path in names.items():
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names} & set(names)
            elif isinstance(node, ast.ImportFrom) and node.module in names:
                # `from package import name`: a module of that name, or else what the package holds.
                full = {f"{node.module}.{alias.name}" for alias in node.names}
                found[name] |= full & set(names) or {node.module}
    return found


def layer_of(module: str) -> int:
    """Of a module's package, from the lowest; the version in `edge/__init__.py` is below them all."""
    package, *rest = module.split(".")
    layers = [line.split() for line in LAYERS[package].split("\n") if line.strip()]
    return next((at for at, names in enumerate(layers) if rest and rest[0] in names), -1)


def users(package: str, *names: str) -> set[str]:
    return {str(path.relative_to(ROOT)) for path in modules(package) if imports_any(path, *names)}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_has_a_layer_and_imports_only_lower_ones(package: str) -> None:
    for module, imported in graph(package).items():
        assert layer_of(module) >= 0 or module == package, f"{module} has no place in LAYERS"
        for other in imported:
            inside = other.split(".")[:2] == module.split(".")[:2]
            assert inside or layer_of(other) < layer_of(module), f"{module} imports {other}"


@pytest.mark.parametrize("package", PACKAGES)
def test_no_modules_import_each_other_in_a_circle(package: str) -> None:
    rest = graph(package)
    while free := {module for module, imported in rest.items() if not imported & set(rest)}:
        rest = {module: imported for module, imported in rest.items() if module not in free}
    assert rest == {}


def test_edge_knows_neither_distill_nor_export_nor_torch() -> None:
    assert (
        users("edge", "distill", "export", "torch", "torchvision", "transformers", "onnx") == set()
    )


def test_each_library_of_the_node_has_its_files() -> None:
    assert users("edge", "paho") == {"edge/delivery/client.py"}
    assert users("edge", "onnxruntime") == {"edge/inference/backends/ort.py"}
    assert users("edge", "tensorrt") == {"edge/inference/backends/trt.py"}
    assert users("edge", "pycuda", "cuda") == {"edge/inference/backends/cuda.py"}
    outbox = ("outbox_file", "rows", "salvage", "start")
    assert users("edge", "sqlite3") == {f"edge/delivery/{name}.py" for name in outbox}
    server = (
        "sqlalchemy",
        "alembic",
        "psycopg",
        "starlette",
        "uvicorn",
        "plotly",
        "rich",
        "pyarrow",
    )
    assert {path for path in users("edge", *server) if not path.startswith("edge/watch/")} == set()
    assert users("edge", "prometheus_client") == {
        "edge/base/exposition.py", "edge/health/prometheus.py", "edge/watch/metrics.py",
    }  # fmt: skip
    assert users("edge", "scipy") == set()
    # The technician's side alone makes keys; a node verifies with openssl's program.
    assert users("edge", "cryptography") == {
        "edge/flash/authority.py",
        "edge/flash/certificates.py",
        "edge/flash/release.py",
    }
    # Pixels are touched where they come in, are looked at, and are cut; nowhere near the publisher.
    assert users("edge", "cv2") == {
        "edge/tools/bench.py",
        "edge/sources/open.py",
        "edge/tools/check.py",
        "edge/tools/crowd.py",
        "edge/crop.py",
        "edge/liveness.py",
        "edge/detect.py",
        "edge/sources/decoder.py",
        "edge/sources/recorded.py",
        "edge/sources/live.py",
        "edge/sources/synthetic.py",
        "edge/sources/images.py",
        "edge/health/reports.py",
    }


def test_distill_uses_only_what_crops_and_runs_what_is_deployed() -> None:
    forbidden = ("pipeline", "delivery", "watch", "flash", "node", "sources.open", "run", "health")
    assert users("distill", *(f"edge.{name}" for name in forbidden), "export") == set()


def test_export_touches_torch_in_three_files_only() -> None:
    """Those that no node loads: exporting, proving it, and the networks that a bench compares with."""
    files = {"export/agree.py", "export/to_onnx.py", "export/baselines.py"}
    assert users("export", "torch") == files


@pytest.mark.process
def test_engines_are_built_on_a_node_that_has_neither_torch_nor_onnx() -> None:
    blocked = ("torch", "onnx", "transformers", "tensorrt", "pycuda", "cuda")
    script = (
        f"import sys\nfor name in {blocked!r}: sys.modules[name] = None\n"
        "import export.engine.to_engine"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr == ""


def test_libraries_are_imported_where_they_are_used() -> None:
    """At the top of these files nothing heavy is loaded, so a missing one is our own error."""
    for name in (
        "edge/inference/backends/ort.py",
        "edge/inference/backends/trt.py",
        "edge/inference/backends/cuda.py",
        "edge/delivery/connection.py",
    ):
        tree = parsed(ROOT / name)
        top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        text = "\n".join(ast.unparse(node) for node in top)
        assert "onnxruntime" not in text
        assert "tensorrt" not in text
        assert "pycuda" not in text
        assert "paho" not in text


def walk(package: str, blocked: tuple[str, ...]) -> str:
    """Import every module of a package in a process in which some names cannot be imported."""
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in modules(package)
        if "migrations" not in path.parts  # which Alembic runs, with a connection
    ]
    script = (
        f"import sys\nfor name in {blocked!r}:\n    sys.modules[name] = None\n"
        f"import importlib\nfor name in {names!r}:\n    importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    return done.stderr


@pytest.mark.process
def test_the_node_imports_with_torch_and_the_runtimes_blocked() -> None:
    blocked = ("torch", "onnx", "transformers", "tensorrt", "pycuda", "cuda", "onnxruntime", "paho")
    blocked += ("prometheus_client",)
    assert walk("edge", blocked) == ""


def test_nothing_that_edge_run_loads_writes_or_sends_pictures() -> None:
    """No call in the node's own files encodes a picture or opens a window."""
    writers = {"imwrite", "imencode", "VideoWriter", "imshow", "tofile", "savez", "imwritemulti"}
    for path in modules("edge"):
        called = {node.attr for node in ast.walk(parsed(path)) if isinstance(node, ast.Attribute)}
        allowed = {"fourcc", "VideoWriter"} if path.name == "open.py" else set()
        assert not (called & writers) - allowed, path
    camera = (ROOT / "edge" / "sources" / "open.py").read_text()
    assert camera.count("VideoWriter") == camera.count("VideoWriter.fourcc")


@pytest.mark.process
def test_what_edge_run_imports_is_the_node_alone() -> None:
    """Neither the laboratory's tool that writes crops, nor the server's side, nor a library that sends
    pictures or mail."""
    script = "import sys, edge.run, edge.assemble, edge.tools.check; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    loaded = set(done.stdout.split())
    assert "edge.delivery.publisher" in loaded
    unwanted = {"distill.data.crops", "edge.tools.bench", "edge.watch", "edge.flash", "PIL", "imageio",
                "matplotlib", "requests", "smtplib", "ftplib", "socketserver", "torch", "paho",
                "onnxruntime"}  # fmt: skip
    assert loaded & unwanted == set()


def test_edge_has_no_label_constant() -> None:
    for path in modules("edge"):
        for word in ("happiness", "sadness", "surprise", "anger"):
            assert word not in path.read_text(), path


@pytest.mark.parametrize("package", PACKAGES)
def test_modules_have_30_to_400_lines_and_no_vague_names(package: str) -> None:
    for path in modules(package):
        lines = len(path.read_text().splitlines())
        assert lines <= 400, f"{path} has {lines} lines"
        short = path.name == "__init__.py" or str(path.relative_to(ROOT)) in SHORT
        assert lines >= 30 or short, f"{path} has {lines} lines"
        assert path.stem not in ("utils", "helpers", "common", "misc", "manager")


@pytest.mark.parametrize("package", PACKAGES)
def test_classes_have_fewer_than_200_lines(package: str) -> None:
    for path in modules(package):
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ClassDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                assert lines < 200, f"{path}: {node.name} has {lines} lines"
