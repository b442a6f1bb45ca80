"""Fixtures of the export tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.to_onnx import deployed, export_onnx
from support.tiny_student import student


@pytest.fixture(scope="session")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "fp32.onnx"
    export_onnx(deployed(student(), 1.7), path)
    return path
