"""bundle.json: files, known answers, provenance."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from distill.data.labels import DATA_NAMES
from distill.evaluation.prior import Prior
from distill.models.predict import logits_of
from distill.models.provenance import learned_from
from edge.base.errors import EdgeError
from edge.base.files import sha256_of
from edge.crop import crop_faces
from edge.detect import Detector
from edge.inference.bundle import SCHEMA, CropSpec
from edge.sources.synthetic import portrait
from export.source import Source
from export.to_onnx import INPUT

FILES = {
    "fp32": "fp32.onnx",
    "int8-cpu": "int8-cpu.onnx",
    "int8-trt": "int8-trt.onnx",
    "fp16-trt": "fp16-trt.onnx",
}
KNOWN_INPUTS = "known-inputs.npy"
LICENCES = {
    "ferplus": "votes MIT (Microsoft); pictures of the 2013 challenge, not redistributed",
    "fer2013": "pictures and labels of the 2013 challenge, not redistributed",
    "rafdb": "RAF-DB: non-commercial research; pictures not redistributed",
    "folders": "as their owner says; pictures not redistributed",
}


def known_inputs(detector: Detector, spec: CropSpec) -> NDArray[np.uint8]:
    """Return eight inputs that may be shipped, (8, C, S, S) uint8: the public-domain portrait, changed
    as a room would. Raises EdgeError where the detector finds no face in it."""
    picture = portrait()
    faces = detector.find(picture)[:1]
    if not faces:
        raise EdgeError("the detector finds no face in the shipped portrait; reinstall the kit")
    face = crop_faces(picture, faces, spec)[0]
    plain = face.astype(np.float32)
    small = cv2.resize(face.transpose(1, 2, 0), (20, 20), interpolation=cv2.INTER_AREA)
    far = cv2.resize(small, (spec.size, spec.size)).reshape(spec.size, spec.size, -1)
    noise = np.random.default_rng(0).normal(0, 20, plain.shape)
    variants = [
        plain,
        plain[:, :, ::-1],
        plain * 0.4,
        np.clip(plain * 1.6 + 20, 0, 255),
        far.transpose(2, 0, 1),
        np.clip(plain + noise, 0, 255),
        255 - plain,
        np.roll(plain, 8, axis=1),
    ]
    return np.stack([np.round(v).astype(np.uint8) for v in variants])


def _commit() -> str:
    """The commit of this code, with `-dirty` where it was changed since; or "unknown"."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def _entry(path: Path) -> dict[str, str]:
    return {"name": path.name, "sha256": sha256_of(path)}


def weights_licence(names: set[str]) -> str:
    """Return the licence of the strictest data that weights learned from or were calibrated on.
    names: all of these, as in DATA_NAMES."""
    if DATA_NAMES["rafdb"] in names:
        return "for non-commercial research alone, as RAF-DB's terms say"
    if names <= {DATA_NAMES["ferplus"], DATA_NAMES["fer2013"]}:
        return "Apache-2.0"
    return "as the owners of its training pictures allow"


def _counting(prior: Prior) -> dict[str, Any]:
    return {
        "folded": "dominant",
        "constants": {name: row.tolist() for name, row in prior.constants.items()},
        "fitted": prior.fitted,
    }


def describe(
    folder: Path,
    source: Source,
    layout: str,
    temperature: float,
    prior: Prior | None,
    facts: dict[str, Any],
) -> dict[str, Any]:
    """Return bundle.json's content without scores. folder: holds the files; prior: the counting's
    constants, those of `dominant` in the files; facts: added to the provenance."""
    spec = source.recipe.crop.spec()
    learned = source.data or DATA_NAMES[layout]
    names = {DATA_NAMES[layout], *learned_from({"data": learned, **source.provenance})}
    if facts.get("calibration_folder"):
        names.add(DATA_NAMES["folders"])  # pictures of an owner whom this code does not know
    inputs = np.load(folder / KNOWN_INPUTS, allow_pickle=False)
    answers = {
        role: np.round(logits_of(folder / name, inputs).astype(float), 4).tolist()
        for role, name in FILES.items()
    }
    return {
        "schema": SCHEMA,
        "labels": list(source.labels),
        "input": {
            "name": INPUT,
            "size": spec.size,
            "channels": spec.channels,
            "range": [0.0, 255.0],
            "layout": "NCHW",
            "colour": "grey" if spec.channels == 1 else "bgr",
        },
        "crop": spec.as_dict(),
        "files": {role: _entry(folder / name) for role, name in FILES.items()},
        "known_answers": {"inputs": _entry(folder / KNOWN_INPUTS), "logits": answers},
        **({"counting": _counting(prior)} if prior else {}),
        "scores": [],
        "provenance": {
            "data": learned,
            "data_licence": LICENCES[
                next((key for key, name in DATA_NAMES.items() if name == learned), layout)
            ],
            "calibration_data": DATA_NAMES[layout],
            "weights_licence": weights_licence(names),
            "commit": _commit(),
            "calibration_temperature": round(temperature, 5),
            "temperature_data": DATA_NAMES[layout],
            **source.provenance,
            **facts,
        },
    }
