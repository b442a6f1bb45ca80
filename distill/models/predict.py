"""Open trained networks for prediction: a deployed bundle, a checkpoint, or an ensemble of several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distill.progress import Progress
from edge.base.errors import DataError
from edge.classify import softmax
from edge.inference.bundle import Bundle, CropSpec, load_bundle
from edge.inference.loader import open_backend

BLOCK = 1024  # images


@dataclass(frozen=True, slots=True)
class Predictor:
    """A trained network, and what it reads and knows.

    predict: crops (N, C, S, S) uint8 -> probabilities (N, K) float64, in the order of labels."""

    labels: tuple[str, ...]
    crop: CropSpec
    predict: Callable[[NDArray[np.uint8]], NDArray[np.float64]]
    precision: str


def probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the softmax of logits, (N, K) -> (N, K), in float64."""
    return softmax(logits.astype(np.float64))


def logits_behind(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return logits (N, K) whose softmax the probabilities (N, K) are."""
    return np.asarray(np.log(np.maximum(probabilities, 1e-12)))


def logits_of(model: Path, pixels: NDArray[np.uint8], batch: int = 64) -> NDArray[np.float32]:
    """Return logits (N, K) of uint8 crops (N, C, S, S), by ONNX Runtime."""
    backend = open_backend("ort", model)
    try:
        parts = [
            backend.run(pixels[start : start + batch].astype(np.float32))["logits"]
            for start in range(0, len(pixels), batch)
        ]
    finally:
        backend.close()
    return np.concatenate(parts)


def predict_bundle(
    bundle: Bundle, precision: str, pixels: NDArray[np.uint8]
) -> NDArray[np.float64]:
    """Return probabilities (N, K) of uint8 crops (N, C, S, S), by the deployed file, with the constants
    that it holds."""
    return probabilities(logits_of(bundle.model(precision), pixels))


def learned_logits(
    bundle: Bundle, precision: str, pixels: NDArray[np.uint8]
) -> NDArray[np.float32]:
    """Return a bundle's logits (N, K) without the counting constants that its graph holds."""
    held = bundle.folded.astype(np.float32)
    return np.asarray(logits_of(bundle.model(precision), pixels) - held)


def open_predictor(
    path: Path,
    dinov2: str,
    faces: Sequence[Path],
    precision: str = "fp32",
    learned: bool = False,
) -> Predictor:
    """Open a bundle's folder, of which `precision` chooses the file, or a checkpoint.

    dinov2, faces: a teacher's backbones, as in `build_teacher`; learned: leave a bundle's counting
    constants out, for a student that learns from it. Raises DataError or BundleError in one line."""
    if path.is_dir():
        bundle = load_bundle(path)

        def predict(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
            if learned:
                return probabilities(learned_logits(bundle, precision, pixels))
            return predict_bundle(bundle, precision, pixels)

        return Predictor(bundle.labels, bundle.crop, predict, precision)
    # Imported here: a bundle is scored without torch.
    from distill.models.checkpoint import load_checkpoint, load_teacher, read
    from distill.models.logits import predict_faces, predict_student

    if read(path)[1].teacher is None:
        trained = load_checkpoint(path)
        return Predictor(
            trained.labels,
            trained.recipe.crop.spec(),
            lambda pixels: probabilities(predict_student(trained.student, pixels)),
            "fp32",
        )
    teacher, frozen, recipe, labels = load_teacher(path, dinov2, faces)
    return Predictor(
        labels,
        recipe.crop.spec(),
        lambda pixels: probabilities(predict_faces(teacher, frozen, pixels)),
        "fp32",
    )


def validated(path: Path) -> bool:
    """Tell whether a bundle's folder, or a checkpoint, was kept from its validation split. Raises
    DataError or BundleError in one line."""
    if path.is_dir():
        return bool(load_bundle(path).description.provenance.get("validated", True))
    from distill.models.checkpoint import read, was_validated

    return was_validated(read(path)[0])


def in_blocks(
    predict: Callable[[NDArray[np.uint8]], NDArray[np.float64]],
    pixels: NDArray[np.uint8],
    what: str,
) -> NDArray[np.float64]:
    """Ask a network for probabilities (N, K) of crops (N, C, S, S) block by block, and show how far it
    is. Blocks are whole batches of every kind of network, so the answers are the same."""
    parts = []
    with Progress(what, len(pixels), "images") as bar:
        for start in range(0, max(len(pixels), 1), BLOCK):
            parts.append(predict(pixels[start : start + BLOCK]))
            bar.advance(len(parts[-1]))
    return np.concatenate(parts)


def average_logits(members: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Combine several networks' probabilities (N, K) into those of their mean logits."""
    return softmax(np.mean([logits_behind(p) for p in members], axis=0))


def ensemble(members: Sequence[Predictor]) -> Predictor:
    """Average several networks' logits (Hansen and Salamon 1990), in the first's order of classes.

    Raises DataError where they read different crops or know different classes."""
    first, *others = members
    if not others:
        return first
    for other in others:
        if other.crop != first.crop:
            raise DataError("these networks were trained on different crops; ask them one by one")
        if sorted(other.labels) != sorted(first.labels):
            raise DataError(
                f"these networks know different classes: {', '.join(first.labels)}, and "
                f"{', '.join(other.labels)}; ask them one by one"
            )
    orders = [[member.labels.index(label) for label in first.labels] for member in members]

    def predict(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        return average_logits(
            [m.predict(pixels)[:, order] for m, order in zip(members, orders, strict=True)]
        )

    return Predictor(first.labels, first.crop, predict, first.precision)
