"""Float ONNX -> INT8 ONNX, one file a runtime: they want different codes in different places.

CPU        ONNX Runtime's kernels: uint8 activations with a zero point, Relu folded into the range,
           weights by channel with reduced range (AVX2's u8 x s8 products saturate without it)
TENSORRT   explicit Q/DQ as TensorRT reads it: int8, symmetric, before each convolution and linear
           layer and nowhere else, so that its Relu and bias fuse; biases and the head in float, the
           division of the grey levels in the first scale
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

from edge.base.errors import DataError
from export.calibrate import Crops
from export.engine.attention import Attention

COMPUTING = ("Conv", "MatMul", "Gemm")


@dataclass(frozen=True, slots=True)
class Scheme:
    """How one runtime wants INT8. role: of the file in bundle.json; the rest as `quantize_static` takes
    it."""

    role: str
    kinds: tuple[str, ...]
    activations: QuantType
    reduce_range: bool
    options: dict[str, Any]


CPU = Scheme("int8-cpu", (*COMPUTING, "Relu"), QuantType.QUInt8, True, {})
TENSORRT = Scheme(
    "int8-trt",
    COMPUTING,
    QuantType.QInt8,
    False,
    {
        "ActivationSymmetric": True,
        "WeightSymmetric": True,
        "QuantizeBias": False,
        "OpTypesToExcludeOutputQuantization": list(COMPUTING),
    },
)


def attentions(model: onnx.ModelProto) -> list[Attention]:
    """Find each attention of the float file: product, softmax, product."""
    made_by = {name: node for node in model.graph.node for name in node.output}
    read_by = {name: node for node in model.graph.node for name in node.input}
    return [
        Attention(made_by[n.input[0]].name, n.name, read_by[n.output[0]].name)
        for n in model.graph.node
        if n.op_type == "Softmax"
    ]


def computing_nodes(model: onnx.ModelProto) -> list[str]:
    """Return the names of all nodes that can be quantised, in the graph's order."""
    return [node.name for node in model.graph.node if node.op_type in COMPUTING]


class Quantiser:
    """Makes INT8 files of one float file; the crops run through it once."""

    def __init__(self, source: Path, crops: NDArray[np.uint8], folder: Path) -> None:
        """Measure the ranges. crops: (N, C, S, S) uint8, real ones; folder: for drafts. Raises
        DataError where the crops are too few or of another size."""
        self.source, self._crops, self._folder = source, crops, folder
        self.model = onnx.load(str(source))
        self._relu_of = {
            node.input[0]: node.name for node in self.model.graph.node if node.op_type == "Relu"
        }
        self._ranges = folder / f"{source.stem}.ranges.json"
        Crops(crops)
        wanted = [side.dim_value for side in self.model.graph.input[0].type.tensor_type.shape.dim]
        if list(crops.shape[1:]) != wanted[1:]:
            raise DataError(
                f"crops of {crops.shape[1:]} to calibrate on, {source.name} takes {wanted[1:]}; make "
                f"them with the checkpoint's own crop"
            )
        # The CPU's kinds are the wider ones, so that its ranges serve both.
        self._quantise(CPU, folder / "ranges.onnx", computing_nodes(self.model))

    def write(self, scheme: Scheme, target: Path, left: Sequence[str]) -> None:
        """Write `target` with everything in INT8 but `left` (names of nodes)."""
        self._quantise(scheme, target, [n for n in computing_nodes(self.model) if n not in left])

    def write_alone(self, scheme: Scheme, target: Path, node: str) -> None:
        """Write `target` with everything in float but one node."""
        self._quantise(scheme, target, [node])

    def _quantise(self, scheme: Scheme, target: Path, nodes: Sequence[str]) -> None:
        outputs = {node.name: node.output[0] for node in self.model.graph.node}
        wanted = list(nodes)
        if "Relu" in scheme.kinds:
            wanted += [self._relu_of[outputs[n]] for n in nodes if outputs[n] in self._relu_of]
        root, level = logging.getLogger(), logging.getLogger().level
        root.setLevel(logging.ERROR)  # it suggests steps that were taken
        try:
            with tempfile.TemporaryDirectory(dir=self._folder) as folder:
                draft = Path(folder) / "draft.onnx"
                quantize_static(
                    str(self.source),
                    str(draft),
                    Crops(self._crops),
                    quant_format=QuantFormat.QDQ,
                    op_types_to_quantize=list(scheme.kinds),
                    nodes_to_quantize=wanted,
                    per_channel=True,
                    reduce_range=scheme.reduce_range,
                    activation_type=scheme.activations,
                    weight_type=QuantType.QInt8,
                    calibrate_method=CalibrationMethod.MinMax,
                    calibration_cache_path=str(self._ranges),
                    extra_options=scheme.options,
                )
                model = onnx.load(str(draft))
        finally:
            root.setLevel(level)
        drop_foreign_opsets(model)
        if scheme is TENSORRT:
            fold_division(model)
        onnx.checker.check_model(model)
        onnx.save(model, str(target))


def drop_foreign_opsets(model: onnx.ModelProto) -> None:
    """Remove opsets of domains that no node uses: the quantiser leaves some, and TensorRT's parser
    refuses them."""
    used = {node.domain for node in model.graph.node}
    kept = [entry for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def fold_division(model: onnx.ModelProto) -> None:
    """Let the first scale divide the grey levels, in place: where a constant divides what codes are
    made of, the scale of the codes takes it, and the scales of the kernels behind give it back. The
    codes stay. The subtraction before it cannot go the same way: symmetric codes have no zero point,
    and in a kernel's bias it would change what its padding means."""
    graph = model.graph
    made_by = {name: node for node in graph.node for name in node.output}
    constants = {t.name: t for t in graph.initializer}

    def readers(name: str) -> list[onnx.NodeProto]:
        return [node for node in graph.node if name in node.input]

    def scale(name: str, factor: NDArray[Any]) -> None:
        value = numpy_helper.to_array(constants[name]) * factor
        constants[name].CopyFrom(numpy_helper.from_array(value.astype(np.float32), name))

    for node in [n for n in graph.node if n.op_type == "Div" and n.input[1] in constants]:
        divisor = numpy_helper.to_array(constants[node.input[1]])
        coded = readers(node.output[0])
        decoded = [d for q in coded for d in readers(q.output[0])]
        convolutions = [c for d in decoded for c in readers(d.output[0])]
        kinds = ({n.op_type for n in part} for part in (coded, decoded, convolutions))
        if divisor.size != 1 or tuple(kinds) != (
            {"QuantizeLinear"},
            {"DequantizeLinear"},
            {"Conv"},
        ):
            continue
        kernels = {made_by[c.input[1]].input[1] for c in convolutions if c.input[1] in made_by}
        for name in {n.input[1] for n in (*coded, *decoded)}:
            scale(name, divisor)
        for name in kernels:
            scale(name, 1 / divisor)
        for quantise in coded:
            quantise.input[0] = node.input[0]
        graph.node.remove(node)
