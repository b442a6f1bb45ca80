"""Stop a run at the step where it diverges, before anything that is not finite is kept.

There is no loss scaling (bf16 needs none), so no step with NaN or infinity is ever a legitimate one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import nn

from edge.base.errors import EdgeError


def explain(losses: Mapping[str, float], norm: float) -> str:
    """Name what is not finite of one step's losses and of its gradients' norm; "" where all is."""
    for name, value in losses.items():
        if not math.isfinite(value):
            return f"loss '{name}' is {value}"
    return "" if math.isfinite(norm) else f"the gradients' norm is {norm}"


def broken_weights(network: nn.Module) -> str:
    """Name the first of a network's weights and statistics that are not finite; "" where all are."""
    for name, value in network.state_dict().items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            return f"'{name}' is not finite"
    return ""


def diverged(what: str, epoch: int, step: int | None, rate: float) -> EdgeError:
    """Return the error that says where a run diverged and what to do.

    step: of the epoch, counted from 0, None at its end; rate: the recipe's."""
    where = f"at the end of epoch {epoch}" if step is None else f"in epoch {epoch}, step {step}"
    if epoch == 0 and step == 0:
        do = "no step was taken, so check what it starts from: the files of --start, --teacher, --face"
    else:
        do = f"lower training.learning_rate ({rate:.3g}) and train into another --out"
    kept = (
        f"last.pt is kept as of epoch {epoch - 1}, best.pt beside it"
        if epoch
        else "no checkpoint was written"
    )
    return EdgeError(f"training diverged {where}: {what}; {do}; {kept}")
