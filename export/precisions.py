"""fp32.onnx -> the bundle's other files, each compared with float."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from distill.models.predict import logits_of
from distill.progress import Progress
from edge.base.errors import EdgeError
from export.agree import Agreement, compare
from export.describe import FILES
from export.operator_forms import refuse_unknown_forms
from export.sensitivity import NodeError, float_nodes, measure
from export.to_fp16 import rest_to_fp16, to_fp16
from export.to_int8 import CPU, TENSORRT, Quantiser

Say = Callable[[str], None]


def write_all(
    quantiser: Quantiser, folder: Path, crops: NDArray[np.uint8], say: Say
) -> dict[str, list[NodeError]]:
    """Write int8-cpu, int8-trt and fp16-trt next to fp32; return each INT8 role's sensitivity by node.

    crops: (N, C, S, S) uint8, which the sensitivity is measured on.
    """
    source = folder / FILES["fp32"]
    errors = {}
    for scheme in (CPU, TENSORRT):
        say(f"{scheme.role}: each node quantised alone, {len(crops)} calibration crops")
        errors[scheme.role] = measure(quantiser, scheme, crops, say)
        left = float_nodes(errors[scheme.role])
        say(f"{scheme.role}: {len(left)} of {len(errors[scheme.role])} nodes stay in float")
        with tempfile.TemporaryDirectory() as drafts:
            draft = Path(drafts) / "int8.onnx"
            quantiser.write(scheme, draft, left)
            if scheme is TENSORRT:
                rest_to_fp16(draft, folder / FILES[scheme.role])
            else:
                (folder / FILES[scheme.role]).write_bytes(draft.read_bytes())
    to_fp16(source, folder / FILES["fp16-trt"])
    for role in ("int8-trt", "fp16-trt"):
        refuse_unknown_forms(folder / FILES[role])
    same_convolutions(folder)
    return errors


def same_convolutions(folder: Path) -> None:
    """Raise EdgeError unless all files hold as many convolutions as float: a comparison of their speed
    must compare precisions and nothing else."""
    counts = {
        role: sum(node.op_type == "Conv" for node in onnx.load(str(folder / name)).graph.node)
        for role, name in FILES.items()
    }
    if len(set(counts.values())) != 1:
        raise EdgeError(f"the files differ in convolutions: {counts}; merge the branches in all")


def agree_all(
    folder: Path, crops: NDArray[np.uint8], truth: NDArray[np.int64], labels: tuple[str, ...]
) -> dict[str, Agreement]:
    """Compare every other file with fp32, by ONNX Runtime. crops: (N, C, S, S) uint8; truth: (N,)
    labels, -1 for none."""
    with Progress("comparing", len(FILES) * len(crops), "images") as bar:
        answers = {}
        for role, name in FILES.items():
            answers[role] = logits_of(folder / name, crops)
            bar.advance(len(crops), role)
    return {
        role: compare(answers["fp32"], own, truth, labels)
        for role, own in answers.items()
        if role != "fp32"
    }


def row(role: str, split: str, agreement: Agreement) -> str:
    """Return one line for people."""
    low, high = agreement.interval
    return (
        f"{role} - float on {split}: {100 * agreement.accuracy_change:+.2f} points "
        f"[{100 * low:+.2f}, {100 * high:+.2f}], {100 * agreement.changed:.2f} % of decisions "
        f"changed, KL {agreement.kl:.5f}"
    )


def judge_agreement(
    agreements: dict[str, Agreement], labelled: int, force: bool, say: Say
) -> list[str]:
    """Return the roles of the files that are out of tolerance, which is said. Raises EdgeError where
    there are any, unless `force`.

    labelled: images with a label; of too few, one alone is more than is allowed, and that is said."""
    out = [role for role, agreement in agreements.items() if not agreement.within]
    if not out:
        return []
    few = 0 < labelled < 200
    strays = (
        f"{', '.join(out)} strays too far from float (0.5 points, 3 % of decisions allowed"
        f"{f'; one of {labelled} images is {100 / labelled:.1f} points' if few else ''})"
    )
    if not force:
        raise EdgeError(f"{strays}; {'judge' if few else 'calibrate'} on more data, or --force")
    say(f"warning: {strays}; written all the same, by --force, and the card says so")
    return out
