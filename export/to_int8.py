"""Float ONNX > INT8 ONNX for ONNX Runtime's CPU kernels, calibrated on real crops."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)

from edge.errors import DataError
from export.to_onnx import INPUT

LEAST_CROPS = 512
CALIBRATION_BATCH = 32


class _Crops(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self._batches: Iterator[NDArray[np.uint8]] = iter(
            [pixels[i : i + CALIBRATION_BATCH] for i in range(0, len(pixels), CALIBRATION_BATCH)]
        )

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch.astype(np.float32)}


def balanced(
    labels: NDArray[np.int64], classes: int, wanted: int, seed: int = 0
) -> NDArray[np.int64]:
    """Places of about `wanted` pictures, equally many a class where a class has that many.

    labels: (N,), -1 for none. Raises DataError where fewer than LEAST_CROPS can be had.
    """
    rng = np.random.default_rng(seed)
    pools = [rng.permutation(np.flatnonzero(labels == k)) for k in range(classes)]
    chosen: list[int] = []
    # Round robin: a rare class gives all it has, the others share the rest.
    for turn in range(max((len(pool) for pool in pools), default=0)):
        for pool in pools:
            if turn < len(pool) and len(chosen) < wanted:
                chosen.append(int(pool[turn]))
    if len(chosen) < LEAST_CROPS:
        raise DataError(
            f"{len(chosen)} labelled crops to calibrate on, at least {LEAST_CROPS} are needed; "
            f"give more data"
        )
    return np.array(sorted(chosen), dtype=np.int64)


def float_nodes(model: onnx.ModelProto) -> list[str]:
    """Nodes that stay in float: both products of the attention (their inputs are both activations),
    which INT8 kernels serve badly and which cost under 2 % of the multiply-adds."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [
        node.name
        for node in model.graph.node
        if node.op_type == "MatMul" and not constants & set(node.input)
    ]


def quantise_for_cpu(source: Path, target: Path, crops: NDArray[np.uint8]) -> list[str]:
    """Write the INT8 file for ONNX Runtime on a CPU; returns the nodes left in float.

    crops: (N, C, S, S) uint8, real ones, N at least LEAST_CROPS. Activations uint8 asymmetric,
    weights int8 by channel with reduced range (AVX2's u8 x s8 products saturate without it).
    """
    if len(crops) < LEAST_CROPS:
        raise DataError(f"{len(crops)} crops to calibrate on, at least {LEAST_CROPS} are needed")
    left = float_nodes(onnx.load(str(source)))
    logging.getLogger().setLevel(logging.ERROR)  # the quantiser suggests steps that were taken
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / "draft.onnx"
        quantize_static(
            str(source),
            str(draft),
            _Crops(crops),
            quant_format=QuantFormat.QDQ,
            # Relu among them: without it a convolution's range is spent on what Relu throws away.
            op_types_to_quantize=["Conv", "Relu", "MatMul", "Gemm"],
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=left,
            calibrate_method=CalibrationMethod.MinMax,
        )
        model = onnx.load(str(draft))
    # The quantiser leaves opsets of other makers behind, which TensorRT's parser refuses.
    used = {node.domain for node in model.graph.node}
    kept = [entry for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    onnx.checker.check_model(model)
    onnx.save(model, str(target))
    return left
