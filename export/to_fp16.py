"""Float32 ONNX -> FP16 where TensorRT shall compute in FP16, between Cast nodes.

TensorRT from 10.0 on is told to compute in the file's own types. 8.6, which knows weak typing alone,
chooses between FP16 and float32 itself: the file is right for it too, and its types are a hint.
Quantise and dequantise keep their float32 scales, which every opset since 13 knows.
"""

from __future__ import annotations

import logging
from pathlib import Path

import onnx
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from export.to_int8 import COMPUTING, drop_foreign_opsets

NORMALISING = ("Sub", "Div")  # of the grey levels: once a pixel, and exact


def to_fp16(source: Path, target: Path) -> None:
    """Convert everything to FP16 but the image's normalisation and the logits."""
    model = onnx.load(str(source))
    _convert(model, target, [n.name for n in model.graph.node if n.op_type in NORMALISING])


def rest_to_fp16(source: Path, target: Path) -> None:
    """Convert what an INT8 file leaves in float (the attention, its norms and sums) to FP16."""
    model = onnx.load(str(source))
    _convert(model, target, _around_int8(model))


def _around_int8(model: onnx.ModelProto) -> list[str]:
    """Return the nodes that stay in float32: normalisation, Q/DQ, what INT8 kernels compute, and the
    Relu or bias behind it, which they absorb."""
    made_by = {name: node for node in model.graph.node for name in node.output}
    kept: set[str] = set()
    for node in model.graph.node:
        sources = [made_by[name] for name in node.input if name in made_by]
        quantised = node.op_type in COMPUTING and all(
            s.op_type == "DequantizeLinear" for s in sources
        )
        absorbed = (
            node.op_type in ("Relu", "Add")
            and len(sources) == 1
            and sources[0].op_type in COMPUTING
            and sources[0].name in kept
        )
        moves = node.op_type in ("QuantizeLinear", "DequantizeLinear", *NORMALISING)
        if quantised or absorbed or moves:
            kept.add(node.name)
    return sorted(kept)


def _convert(model: onnx.ModelProto, target: Path, kept: list[str]) -> None:
    # The exporter lists its weights here too, which the converter would take for FP16 values; it
    # infers these entries again by itself.
    del model.graph.value_info[:]
    root, level = logging.getLogger(), logging.getLogger().level
    root.setLevel(logging.ERROR)  # it warns of weights below FP16's smallest normal number
    try:
        half = convert_float_to_float16(
            model, keep_io_types=True, op_block_list=[], node_block_list=kept
        )
    finally:
        root.setLevel(level)
    # The converter casts the image to FP16 and back, and appends nodes in no order.
    graph = OnnxModel(half)
    graph.remove_cascaded_cast_nodes()
    graph.remove_useless_cast_nodes()
    graph.prune_graph()
    graph.topological_sort()
    half = graph.model
    drop_foreign_opsets(half)
    onnx.checker.check_model(half)
    onnx.save(half, str(target))
