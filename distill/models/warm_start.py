"""Start a student's training from a checkpoint or a deployed bundle: `--start`.

    checkpoint or bundle -> deployed weights -> training form of the same network, or of a deeper one

A bundle holds the deployed form alone: each block is one 3x3 convolution with BatchNorm folded in. It
is unfolded exactly: the kernel becomes the block's 3x3 branch, and BatchNorm gets the statistics of
given faces and the gain and bias that cancel them. Blocks that only the recipe has begin as the
identity (as in Net2Net, Chen et al., ICLR 2016), so the network's outputs equal the start's at any
depth. Where the fused block is of another form, trunk and streams are taken, and the rest is learned.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

from distill.models.build import build_student
from distill.models.checkpoint import load_checkpoint
from distill.models.provenance import kept, temperature_data, told, unvalidated
from distill.models.store import current_names
from distill.models.student import RepBlock, Student, StudentConfig, reparameterise
from distill.recipe import Recipe
from edge.base.errors import DataError, EdgeError, UsageError
from edge.base.strict_yaml import validate
from edge.inference.bundle import load_bundle

RECALIBRATION_FACES = 512  # training faces that BatchNorm takes its statistics from
# What every form of the fused block has before it.
_BEFORE_FUSION = ("trunk.", "scene.", "face.")


@dataclass(frozen=True, slots=True)
class Start:
    """A trained student to start from.

    weights: of the deployed form, by its parameters' names; metadata: what a checkpoint keeps of it
    (sha256, recipe, teacher, data, the start's own start, what it is the mean of, and `validated` where
    it learned from its validation split)."""

    config: StudentConfig
    labels: tuple[str, ...]
    recipe: Recipe
    weights: dict[str, Tensor]
    metadata: dict[str, Any]


def read_start(path: Path) -> Start:
    """Read a bundle's folder or a student's checkpoint. Raises DataError or BundleError in one line."""
    return _from_bundle(path) if path.is_dir() else _from_checkpoint(path)


def _from_checkpoint(path: Path) -> Start:
    checkpoint = load_checkpoint(path)
    metadata, student = kept(path, checkpoint.recipe, checkpoint.metadata), checkpoint.student
    weights = reparameterise(student).state_dict()
    return Start(student.config, checkpoint.labels, checkpoint.recipe, weights, metadata)


def _from_bundle(folder: Path) -> Start:
    bundle = load_bundle(folder)
    provenance = bundle.description.provenance
    try:
        recipe = validate(Recipe, dict(provenance.get("recipe") or {}), str(folder))
    except (EdgeError, TypeError, ValueError) as error:
        raise DataError(f"{folder} names no recipe to train by: {error}") from error
    student = reparameterise(build_student(recipe, len(bundle.labels)))
    weights = current_names(_initialisers(bundle.file("fp32")))
    own = student.state_dict()
    if wrong := [n for n, v in own.items() if n not in weights or weights[n].shape != v.shape]:
        raise DataError(
            f"{folder} holds no student of its own recipe: '{wrong[0]}'; export it again"
        )
    metadata: dict[str, Any] = {"sha256": bundle.sha256, "recipe": recipe.model_dump()}
    metadata |= told(provenance)
    metadata |= {key: provenance.get(key) for key in ("data", "calibration_data")}
    metadata["temperature_data"] = temperature_data(provenance)
    metadata |= unvalidated(bool(provenance.get("validated", True)))
    # What the counting added to the logits is not learned from: it would be trained away or kept twice.
    weights["head.bias"] = weights["head.bias"] - torch.from_numpy(bundle.folded).float()
    config = student.config
    return Start(config, bundle.labels, recipe, {n: weights[n] for n in own}, metadata)


def _initialisers(path: Path) -> dict[str, Tensor]:
    """Return the graph's weights by the student's names.

    The exporter keeps the names but for linear layers', whose transposed copies are found by the bias
    that is added to their product."""
    graph = onnx.load(str(path)).graph
    arrays = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}
    products = {node.output[0]: node.input[1] for node in graph.node if node.op_type == "MatMul"}
    for node in graph.node:
        if node.op_type != "Add":
            continue
        product = next((products[name] for name in node.input if name in products), None)
        bias = next((name for name in node.input if name.endswith(".bias")), None)
        if product in arrays and bias:
            arrays[bias.removesuffix("bias") + "weight"] = arrays[product].T.contiguous()
    return arrays


def warm_start(
    student: Student, start: Start, labels: tuple[str, ...], faces: NDArray[np.uint8]
) -> None:
    """Give an untrained student the start's weights, in place.

    Classes that the start does not know keep the head's random rows; with a fused block of another
    form (`same_fusion`) that block and the head stay random. faces: (N, C, S, S) uint8, some of the
    training set. Raises UsageError where the start is of another shape."""
    sources = _blocks(start.config, student.config)
    whole = same_fusion(start.config, student.config)
    kept = {n: v for n, v in start.weights.items() if whole or n.startswith(_BEFORE_FUSION)}
    state = student.state_dict()
    folded: dict[RepBlock, tuple[Tensor, Tensor] | None] = {}
    for name, block in student.named_modules():
        if isinstance(block, RepBlock) and (whole or f"{name}.".startswith(_BEFORE_FUSION)):
            source = sources.get(name, name)
            folded[block] = None if source is None else _folded(kept, source)
    for name, value in kept.items():
        if name in state and not name.startswith("head."):
            state[name].copy_(value)
    for row, label in enumerate(labels if whole else ()):
        if label in start.labels:
            there = start.labels.index(label)
            state["head.weight"][row] = kept["head.weight"][there]
            state["head.bias"][row] = kept["head.bias"][there]
    student.load_state_dict(state)
    _recalibrate_batchnorm(student, folded, faces)


def _folded(weights: dict[str, Tensor], block: str) -> tuple[Tensor, Tensor]:
    return weights[f"{block}.0.weight"], weights[f"{block}.0.bias"]


def same_fusion(start: StudentConfig, recipe: StudentConfig) -> bool:
    """Return whether the fused blocks, and so what the heads read, are of one form."""

    def form(config: StudentConfig) -> tuple[object, ...]:
        queries = config.queries if config.pool == "queries" else 0
        return config.pool, queries, config.attend, config.heads if config.attend else 0

    return form(start) == form(recipe)


def _blocks(start: StudentConfig, recipe: StudentConfig) -> dict[str, str | None]:
    """Map the trunk's blocks in the recipe's student to the start's by name, a new one to None."""
    for part in ("size", "channels", "widths", "width"):
        if getattr(start, part) != getattr(recipe, part):
            raise UsageError(
                f"--start has '{part}' {getattr(start, part)}, the recipe {getattr(recipe, part)}; "
                f"make the recipe's equal"
            )
    if any(a > b for a, b in zip(start.depths, recipe.depths, strict=True)):
        raise UsageError(
            f"--start has depths {start.depths}, the recipe {recipe.depths}: it may have more, "
            f"not fewer"
        )
    names: dict[str, str | None] = {"trunk.0": "trunk.0"}
    ours, theirs = 1, 1
    for have, want in zip(start.depths, recipe.depths, strict=True):
        for block in range(want):
            names[f"trunk.{ours + block}"] = f"trunk.{theirs + block}" if block < have else None
        ours, theirs = ours + want, theirs + have
    return names


