"""Which types an engine's kernels read and write, as TensorRT shows it: whether INT8 is INT8."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

# Words of an inspector's tensor formats, of all releases.
TYPES = {
    "int8": r"\bint8\b",
    "fp16": r"\b(?:fp16|half|float16)\b",
    "fp32": r"\b(?:fp32|float|float32)\b",
}
CONVOLUTIONS = re.compile(r"conv|correlation", re.I)
QUIET = ("signal", "wait", "shape_call", "NoOp")  # they synchronise or measure, and compute nothing


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel. kind: as the inspector calls it; reads, writes: of its first tensors, "int8", "fp16",
    "fp32", or "other"."""

    name: str
    kind: str
    reads: str
    writes: str

    @property
    def convolves(self) -> bool:
        """Tell whether it computes a convolution (or one with what is fused behind it)."""
        named = self.kind != "Reformat" and CONVOLUTIONS.search(self.name)
        return bool(CONVOLUTIONS.search(self.kind) or named)


def _type(tensors: Any) -> str:
    text = json.dumps(tensors[0]) if isinstance(tensors, list) and tensors else str(tensors)
    form = re.search(r'(?:Format/)?Data\s?type"?:\s*"?([^",}\]]+)', text, re.I)
    words = form.group(1) if form else ""
    return next((name for name, word in TYPES.items() if re.search(word, words, re.I)), "other")


def kernels(inspection: str) -> list[Kernel]:
    """Read the inspector's JSON with detailed verbosity, or the lines that the builder logs at its end
    ("Name: ..., LayerType: ..., Inputs: [...], Outputs: [...]"); what cannot be read gives none."""
    try:
        layers: list[Any] = json.loads(inspection)["Layers"]
    except (ValueError, KeyError, TypeError):
        layers = [row for line in inspection.splitlines() if (row := _row(line))]
    return [
        Kernel(
            str(layer["Name"]),
            str(layer.get("LayerType", "")),
            _type(layer.get("Inputs")),
            _type(layer.get("Outputs")),
        )
        for layer in layers
        if isinstance(layer, dict) and layer.get("LayerType") not in QUIET and "Name" in layer
    ]


def _row(line: str) -> dict[str, Any] | None:
    found = re.match(
        r"\s*Name: (?P<Name>.+?), LayerType: (?P<LayerType>\w+), Inputs: (?P<Inputs>\[.*?\])"
        r"(?:, Constants: \[.*?\])?, Outputs: (?P<Outputs>\[.*?\])(?:, TacticName|$)",
        line,
    )
    return found.groupdict() if found else None


def convolution_report(inspection: str) -> str:
    """Return one line: how many kernels, and how many convolutions of which types, "9 int8 -> int8"
    where requantising is fused into them, "int8 -> fp32" where a kernel behind each does it."""
    found = kernels(inspection)
    pairs = [f"{k.reads} -> {k.writes}" for k in found if k.convolves]
    if not pairs:
        return "not shown"
    counted = ", ".join(f"{pairs.count(pair)} {pair}" for pair in dict.fromkeys(pairs))
    return f"{len(found)} kernels, convolutions {counted}"
