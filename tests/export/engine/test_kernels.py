"""Kernels and their types: read from the inspector's words, and counted in NVIDIA's own builder's."""

from __future__ import annotations

import importlib.util
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge.inference.bundle import SHIPPED
from export.describe import FILES
from export.engine.kernels import Kernel, convolution_report, kernels


def layer(name: str, kind: str, reads: str, writes: str) -> dict[str, Any]:
    """A layer as `IEngineInspector` gives it."""
    tensor = {"Name": "t", "Location": "Device", "Dimensions": [8, 32, 64, 64]}
    return {
        "Name": name,
        "LayerType": kind,
        "Inputs": [{**tensor, "Format/Datatype": reads}],
        "Outputs": [{**tensor, "Format/Datatype": writes}],
    }


CODES = "Thirty-two wide channel vectorized row major Int8 format"
LINEAR = "Row major linear FP32"


def test_types_of_a_device_s_inspector() -> None:
    shown = json.dumps(
        {
            "Layers": [
                layer("Reformatting CopyNode to node_conv2d", "Reformat", LINEAR, CODES),
                layer("node_conv2d + node_relu", "CaskConvolution", CODES, CODES),
                layer("node_conv2d_1 + node_relu_1", "CaskConvolution", CODES, CODES),
                layer("node_conv2d_8", "CaskConvolution", CODES, "Row major linear FP16 format"),
                layer("__mye1_wait", "wait", LINEAR, LINEAR),
            ]
        }
    )
    assert convolution_report(shown) == "4 kernels, convolutions 2 int8 -> int8, 1 int8 -> fp16"


@pytest.mark.parametrize("shown", ["", "no JSON", "[]", '{"Layers": ["a name alone"]}'])
def test_an_inspector_that_shows_nothing_is_said_to(shown: str) -> None:
    assert convolution_report(shown) == "not shown"


def test_types_of_the_builder_s_own_words() -> None:
    text = (
        "VERBOSE Layers:\n"
        "Name: node_conv2d_myl0_2, LayerType: correlation, Inputs: [ { Name: a, Dimensions: "
        "[-1,4,64,64], Strides: [1,2,3,4], Datatype: Int8, Format: (Linear) Row major }], Constants: "
        "[ { Name: b, Dimensions: [1], Datatype: Int8 }], Outputs: [ { Name: c, Dimensions: "
        "[-1,32,64,64], Datatype: Float, Format: (Linear) Row major }], TacticName: x, StreamId: 0\n"
        "Name: w, LayerType: wait, Inputs: [], Outputs: [], TacticName: , StreamId: 0\n"
    )
    assert kernels(text) == [Kernel("node_conv2d_myl0_2", "correlation", "int8", "fp32")]


def built(path: Path) -> list[Kernel]:
    """What NVIDIA's strongly typed builder makes of a file, for compute capability 8.6, with no GPU."""
    if importlib.util.find_spec("tensorrt_rtx_bindings") is None:
        pytest.skip("needs NVIDIA's tensorrt-rtx packages: make tensorrt")
    import tensorrt_rtx_bindings as trt

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            self.lines.append(message)

    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    assert parser.parse(path.read_bytes()), log.lines[-1]
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    source = network.get_input(0)
    profile = builder.create_optimization_profile()
    profile.set_shape(source.name, *((n, *tuple(source.shape)[1:]) for n in (1, 8, 32)))
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config) is not None, log.lines[-1]
    return kernels("\n".join(log.lines))


@cache
def shipped(role: str) -> list[Kernel]:
    return built(SHIPPED / FILES[role])


def nodes(role: str, kind: str) -> list[str]:
    """Names of a shipped file's nodes of one kind."""
    graph = onnx.load(str(SHIPPED / FILES[role])).graph
    return [node.name for node in graph.node if node.op_type == kind]


def types(found: list[Kernel]) -> set[tuple[str, str]]:
    return {(k.reads, k.writes) for k in found if k.convolves}


def textbook(folder: Path) -> Path:
    """Two convolutions between codes, each as NVIDIA's documents draw it: Q/DQ, weights by channel, no
    bias, no Relu, nothing else."""
    rng = np.random.default_rng(0)
    constants: list[onnx.TensorProto] = []
    nodes: list[onnx.NodeProto] = []

    def constant(name: str, value: object) -> str:
        constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    scale, zero = constant("scale", np.float32(0.05)), constant("zero", np.int8(0))
    scales = constant("scales", np.full(64, 0.01, np.float32))
    zeros = constant("zeros", np.zeros(64, np.int8))

    def codes(name: str) -> str:
        nodes.append(helper.make_node("QuantizeLinear", [name, scale, zero], [f"{name}_q"]))
        nodes.append(
            helper.make_node("DequantizeLinear", [f"{name}_q", scale, zero], [f"{name}_d"])
        )
        return f"{name}_d"

    name = "faces"
    for index in range(2):
        kernel = constant(f"w{index}", rng.integers(-127, 128, (64, 64, 3, 3)).astype(np.int8))
        nodes.append(
            helper.make_node("DequantizeLinear", [kernel, scales, zeros], [f"{kernel}_d"], axis=0)
        )
        inputs = [codes(name), f"{kernel}_d"]
        name = f"c{index}"
        nodes.append(helper.make_node("Conv", inputs, [name], f"conv_{index}", pads=[1, 1, 1, 1]))
    nodes.append(helper.make_node("Identity", [codes(name)], ["y"]))
    sides: list[str | int | None] = ["N", 64, 16, 16]
    graph = helper.make_graph(
        nodes,
        "textbook",
        [helper.make_tensor_value_info("faces", TensorProto.FLOAT, sides)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, sides)],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    path = folder / "textbook.onnx"
    onnx.save(model, str(path))
    return path


def test_every_convolution_of_the_int8_file_reads_codes() -> None:
    convolutions = [k for k in shipped("int8-trt") if k.convolves]
    assert len(convolutions) == len(nodes("int8-trt", "Conv"))
    assert {k.reads for k in convolutions} == {"int8"}


def test_the_int8_file_is_fused_as_far_as_the_textbook_form(tmp_path: Path) -> None:
    """Whether a convolution writes codes is the builder's to do: this one does it for no form."""
    assert types(shipped("int8-trt")) == types(built(textbook(tmp_path)))


def test_codes_cost_one_kernel_a_convolution_at_most_and_the_head_none() -> None:
    int8, fp16 = shipped("int8-trt"), shipped("fp16-trt")
    assert types(fp16) == {("fp16", "fp16")}
    assert len(int8) <= len(fp16) + len(nodes("int8-trt", "Conv"))
    (head,) = nodes("int8-trt", "Gemm")
    products = [k for k in int8 if k.reads == "int8" and not k.convolves]
    assert products
    assert all("MatMul" in k.name and head not in k.name for k in products)
