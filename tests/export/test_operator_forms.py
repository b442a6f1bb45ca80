"""What TensorRT 8.6's parser reads, as data, on every file that we ship and on one that we make."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from distill.models.student import Student
from edge.base.errors import EdgeError
from edge.inference.bundle import SHIPPED
from edge.inference.loader import open_backend
from export.describe import FILES
from export.operator_forms import refuse_unknown_forms, unknown_forms, write_portably


@pytest.mark.parametrize("role", ["fp32", "int8-trt", "fp16-trt"])
def test_the_shipped_files_hold_only_forms_that_every_tensorrt_reads(role: str) -> None:
    model = onnx.load(str(SHIPPED / FILES[role]))
    assert unknown_forms(model) == []
    assert {"Conv", "Softmax", "LayerNormalization"} <= {node.op_type for node in model.graph.node}


def test_the_file_for_onnx_runtime_is_seen_not_to_be_one_for_tensorrt() -> None:
    assert any(
        "zero point" in line for line in unknown_forms(onnx.load(str(SHIPPED / "int8-cpu.onnx")))
    )


def network(
    body: Callable[[list[onnx.TensorProto]], list[onnx.NodeProto]], rank: int = 2
) -> onnx.ModelProto:
    """faces (N, 3, 4, 4) -> y of `rank` sides by the nodes of `body`, which appends its constants."""
    constants: list[onnx.TensorProto] = []
    nodes = body(constants)
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("faces", TensorProto.FLOAT, ["N", 3, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, list("abcd"[:rank]))],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def mean(axes: list[int], keep: int) -> onnx.ModelProto:
    def body(constants: list[onnx.TensorProto]) -> list[onnx.NodeProto]:
        constants.append(numpy_helper.from_array(np.array(axes), "axes"))
        return [helper.make_node("ReduceMean", ["faces", "axes"], ["y"], "mean", keepdims=keep)]

    return network(body, 4 if keep else 2)


@given(st.permutations([2, 3]), st.booleans(), st.integers(0, 1), st.integers(1, 3))
def test_a_mean_over_places_is_written_as_pooling_and_answers_the_same(
    axes: list[int], negative: bool, keep: int, batch: int
) -> None:
    model = mean([a - 4 if negative else a for a in axes], keep)
    assert unknown_forms(model) == ["mean: ReduceMean is none of the operators that are listed"]
    faces = np.random.default_rng(batch).normal(size=(batch, 3, 4, 4)).astype(np.float32)
    write_portably(model)
    assert unknown_forms(model) == []
    assert not model.graph.initializer, "the axes are gone with their reader"
    onnx.checker.check_model(model)
    answer = ReferenceEvaluator(model).run(None, {"faces": faces})[0]
    assert answer.shape == ((batch, 3, 1, 1) if keep else (batch, 3))
    assert np.allclose(answer, faces.mean(axis=(2, 3), keepdims=bool(keep)), atol=1e-6)


@pytest.mark.parametrize("axes", [[1], [1, 2], [1, 2, 3]])
def test_another_mean_is_left_and_refused(axes: list[int], tmp_path: Path) -> None:
    model = mean(axes, 0)
    write_portably(model)
    path = tmp_path / "student.onnx"
    onnx.save(model, str(path))
    with pytest.raises(EdgeError, match=r"student\.onnx: .* would not read mean: ReduceMean"):
        refuse_unknown_forms(path)


def reshape(shape: list[int], allowzero: int) -> onnx.ModelProto:
    def body(constants: list[onnx.TensorProto]) -> list[onnx.NodeProto]:
        constants.append(numpy_helper.from_array(np.array(shape), "shape"))
        return [
            helper.make_node("Reshape", ["faces", "shape"], ["y"], "reshape", allowzero=allowzero)
        ]

    return network(body)


def test_reshape_is_written_without_a_way_to_read_zeros() -> None:
    model = reshape([-1, 48], 1)
    assert unknown_forms(model) == ["reshape: allowzero 1"]
    write_portably(model)
    assert unknown_forms(model) == []
    model = reshape([0, 48], 0)
    write_portably(model)
    assert unknown_forms(model) == ["reshape: input 1 holds a 0"]


def computed_weights(constants: list[onnx.TensorProto]) -> list[onnx.NodeProto]:
    return [helper.make_node("Conv", ["faces", "faces"], ["y"], "conv")]


def computed_shape(constants: list[onnx.TensorProto]) -> list[onnx.NodeProto]:
    return [
        helper.make_node("Cast", ["faces"], ["shape"], "cast", to=TensorProto.INT64),
        helper.make_node("Reshape", ["faces", "shape"], ["y"], "reshape"),
    ]


def uint8_codes(constants: list[onnx.TensorProto]) -> list[onnx.NodeProto]:
    constants += [
        numpy_helper.from_array(np.float32(0.1), "scale"),
        numpy_helper.from_array(np.uint8(0), "zero"),
    ]
    return [helper.make_node("QuantizeLinear", ["faces", "scale", "zero"], ["y"], "quantise")]


@pytest.mark.parametrize(
    ("body", "lines"),
    [
        (computed_weights, ["conv: input 1 is computed"]),
        (
            computed_shape,
            [f"cast: to {TensorProto.INT64}", "reshape: input 1 is computed"],
        ),
        (uint8_codes, ["quantise: input 2 is not the zero point 0 of int8"]),
    ],
)
def test_what_no_file_for_tensorrt_may_hold_is_named(
    body: Callable[[list[onnx.TensorProto]], list[onnx.NodeProto]], lines: list[str]
) -> None:
    assert unknown_forms(network(body)) == lines


def test_every_form_of_student_is_exported_in_those_forms(
    other_form: tuple[Student, Path],
) -> None:
    student, path = other_form
    refuse_unknown_forms(path)
    faces = np.random.default_rng(0).integers(0, 256, (3, 1, 32, 32)).astype(np.float32)
    backend = open_backend("ort", path, 1)
    assert backend.run(faces[:0])["logits"].shape == (0, 8)
    with torch.no_grad():
        expected = student(torch.from_numpy(faces)).numpy() / 1.7
    assert np.abs(backend.run(faces)["logits"] - expected).max() < 1e-4


def test_a_student_is_exported_in_those_forms(fp32: Path) -> None:
    refuse_unknown_forms(fp32)
    faces = np.zeros((0, 1, 32, 32), np.float32)
    assert open_backend("ort", fp32, 1).run(faces)["logits"].shape == (0, 8)
