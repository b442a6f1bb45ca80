"""A trained network to ask: a bundle as deployed, a student's or teacher's checkpoint, or several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge.base.errors import DataError
from edge.classify import softmax
from edge.inference.bundle import Bundle, CropSpec, load_bundle
from edge.inference.loader import open_backend


@dataclass(frozen=True, slots=True)
class Model:
    """predict: crops (N, C, S, S) uint8 to probabilities (N, K)."""

    labels: tuple[str, ...]
    crop: CropSpec
    predict: Callable[[NDArray[np.uint8]], NDArray[np.float64]]
    precision: str


def logits_of(model: Path, pixels: NDArray[np.uint8], batch: int = 64) -> NDArray[np.float32]:
    """(N, K) of uint8 crops (N, C, S, S), by ONNX Runtime."""
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
    """Probabilities (N, K) of uint8 crops (N, C, S, S), by the deployed file."""
    return softmax(logits_of(bundle.model(precision), pixels).astype(np.float64))


def open_model(path: Path, dinov2: str, face: Path | None, precision: str = "fp32") -> Model:
    """path: a bundle's folder or a checkpoint; precision: of a bundle. Raises DataError or
    BundleError in one line."""
    if path.is_dir():
        bundle = load_bundle(path)
        return Model(
            bundle.labels,
            bundle.crop,
            lambda pixels: predict_bundle(bundle, precision, pixels),
            precision,
        )
    # A bundle is scored without torch.
    from distill.models.checkpoint import load_checkpoint, load_teacher, read
    from distill.training.batches import predict, predict_faces

    if read(path)[1].teacher is None:
        trained = load_checkpoint(path)
        return Model(
            trained.labels,
            trained.recipe.crop.spec(),
            lambda pixels: softmax(predict(trained.student, pixels).astype(np.float64)),
            "fp32",
        )
    teacher, frozen, recipe, labels = load_teacher(path, dinov2, face)
    return Model(
        labels,
        recipe.crop.spec(),
        lambda pixels: softmax(predict_faces(teacher, frozen, pixels).astype(np.float64)),
        "fp32",
    )


def mean_answer(answers: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Several networks' probabilities (N, K) as one: their geometric mean, which is the mean of their
    logits."""
    logs = [np.log(np.maximum(p, 1e-12)) for p in answers]
    return softmax(np.mean(logs, axis=0))


def asked_together(models: Sequence[Model]) -> Model:
    """An ensemble (Hansen and Salamon 1990), in the first's order of classes.

    Raises DataError where they read other crops or know other classes."""
    first, *others = models
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
    orders = [[model.labels.index(label) for label in first.labels] for model in models]

    def predict(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        return mean_answer(
            [model.predict(pixels)[:, order] for model, order in zip(models, orders, strict=True)]
        )

    return Model(first.labels, first.crop, predict, first.precision)
