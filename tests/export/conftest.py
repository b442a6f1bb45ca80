"""Fixtures of the export tests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from distill.models.student import Student
from export.to_onnx import deployed, export_onnx
from support.tiny_student import CONFIG, student


@pytest.fixture(scope="session")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "fp32.onnx"
    export_onnx(deployed(student(), 1.7), path)
    return path


@pytest.fixture(
    scope="session",
    params=[{"pool": "queries"}, {"pool": "queries", "queries": 1}, {"attend": False}],
    ids=["four-queries", "one-query", "perceptron"],
)
def other_form(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Student, Path]:
    """A student whose fused block is not the two-way one, and its float file."""
    made, path = (
        student(replace(CONFIG, **request.param)),
        tmp_path_factory.mktemp("form") / "f.onnx",
    )
    export_onnx(deployed(made, 1.7), path)
    return made, path
