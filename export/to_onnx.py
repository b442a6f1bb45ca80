"""Student -> one ONNX file: branches merged, normalisation and temperature inside the graph."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import nn

from distill.models.student import Student, reparameterise
from edge.base.errors import EdgeError
from export.operator_forms import refuse_unknown_forms, write_portably

# torch's exporter translates for 18 and later: asked for 17 it writes 18 without a word.
OPSET = 18
INPUT, OUTPUT = "faces", "logits"
SHAPE_OPS = {"Shape", "Gather", "ConstantOfShape", "Range", "Expand", "If", "Loop"}


@torch.no_grad()
def deployed(student: Student, temperature: float) -> Student:
    """Return the student as it ships: branches merged, and its head divided by the temperature."""
    merged = reparameterise(student)
    merged.head.weight.div_(temperature)
    merged.head.bias.div_(temperature)
    return merged


def export_onnx(student: Student, path: Path) -> None:
    """Write `faces` (N, C, S, S) float32 0..255 -> `logits` (N, K), batch open, weights inside.

    student: as `deployed` gives it. Raises EdgeError where the file is not what was asked for.
    """
    config = student.config
    write_onnx(student, (config.channels, config.size, config.size), path)
    model = onnx.load(str(path))
    strip_metadata(model)
    write_portably(model)
    onnx.save(model, str(path))
    check_graph(path, config.attentions)


def write_onnx(network: nn.Module, image: tuple[int, int, int], path: Path) -> None:
    """Write any network of one input as `faces` -> `logits`, batch open, weights inside.

    image: (C, S, S).
    """
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own deprecations
        torch.onnx.export(
            network,
            (torch.zeros(2, *image),),
            str(path),
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=4096)},),
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def strip_metadata(model: onnx.ModelProto) -> None:
    """Remove the exporter's notes: they hold stack traces with paths of the machine that exported, and
    no runtime reads them."""
    graph = model.graph
    parts = [model, graph, *graph.node, *graph.input, *graph.output]
    for part in [*parts, *graph.value_info, *graph.initializer]:
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


def check_graph(path: Path, attentions: int) -> None:
    """Raise EdgeError unless the file holds its weights, the asked opset, an open batch and that many
    attentions, no shape arithmetic, and only forms that every TensorRT reads."""
    model = onnx.load(str(path))
    onnx.checker.check_model(model, full_check=True)
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    if opsets != {"": OPSET}:
        raise EdgeError(f"{path.name}: opsets {opsets}, asked for {OPSET}; pin the listed torch")
    if any(node.metadata_props or node.doc_string for node in model.graph.node):
        raise EdgeError(f"{path.name}: holds the exporter's notes, with paths of this machine")
    if any(t.data_location == onnx.TensorProto.EXTERNAL for t in model.graph.initializer):
        raise EdgeError(f"{path.name}: weights lie outside the file")
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    if batch.dim_value:
        raise EdgeError(f"{path.name}: the batch is fixed at {batch.dim_value}")
    kinds = [node.op_type for node in model.graph.node]
    if found := SHAPE_OPS & set(kinds):
        raise EdgeError(f"{path.name}: shape arithmetic in the graph: {sorted(found)}")
    if kinds.count("Softmax") != attentions:
        raise EdgeError(
            f"{path.name}: {kinds.count('Softmax')} Softmax, the fused block has {attentions}"
        )
    refuse_unknown_forms(path)


def head_of(model: onnx.ModelProto) -> onnx.NodeProto:
    """Return the linear layer that makes the logits."""
    made_by: dict[str, onnx.NodeProto] = {
        name: node for node in model.graph.node for name in node.output
    }
    node = made_by[OUTPUT]
    while node.op_type == "Cast":  # of an FP16 file
        node = made_by[node.input[0]]
    return node


def fold(path: Path, constants: NDArray[np.float64]) -> None:
    """Add constants (K,) to the logits of a file of any precision, in its head's bias."""
    model = onnx.load(str(path))
    name = head_of(model).input[2]
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    held = numpy_helper.to_array(bias)
    bias.CopyFrom(numpy_helper.from_array((held + constants).astype(held.dtype), name))
    onnx.save(model, str(path))
