"""What `export-model` exports: a checkpoint, or a bundle's weights read back to be exported again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.data.labels import DATA_NAMES
from distill.evaluation.metrics import fit_temperature
from distill.models.build import build_student
from distill.models.checkpoint import load_checkpoint
from distill.models.logits import predict_student
from distill.models.provenance import KNOWN, WHERE_THERE, temperature_data, told
from distill.models.student import Student, multiply_adds, reparameterise
from distill.models.warm_start import read_start
from distill.recipe import Recipe
from edge.base.errors import EdgeError
from edge.base.files import sha256_of
from edge.inference.bundle import load_bundle
from export.to_onnx import deployed


@dataclass(frozen=True, slots=True)
class Source:
    """A student to export.

    student: of a checkpoint the training form; of a bundle the deployed form, without the counting
    constants that its graph held. temperature: None where it is still to be fitted, else the one that
    the weights have been divided by. provenance: what is known of it, for bundle.json, its training
    data as `data`; data: None where a checkpoint did not keep it."""

    student: Student
    labels: tuple[str, ...]
    recipe: Recipe
    temperature: float | None
    data: str | None
    provenance: dict[str, Any]

    def deploy(
        self, faces: NDArray[np.uint8], targets: NDArray[np.float32], say: Callable[[str], None]
    ) -> tuple[Student, float]:
        """Return the deployed form and its temperature, fitted on faces (N, C, S, S) and targets
        (N, K) where it was not yet."""
        if self.temperature is not None:
            say(f"temperature {self.temperature:.4f}, which the bundle's weights hold")
            return self.student, self.temperature
        temperature = fit_temperature(predict_student(self.student, faces), targets)
        say(f"temperature {temperature:.4f}, fitted on {len(faces)} images of valid")
        return deployed(self.student, temperature), temperature


def read_source(path: Path) -> Source:
    """Read a checkpoint or a bundle's folder. Raises DataError or BundleError in one line."""
    return _from_bundle(path) if path.is_dir() else _from_checkpoint(path)


def _from_checkpoint(path: Path) -> Source:
    checkpoint = load_checkpoint(path)
    known, student = checkpoint.metadata, checkpoint.student
    provenance = {
        **told(known),
        "teacher": known["teacher"] or "none",
        "recipe": checkpoint.recipe.model_dump(),
        "checkpoint_epoch": known["epoch"],
        "validated": known["validated"],
        "parameters": sum(p.numel() for p in reparameterise(student).parameters()),
        "multiply_adds": multiply_adds(student),
        "checkpoint_sha256": sha256_of(path),
    }
    data = DATA_NAMES[known["layout"]] if known["layout"] else None
    return Source(student, checkpoint.labels, checkpoint.recipe, None, data, provenance)


def _from_bundle(folder: Path) -> Source:
    bundle = load_bundle(folder)
    start, old = read_start(folder), bundle.description.provenance
    student = reparameterise(build_student(start.recipe, len(start.labels)))
    student.load_state_dict(start.weights)
    kept = (
        *(*KNOWN, *WHERE_THERE, "recipe", "checkpoint_epoch", "parameters", "multiply_adds"),
        *("checkpoint_sha256", "data_licence", "validated"),
    )
    temperature = old.get("calibration_temperature")
    if not isinstance(temperature, float | int):
        raise EdgeError(f"{folder} names no temperature; export its checkpoint, not the bundle")
    provenance = {key: old[key] for key in kept if key in old}
    provenance["temperature_data"] = temperature_data(old)
    provenance["exported_again_from"] = {
        "bundle_sha256": bundle.sha256,
        "commit": old.get("commit"),
        "calibration_data": old.get("calibration_data"),
    }
    return Source(
        student, bundle.labels, start.recipe, float(temperature), old.get("data"), provenance
    )