@torch.no_grad()
def _recalibrate_batchnorm(
    student: Student,
    folded: dict[RepBlock, tuple[Tensor, Tensor] | None],
    faces: NDArray[np.uint8],
) -> None:
    """Set each of these blocks so that in evaluation mode it computes a kernel and a bias, or the
    identity.

    In training mode it does nearly so, since its BatchNorm gets the statistics of these faces."""

    def hook_for(block: RepBlock) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        block.point.weight.zero_()
        if (both := folded[block]) is None:
            assert block.same is not None
            block.wide.weight.zero_()
            scale, bias = torch.ones(block.norm.num_features), torch.zeros(block.norm.num_features)
        else:
            kernel, bias = both
            # Each channel as large as an untrained kernel's: BatchNorm takes the scale out again, and
            # a step of the optimiser changes all channels by the same share.
            untrained = (3 * kernel[0].numel()) ** -0.5
            scale = untrained / kernel.flatten(1).std(dim=1).clamp(min=1e-12)
            block.wide.weight.copy_(kernel * scale[:, None, None, None])
            if block.same is not None:
                block.same.zero_()

        def recalibrate(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            assert isinstance(norm, nn.BatchNorm2d)
            assert norm.running_mean is not None
            assert norm.running_var is not None
            mean = inputs[0].mean(dim=(0, 2, 3))
            variance = inputs[0].var(dim=(0, 2, 3), unbiased=False)
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)
            norm.weight.copy_((variance + norm.eps).sqrt() / scale)
            norm.bias.copy_(bias + mean / scale)

        return recalibrate

    student.eval()
    hooks = [block.norm.register_forward_pre_hook(hook_for(block)) for block in folded]
    student(torch.from_numpy(np.array(faces)).float())
    for hook in hooks:
        hook.remove()
