"""One float file into INT8 and FP16 files: what is where in them, and what it costs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from distill.models.predict import logits_of
from distill.models.student import Student
from edge.base.errors import DataError, EdgeError
from edge.inference.bundle import SHIPPED
from edge.inference.loader import open_backend
from export.calibrate import balanced
from export.describe import FILES
from export.operator_forms import refuse_unknown_forms
from export.precisions import judge_agreement, same_convolutions, write_all
from export.sensitivity import NodeError, float_nodes, measure
from export.to_fp16 import to_fp16
from export.to_int8 import CPU, TENSORRT, Quantiser, attentions, computing_nodes
from export.to_onnx import fold, head_of
from support.tiny_student import crops


@pytest.fixture(scope="module")
def quantiser(fp32: Path, tmp_path_factory: pytest.TempPathFactory) -> Quantiser:
    return Quantiser(fp32, crops(512), tmp_path_factory.mktemp("drafts"))


@pytest.fixture(scope="module")
def folder(
    fp32: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, list[NodeError]]]:
    """All files, and the sensitivity that shaped them."""
    out = tmp_path_factory.mktemp("bundle")
    (out / FILES["fp32"]).write_bytes(fp32.read_bytes())
    own = Quantiser(out / FILES["fp32"], crops(512), tmp_path_factory.mktemp("own"))
    return out, write_all(own, out, crops(64), lambda line: None)


def load(folder: Path, role: str) -> onnx.ModelProto:
    return onnx.load(str(folder / FILES[role]))


def producers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {name: node for node in model.graph.node for name in node.output}


def test_the_cpu_file_is_uint8_with_reduced_weights_and_float_attention(
    quantiser: Quantiser, tmp_path: Path
) -> None:
    target = tmp_path / "int8.onnx"
    left = [name for a in attentions(quantiser.model) for name in (a.scores, a.values)]
    assert len(left) == 4, "two products in each direction"
    quantiser.write(CPU, target, left)
    model = onnx.load(str(target))
    assert {entry.domain for entry in model.opset_import} == {""}
    kinds = Counter(node.op_type for node in model.graph.node)
    source = Counter(node.op_type for node in quantiser.model.graph.node)
    assert kinds["Conv"] == source["Conv"], "branches are merged in both"
    assert kinds["Relu"] == 0, "each is folded into the range behind its convolution"
    # Reduced range: AVX2's u8 x s8 products saturate on full 8-bit weights.
    weights = [t for t in model.graph.initializer if t.name.endswith("_quantized")]
    codes = [numpy_helper.to_array(t) for t in weights if t.data_type == onnx.TensorProto.INT8]
    assert len(codes) == len(computing_nodes(quantiser.model)) - len(left)
    assert max(np.abs(code.astype(int)).max() for code in codes) <= 64
    points = {t.data_type for t in model.graph.initializer if t.name.endswith("_zero_point")}
    assert points >= {onnx.TensorProto.UINT8, onnx.TensorProto.INT8}
    backend = open_backend("ort", target, 1)
    assert backend.run(crops(5).astype(np.float32))["logits"].shape == (5, 8)


def test_the_tensorrt_file_is_symmetric_and_keeps_bias_and_relu_behind_its_convolution(
    quantiser: Quantiser, tmp_path: Path
) -> None:
    target = tmp_path / "int8.onnx"
    quantiser.write(TENSORRT, target, [])
    model = onnx.load(str(target))
    made = producers(model)
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for name, value in constants.items():
        if name.endswith("_zero_point"):
            assert value.dtype == np.int8, name
            assert not value.any(), name
    for node in model.graph.node:
        if node.op_type == "Conv":
            assert [made[i].op_type for i in node.input[:2]] == ["DequantizeLinear"] * 2
            assert node.input[2] in constants
            assert constants[node.input[2]].dtype == np.float32, "a bias in float"
            [reader] = [n for n in model.graph.node if node.output[0] in n.input]
            assert reader.op_type == "Relu", "no codes between a convolution and its Relu"


def test_int8_is_left_for_fp16_by_casts_alone_and_scales_stay_float32(
    folder: tuple[Path, dict[str, list[NodeError]]],
) -> None:
    out, _ = folder
    model = load(out, "int8-trt")
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in onnx.shape_inference.infer_shapes(model).graph.value_info
    }
    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    for node in model.graph.node:
        if node.op_type in ("Softmax", "LayerNormalization"):
            assert types[node.output[0]] == half, node.name
        if node.op_type in ("Conv", "Sub", "Div"):
            assert types[node.output[0]] == single, node.name
    for tensor in model.graph.initializer:
        if tensor.name.endswith("_scale"):
            assert tensor.data_type == single, "opset 18 knows no other"
    [products] = {
        types[n.output[0]]
        for n in model.graph.node
        if n.name in {name for a in attentions(load(out, "fp32")) for name in a.nodes}
    }
    assert products == half
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.elem_type == single


def test_fp16_computes_in_half_but_takes_and_gives_float32(
    folder: tuple[Path, dict[str, list[NodeError]]],
) -> None:
    out, _ = folder
    exact = logits_of(out / FILES["fp32"], crops(16))
    half = logits_of(out / FILES["fp16-trt"], crops(16))
    assert half.dtype == np.float32
    assert 0 < np.abs(exact - half).max() < 0.02
    weights = [t for t in load(out, "fp16-trt").graph.initializer if t.name.endswith("weight")]
    assert weights
    assert {t.data_type for t in weights} == {onnx.TensorProto.FLOAT16}
    casts = Counter(n.op_type for n in load(out, "fp16-trt").graph.node)["Cast"]
    assert casts == 2, "after the normalisation, and before the logits"


def test_each_node_is_measured_alone_and_the_costly_one_stays_in_float(
    fp32: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.sensitivity.LIMIT", 1e-4)  # an untrained network says little
    # One place of one kernel a thousand times the others: its range leaves the rest no codes.
    model = onnx.load(str(fp32))
    spoiled = computing_nodes(model)[1]
    node = next(n for n in model.graph.node if n.name == spoiled)
    weight = next(t for t in model.graph.initializer if t.name == node.input[1])
    values = numpy_helper.to_array(weight).copy()
    values[0, 0, 0, 0] += 1000 * np.abs(values).max()
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    path = tmp_path / "spoiled.onnx"
    onnx.save(model, str(path))
    quantiser = Quantiser(path, crops(512), tmp_path)
    lines: list[str] = []
    errors = measure(quantiser, CPU, crops(64), lines.append)
    assert [e.node for e in errors] == computing_nodes(model)
    assert len(lines) == len(errors)
    worst = max(
        (e for e in errors if e.stays not in {"attention product", "head"}), key=lambda e: e.kl
    )
    assert worst.stays == "KL above 0.0001"
    assert worst.node in float_nodes(errors)
    assert any(e.stays is None and e.kl <= 1e-4 for e in errors)
    products = {e.node for e in errors if e.stays == "attention product"}
    assert products == {n for a in attentions(model) for n in (a.scores, a.values)}


def test_the_head_stays_in_float_and_takes_constants_in_every_file(
    folder: tuple[Path, dict[str, list[NodeError]]], tmp_path: Path
) -> None:
    # Its codes would put every class's logit on one grid, on which the rare classes are decided.
    out, sensitivity = folder
    constants = np.linspace(-0.5, 0.5, 8)
    for role, name in FILES.items():
        copy = tmp_path / name
        copy.write_bytes((out / name).read_bytes())
        model = load(out, role)
        makers = producers(model)
        head = head_of(model)
        weight = makers.get(head.input[1])
        assert weight is None or weight.op_type == "Cast", "no codes for its weights"
        assert head.op_type == "Gemm"
        before = logits_of(copy, crops(16))
        fold(copy, constants)
        moved = logits_of(copy, crops(16)) - before
        assert np.abs(moved - constants).max() < (5e-3 if "fp16" in role or "trt" in role else 1e-5)
    for errors in sensitivity.values():
        assert [e.stays for e in errors if e.node == head_of(load(out, "fp32")).name] == ["head"]


def test_files_of_one_bundle_have_the_same_convolutions(
    folder: tuple[Path, dict[str, list[NodeError]]], tmp_path: Path
) -> None:
    out, sensitivity = folder
    same_convolutions(out)
    assert set(sensitivity) == {"int8-cpu", "int8-trt"}
    for name in FILES.values():
        (tmp_path / name).write_bytes((out / name).read_bytes())
    model = load(out, "fp16-trt")
    next(n for n in model.graph.node if n.op_type == "Conv").op_type = "ConvTranspose"
    onnx.save(model, str(tmp_path / FILES["fp16-trt"]))
    with pytest.raises(EdgeError, match="differ in convolutions"):
        same_convolutions(tmp_path)


def test_no_file_names_a_path_of_the_machine_that_exported_it(
    folder: tuple[Path, dict[str, list[NodeError]]],
) -> None:
    files = [*folder[0].glob("*.onnx"), *SHIPPED.glob("*.onnx")]
    assert len(files) >= 2 * len(FILES)
    for path in files:
        assert b"stack_trace" not in path.read_bytes(), path
        assert b"student.py" not in path.read_bytes(), path


def test_calibration_is_balanced_and_takes_what_there_is(fp32: Path, tmp_path: Path) -> None:
    labels = np.array([0] * 2000 + [1] * 300 + [2] * 40 + [-1] * 500)
    chosen = balanced(labels, 3, 600)
    assert np.bincount(labels[chosen]).tolist() == [280, 280, 40]
    few = np.array([0, 0, -1, 2])
    assert balanced(few, 3, 600).tolist() == [0, 1, 3]
    with pytest.raises(
        DataError, match="no labelled training image to calibrate on; give pictures"
    ):
        balanced(labels[2340:], 3, 600)
    with pytest.raises(DataError, match="no crop to calibrate on"):
        Quantiser(fp32, crops(0), tmp_path)
    Quantiser(fp32, crops(1), tmp_path).write(CPU, tmp_path / "int8.onnx", [])
    kinds = {node.op_type for node in onnx.load(str(tmp_path / "int8.onnx")).graph.node}
    assert "QuantizeLinear" in kinds
    with pytest.raises(DataError, match=r"crops of \(1, 16, 16\).*takes \[1, 32, 32\]"):
        Quantiser(fp32, crops(512)[:, :, :16, :16], tmp_path)


def test_a_file_out_of_tolerance_is_refused_by_name(fp32: Path, tmp_path: Path) -> None:
    from export.agree import compare

    exact = np.eye(2, dtype=np.float32)[[0] * 100]
    other = exact.copy()
    other[:4] = other[:4, ::-1]
    truth = np.zeros(100, np.int64)
    fine = compare(exact, exact, truth, ("a", "b"))
    stray = compare(exact, other, truth, ("a", "b"))
    lines: list[str] = []
    assert judge_agreement({"int8-cpu": fine}, 100, False, lines.append) == []
    assert judge_agreement({"int8-cpu": fine}, 100, True, lines.append) == []
    assert lines == []
    both = {"int8-cpu": fine, "int8-trt": stray}
    with pytest.raises(EdgeError, match=r"int8-trt strays too far .*; calibrate on more data"):
        judge_agreement(both, 3000, False, lines.append)
    with pytest.raises(EdgeError, match=r"one of 100 images is 1\.0 points\); judge on more data"):
        judge_agreement(both, 100, False, lines.append)
    assert judge_agreement(both, 3000, True, lines.append) == ["int8-trt"]
    assert lines == [
        "warning: int8-trt strays too far from float (0.5 points, 3 % of decisions allowed); written "
        "all the same, by --force, and the card says so"
    ]


def test_halving_leaves_the_file_it_read_alone(fp32: Path, tmp_path: Path) -> None:
    before = fp32.read_bytes()
    to_fp16(fp32, tmp_path / "half.onnx")
    assert fp32.read_bytes() == before


def test_the_division_of_grey_levels_goes_into_the_first_scale(
    folder: tuple[Path, dict[str, list[NodeError]]], quantiser: Quantiser, tmp_path: Path
) -> None:
    out, _ = folder
    model = load(out, "int8-trt")
    kinds = Counter(node.op_type for node in model.graph.node)
    assert (kinds["Sub"], kinds["Div"]) == (1, 0)
    # The same codes: with the division put back, the answers are the same.
    kept = [name for a in attentions(quantiser.model) for name in (a.scores, a.values)]
    quantiser.write(TENSORRT, tmp_path / "folded.onnx", kept)
    folded = onnx.load(str(tmp_path / "folded.onnx"))
    divided = onnx.load(str(tmp_path / "folded.onnx"))
    [first] = [n for n in divided.graph.node if n.op_type == "Conv"][:1]
    decode = producers(divided)[first.input[0]]
    weights = producers(divided)[first.input[1]]
    deviation = np.float32(61.8)
    for tensor in divided.graph.initializer:
        if tensor.name == decode.input[1]:
            tensor.CopyFrom(
                numpy_helper.from_array(numpy_helper.to_array(tensor) / deviation, tensor.name)
            )
        if tensor.name == weights.input[1]:
            tensor.CopyFrom(
                numpy_helper.from_array(numpy_helper.to_array(tensor) * deviation, tensor.name)
            )
    divided.graph.initializer.append(numpy_helper.from_array(deviation, "deviation"))
    quantise = producers(divided)[decode.input[0]]
    node = onnx.helper.make_node("Div", [quantise.input[0], "deviation"], ["divided"])
    divided.graph.node.insert(list(divided.graph.node).index(quantise), node)
    quantise.input[0] = "divided"
    onnx.save(divided, str(tmp_path / "divided.onnx"))
    a, b = (logits_of(tmp_path / f"{name}.onnx", crops(32)) for name in ("folded", "divided"))
    assert np.abs(a - b).max() < 1e-3
    assert folded.graph.node[0].op_type != "Div"


@pytest.mark.slow
def test_every_form_of_student_is_quantised_with_attention_and_head_in_float(
    other_form: tuple[Student, Path], tmp_path: Path
) -> None:
    student, source = other_form
    (tmp_path / FILES["fp32"]).write_bytes(source.read_bytes())
    own = Quantiser(tmp_path / FILES["fp32"], crops(512), tmp_path)
    looks = attentions(own.model)
    assert len(looks) == student.config.attentions
    errors = write_all(own, tmp_path, crops(64), lambda line: None)
    head = head_of(own.model).name
    products = {name for look in looks for name in (look.scores, look.values)}
    for role, of_role in errors.items():
        kept = {error.node: error.stays for error in of_role if error.stays}
        assert kept[head] == "head", role
        assert {n for n, why in kept.items() if why == "attention product"} == products, role
    refuse_unknown_forms(tmp_path / FILES["int8-trt"])
    refuse_unknown_forms(tmp_path / FILES["fp16-trt"])
    exact = logits_of(tmp_path / FILES["fp32"], crops(64))
    constants = np.linspace(-1, 1, 8)
    for role in ("int8-cpu", "int8-trt", "fp16-trt"):
        path = tmp_path / FILES[role]
        plain = logits_of(path, crops(64))
        # An untrained student's logits differ little from face to face: closer than any two of them.
        assert np.abs(plain - exact).max() < 0.25 * np.ptp(exact, axis=1).max(), role
        model = onnx.load(str(path))
        weights = next(t for t in model.graph.initializer if t.name == head_of(model).input[1])
        assert weights.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16), role
        fold(path, constants)
        assert logits_of(path, crops(64)) == pytest.approx(plain + constants, abs=5e-3), role
