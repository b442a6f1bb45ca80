"""Which ONNX operators may stand in a file for TensorRT, and in which form: what the parsers of all its
releases from 8.6 on read alike.

8.6 knows opset 17. It takes a newer file and passes over what a newer operator says in a new way:
ReduceMean's axes became an input in opset 18, and 8.6 reduces every axis (TensorRT issue 3467). So
the list holds forms, not names alone. Source: onnx-tensorrt's importers and operator table, 8.6.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edge.base.errors import EdgeError

OPSET = 17  # the newest whose operators 8.6 reads


@dataclass(frozen=True, slots=True)
class Form:
    """inputs: how many at most; constant: those that must be in the file; weights: those that may also
    be dequantised from it; zero: those that must hold int8 zeros; positive: shapes without a 0, which
    parsers read in two ways; attributes: the only values of these, others are free."""

    inputs: int
    constant: tuple[int, ...] = ()
    weights: tuple[int, ...] = ()
    zero: tuple[int, ...] = ()
    positive: tuple[int, ...] = ()
    attributes: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


FORMS: Mapping[str, Form] = {
    "Add": Form(2),
    "Cast": Form(1, attributes={"to": (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)}),
    "Concat": Form(8),
    "Conv": Form(3, weights=(1, 2), attributes={"auto_pad": (b"NOTSET",)}),
    "DequantizeLinear": Form(3, constant=(1, 2), zero=(2,)),
    "Div": Form(2),
    "Flatten": Form(1, attributes={"axis": (1,)}),
    "Gemm": Form(3, weights=(1, 2)),
    "GlobalAveragePool": Form(1),
    "LayerNormalization": Form(3, constant=(1, 2), attributes={"stash_type": (1,)}),
    "MatMul": Form(2),
    "Mul": Form(2),
    "QuantizeLinear": Form(3, constant=(1, 2), zero=(2,)),
    "Relu": Form(1),
    "Reshape": Form(2, constant=(1,), positive=(1,), attributes={"allowzero": (0,)}),
    "Softmax": Form(1),
    "Sub": Form(2),
    "Transpose": Form(1),
}


def unknown_forms(model: onnx.ModelProto) -> list[str]:
    """Return what TensorRT 8.6 does not read or reads otherwise, one line a node: its name and why."""
    opset = next(e.version for e in model.opset_import if e.domain == "")
    constants = {t.name: t for t in model.graph.initializer}
    made_by = {name: node for node in model.graph.node for name in node.output}
    found = []
    for node in model.graph.node:
        form = FORMS.get(node.op_type) if node.domain == "" else None
        if form is None:
            found.append(f"{node.name}: {node.op_type} is none of the operators that are listed")
            continue
        version = onnx.defs.get_schema(node.op_type, opset).since_version
        if version > OPSET:
            found.append(f"{node.name}: {node.op_type} as of opset {version}")
        found += [f"{node.name}: {why}" for why in _faults(node, form, constants, made_by)]
    return found


def _faults(
    node: onnx.NodeProto,
    form: Form,
    constants: Mapping[str, onnx.TensorProto],
    made_by: Mapping[str, onnx.NodeProto],
) -> list[str]:
    faults = []
    if len(node.input) > form.inputs:
        faults.append(f"{len(node.input)} inputs")
    for index, name in enumerate(node.input):
        made = made_by.get(name)
        stored = name in constants or (
            index in form.weights
            and made is not None
            and made.op_type == "DequantizeLinear"
            and made.input[0] in constants
        )
        if index in (*form.constant, *form.weights) and not stored:
            faults.append(f"input {index} is computed")
        elif index in form.zero and not _is_int8_zero(constants[name]):
            faults.append(f"input {index} is not the zero point 0 of int8")
        elif index in form.positive and 0 in numpy_helper.to_array(constants[name]):
            faults.append(f"input {index} holds a 0")
    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        if attribute.name in form.attributes and value not in form.attributes[attribute.name]:
            faults.append(f"{attribute.name} {value!r}")
    return faults


def _is_int8_zero(tensor: onnx.TensorProto) -> bool:
    values = numpy_helper.to_array(tensor)
    return bool(values.dtype == np.int8 and not values.any())


def refuse_unknown_forms(path: Path) -> None:
    """Raise EdgeError where a file for TensorRT holds a form that not all its releases read."""
    if found := unknown_forms(onnx.load(str(path))):
        raise EdgeError(
            f"{path.name}: TensorRT 8.6 would not read {found[0]} ({len(found)} such nodes); export "
            f"with the listed torch and onnxruntime"
        )


def write_portably(model: onnx.ModelProto) -> None:
    """Put what torch's exporter writes into forms that all TensorRT releases read, in place: the mean
    over a picture's places as GlobalAveragePool (and Flatten), Reshape without `allowzero`."""
    graph = model.graph
    constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    nodes = []
    for node in graph.node:
        if node.op_type == "ReduceMean" and _is_over_places(node, constants):
            nodes += _pooling(node)
            continue
        if node.op_type == "Reshape" and node.input[1] in constants:
            shape = constants[node.input[1]]
            for attribute in list(node.attribute):
                if attribute.name == "allowzero" and 0 not in shape:
                    node.attribute.remove(attribute)
        nodes.append(node)
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)
    used = {name for node in graph.node for name in node.input}
    unused = [tensor for tensor in graph.initializer if tensor.name not in used]
    for tensor in unused:
        graph.initializer.remove(tensor)


def _is_over_places(node: onnx.NodeProto, constants: Mapping[str, Any]) -> bool:
    return len(node.input) == 2 and sorted(constants.get(node.input[1], ())) in ([2, 3], [-2, -1])


def _pooling(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    keeps = next((a.i for a in node.attribute if a.name == "keepdims"), 1)
    source, target = node.input[0], node.output[0]
    if keeps:
        return [helper.make_node("GlobalAveragePool", [source], [target], node.name)]
    pooled = f"{target}_pooled"
    return [
        helper.make_node("GlobalAveragePool", [source], [pooled], f"{node.name}_pool"),
        helper.make_node("Flatten", [pooled], [target], node.name, axis=1),
    ]
