"""Whether TensorRT made one kernel of each attention, as its engine inspector shows."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

FUSED_KERNELS = ("mha", "flash", "fused_attention")


@dataclass(frozen=True, slots=True)
class Attention:
    """Names of one attention's nodes in the ONNX file: first product, softmax, second product."""

    scores: str
    softmax: str
    values: str

    @property
    def nodes(self) -> tuple[str, str, str]:
        """Return the three names in the graph's order."""
        return self.scores, self.softmax, self.values


def fusion_report(inspection: str, attentions: list[Attention]) -> str:
    """Return one line from the inspector's JSON: for each attention "fused", "split" over so many
    kernels, or "not shown".

    Engines keep the names of the ONNX nodes in a layer's Name or Metadata; a fused kernel also bears
    mha or flash in the name of its tactic.
    """
    try:
        layers: list[Any] = json.loads(inspection)["Layers"]
    except (ValueError, KeyError, TypeError):
        return "not shown: the inspector's answer cannot be read"
    texts = [layer if isinstance(layer, str) else json.dumps(layer) for layer in layers]
    seen = []
    for attention in attentions:
        holding = [
            (text, sum(_names(text, node) for node in attention.nodes))
            for text in texts
            if any(_names(text, node) for node in attention.nodes)
        ]
        if not holding:
            kernels = [t for t in texts if any(k in t.lower() for k in FUSED_KERNELS)]
            seen.append("fused" if kernels else "not shown")
        elif len(holding) == 1 and holding[0][1] == len(attention.nodes):
            seen.append("fused")
        else:
            seen.append(f"split over {len(holding)} kernels")
    return "; ".join(f"{a.softmax}: {s}" for a, s in zip(attentions, seen, strict=True))


def _names(text: str, node: str) -> bool:
    """Tell whether a layer's text holds this node's whole name, not only one that begins like it."""
    start = text.find(node)
    while start >= 0:
        end = start + len(node)
        if not (end < len(text) and (text[end].isalnum() or text[end] == "_")):
            return True
        start = text.find(node, start + 1)
    return False
