"""What each node costs when it alone is quantised, which decides what stays in float."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.models.predict import logits_of
from distill.progress import Progress
from export.agree import divergence
from export.to_int8 import Quantiser, Scheme, attentions, computing_nodes
from export.to_onnx import head_of

# Mean KL divergence, nats, that a single node may cost: half of what INT8 of the whole network is
# allowed to in practice (0.002 on FER+, 2 % of decisions).
LIMIT = 0.001


@dataclass(frozen=True, slots=True)
class NodeError:
    """The cost of quantising one node alone.

    kl: nats, mean over the crops; changed: share of decisions, 0..1; stays: why the node stays in
    float, None where it is quantised.
    """

    node: str
    kind: str
    kl: float
    changed: float
    stays: str | None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as bundle.json stores them, rounded to six decimals."""
        return {k: round(v, 6) if isinstance(v, float) else v for k, v in asdict(self).items()}


def measure(
    quantiser: Quantiser,
    scheme: Scheme,
    crops: NDArray[np.uint8],
    progress: Callable[[str], None],
) -> list[NodeError]:
    """Measure every node that could be quantised, in the graph's order. crops: (N, C, S, S) uint8."""
    model = quantiser.model
    kinds = {node.name: node.op_type for node in model.graph.node}
    products = {name for a in attentions(model) for name in (a.scores, a.values)}
    exact = logits_of(quantiser.source, crops)
    head = head_of(model).name
    errors = []
    nodes = computing_nodes(model)
    with (
        tempfile.TemporaryDirectory() as folder,
        Progress(f"{scheme.role}, nodes alone", len(nodes), "nodes") as bar,
    ):
        for node in nodes:
            file = Path(folder) / "alone.onnx"
            quantiser.write_alone(scheme, file, node)
            kl, changed = divergence(exact, logits_of(file, crops))
            stays = None
            if node in products:
                stays = "attention product"
            elif node == head:
                # A thousand products, and codes would put each class's logit on a grid of tenths;
                # TensorRT would need a kernel more to make them.
                stays = "head"
            elif not kl <= LIMIT:
                stays = f"KL above {LIMIT}"
            errors.append(NodeError(node, kinds[node], kl, changed, stays))
            progress(row(errors[-1]))
            bar.advance()
    return errors


def row(error: NodeError) -> str:
    """Return one line for people."""
    where = "float: " + error.stays if error.stays else "int8"
    return (
        f"  {error.node:<20} {error.kind:<7} KL {error.kl:.6f}  changed "
        f"{100 * error.changed:5.2f} %  {where}"
    )


def float_nodes(errors: list[NodeError]) -> list[str]:
    """Return the names of the nodes that stay in float."""
    return [error.node for error in errors if error.stays]
