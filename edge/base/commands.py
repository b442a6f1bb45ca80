"""The kit's commands, and which extra brings what each imports.

A console script that imported its module by itself would end in a traceback where a package is missing,
before anything of ours could speak. So it starts here, which needs nothing but Python.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from functools import partial

MODULES = {
    "edge-run": "edge.run",
    "edge-watch": "edge.watch.run",
    "edge-flash": "edge.flash.run",
    "edge-provision": "edge.update.provision",
    "edge-update": "edge.update.run",
    "edge-bench": "edge.tools.bench",
    "edge-crowd": "edge.tools.crowd",
    "edge-crops": "distill.data.crops",
    "distill-train": "distill.train",
    "distill-eval": "distill.evaluation.evaluate",
    "distill-study": "distill.evaluation.study",
    "export-model": "export.model",
    "export-engine": "export.engine.to_engine",
    "export-bench": "export.bench",
}
# By the name that is imported; "" for what every installation has.
EXTRAS = {
    "numpy": "",
    "onnxruntime": "",
    "paho": "",
    "pydantic": "",
    "yaml": "",
    "cv2": "node",
    "prometheus_client": "metrics",
    "alembic": "watch",
    "plotly": "watch",
    "psycopg": "watch",
    "rich": "watch",
    "sqlalchemy": "watch",
    "starlette": "watch",
    "uvicorn": "watch",
    "pyarrow": "analysis",
    "cryptography": "flash",
    "matplotlib": "train",
    "torch": "train",
    "onnx": "train",
    "onnxscript": "train",
    "transformers": "train",
    "safetensors": "train",
    "tensorboard": "tensorboard",
    "amqtt": "demo",
    "argcomplete": "completion",
}
# These want all of `train`, which brings `node`: whoever was sent to that first would be sent again.
TRAINING = ("distill-train", "distill-study", "export-model")


def advice(error: ModuleNotFoundError, command: str = "") -> str | None:
    """Say in one line what to install for a command; None where a module is missing that no extra
    brings, which is a defect."""
    package = (error.name or "").split(".")[0]
    if package not in EXTRAS:
        return None
    if not EXTRAS[package]:
        return f"{package} is not installed; install the kit again: pip install ."
    extra = EXTRAS[package]
    if extra == "node" and command in TRAINING:
        extra = "train"
    line = f"{package} is not installed; install the '{extra}' extra: pip install '.[{extra}]'"
    if extra == "node":
        line += ", on a Jetson: apt install python3-opencv"
    return line


def lacking(command: str, error: ModuleNotFoundError) -> int:
    """Say in one line what a command lacks, and return its exit code; raise what is a defect again."""
    if (line := advice(error, command)) is None:
        raise error
    print(f"{command}: {line}", file=sys.stderr)
    return 1


def start(command: str) -> int:
    """Run a command; a package that it lacks is one line, exit code 1."""
    try:
        main = importlib.import_module(MODULES[command]).main
    except ModuleNotFoundError as error:
        return lacking(command, error)
    return int(main())


def __getattr__(name: str) -> Callable[[], int]:
    """Return the function that pyproject.toml names for a command: `edge_run` for edge-run."""
    command = name.replace("_", "-")
    if command not in MODULES:
        raise AttributeError(f"no command {command}")
    return partial(start, command)
