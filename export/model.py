"""`export-model`: checkpoint > bundle, refused when INT8 strays from float."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from distill.checkpoint import Checkpoint, load_checkpoint
from distill.course import predict
from distill.data import Split, crops_folder, join, majority, open_crops
from distill.evaluate import DATA_NAMES, evaluate, predict_bundle
from distill.examples import choosable
from distill.metrics import fit_temperature
from distill.robustness import measure
from distill.student import multiply_adds
from distill.twins import find_twins, names_of
from edge import cli
from edge.bench import processor
from edge.bundle import SCHEMA, load_bundle
from edge.crop import CropSpec, crop_faces
from edge.crops import LAYOUTS, crop_detector
from edge.detect import Detector
from edge.errors import DataError, EdgeError, UsageError
from edge.node import versions
from edge.pattern import portrait
from edge.weights import locked, sha256
from export import card
from export.agree import compare, logits_of, torch_equals_onnx
from export.to_int8 import balanced, quantise_for_cpu
from export.to_onnx import INPUT, deployed, export_onnx

FILES = {"fp32": "fp32.onnx", "int8-cpu": "int8-cpu.onnx"}
KNOWN_INPUTS = "known-inputs.npy"
CALIBRATION_CROPS = 1024


def known_inputs(detector: Detector, spec: CropSpec) -> NDArray[np.uint8]:
    """Eight inputs that may be shipped: the public-domain portrait, changed as a room would."""
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
    return {"name": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def _describe(
    folder: Path, checkpoint: Checkpoint, layout: str, temperature: float, facts: dict[str, Any]
) -> dict[str, Any]:
    spec = checkpoint.recipe.crop.spec()
    inputs = np.load(folder / KNOWN_INPUTS, allow_pickle=False)
    answers = {
        role: np.round(logits_of(folder / name, inputs).astype(float), 4).tolist()
        for role, name in FILES.items()
    }
    return {
        "schema": SCHEMA,
        "labels": list(checkpoint.labels),
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
        "scores": [],
        "provenance": {
            "teacher": checkpoint.facts["teacher"]
            or "none: learned from the annotators' votes alone",
            "recipe": checkpoint.recipe.model_dump(),
            "data": DATA_NAMES[layout],
            "data_licence": facts.pop("data_licence"),
            "weights_licence": "Apache-2.0",
            "commit": _commit(),
            "checkpoint_epoch": checkpoint.facts["epoch"],
            "calibration_temperature": round(temperature, 5),
            "parameters": sum(p.numel() for p in deployed(checkpoint.student, 1.0).parameters()),
            "multiply_adds": multiply_adds(checkpoint.student),
            **facts,
        },
    }


LICENCES = {
    "ferplus": "votes MIT (Microsoft); pictures of the 2013 challenge, not redistributed",
    "fer2013": "pictures and labels of the 2013 challenge, not redistributed",
    "rafdb": "RAF-DB: non-commercial research; pictures not redistributed",
    "folders": "as their owner says; pictures not redistributed",
}


def export(args: argparse.Namespace) -> None:
    """Everything into a folder beside the target, which replaces it in one step at the end."""
    checkpoint = load_checkpoint(args.checkpoint)
    spec = checkpoint.recipe.crop.spec()

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    crops = open_crops(args.data, args.layout, spec, args.weights, say)
    train = join(args.data, args.layout, "train", crops)
    valid = join(args.data, args.layout, "valid", crops)
    for split in (train, valid):
        if split.labels != checkpoint.labels:
            raise DataError(
                f"{args.data} has the classes {', '.join(split.labels)}, the checkpoint "
                f"{', '.join(checkpoint.labels)}"
            )
    refuse_other_folders(args.out)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    twins = find_twins(args.data, args.layout, crops_folder(args.data, spec), say)
    with tempfile.TemporaryDirectory(dir=args.out.parent, prefix=f".{args.out.name}.") as draft:
        folder = Path(draft) / "bundle"
        folder.mkdir()
        _fill(folder, checkpoint, train, valid, twins, args, say)
        _report(folder, crops, args)
        put_in_place(folder, args.out)
    print(f"bundle written to {args.out}")


def refuse_other_folders(out: Path) -> None:
    """Raises UsageError where `out` holds anything that a bundle would not: it will be replaced."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UsageError(f"--out {out} is a file; give a folder")
    ours = {"bundle.json", card.NAME, KNOWN_INPUTS, *FILES.values()}
    if others := sorted(path.name for path in out.iterdir() if path.name not in ours):
        raise UsageError(
            f"--out {out} holds '{others[0]}', which is no part of a bundle and would be lost; give "
            f"another folder"
        )


def put_in_place(folder: Path, out: Path) -> None:
    """`folder` becomes `out`. The old bundle is moved aside first and comes back if that fails; a
    kill between the two moves leaves it whole as `.OUT.old`."""
    aside = out.with_name(f".{out.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    if out.exists():
        os.replace(out, aside)
    try:
        os.replace(folder, out)
    except OSError:
        if aside.exists():
            os.replace(aside, out)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _fill(
    folder: Path,
    checkpoint: Checkpoint,
    train: Split,
    valid: Split,
    twins: dict[str, list[tuple[str, str, str]]],
    args: argparse.Namespace,
    say: Callable[[str], None],
) -> None:
    classes = len(checkpoint.labels)
    # Nothing is fitted or judged on pictures that have a twin in the test split.
    unchosen = names_of(twins["valid"])
    voted = valid.targets.sum(axis=1) > 0
    voted &= np.array([name not in unchosen for name in valid.crops.names])
    temperature = fit_temperature(
        predict(checkpoint.student, valid.crops.pixels)[voted], valid.targets[voted]
    )
    if abs(np.log(temperature)) > 1.99 and not args.force:
        raise EdgeError(
            f"the fitted temperature {temperature:.3g} is at the end of its range: this checkpoint "
            f"has learned nothing that can be calibrated; train it, or --force"
        )
    say(f"temperature {temperature:.4f}, fitted on {voted.sum()} pictures of '{args.layout}' valid")
    student = deployed(checkpoint.student, temperature)
    export_onnx(student, folder / FILES["fp32"])
    difference = torch_equals_onnx(student, folder / FILES["fp32"], valid.crops.pixels[:512])
    say(f"torch = ONNX within {difference:.2g} over {min(512, len(valid.crops.names))} crops")
    labels = majority(train.votes, classes)
    labels[[name in names_of(twins["train"]) for name in train.crops.names]] = -1
    places = balanced(labels, classes, CALIBRATION_CROPS)
    kept = quantise_for_cpu(
        folder / FILES["fp32"], folder / FILES["int8-cpu"], train.crops.pixels[places]
    )
    say(f"int8-cpu calibrated on {len(places)} crops; {len(kept)} attention products in float")
    agreement = compare(
        logits_of(folder / FILES["fp32"], valid.crops.pixels),
        logits_of(folder / FILES["int8-cpu"], valid.crops.pixels),
        choosable(valid, unchosen),
    )
    low, high = agreement.interval
    print(
        f"int8 - float on valid: {100 * agreement.accuracy_change:+.2f} points "
        f"[{100 * low:+.2f}, {100 * high:+.2f}], {100 * agreement.changed:.2f} % of decisions "
        f"changed, KL {agreement.kl:.5f}"
    )
    if not agreement.within and not args.force:
        raise EdgeError(
            "the INT8 file strays too far (0.5 points, 3 % of decisions allowed); calibrate on more "
            "data, or --force"
        )
    inputs = known_inputs(crop_detector(args.weights), checkpoint.recipe.crop.spec())
    np.save(folder / KNOWN_INPUTS, inputs)
    facts = {
        "data_licence": LICENCES[args.layout],
        "float_nodes": kept,
        "calibration_crops": len(places),
        "int8_agreement": agreement.as_dict(),
        "detector_sha256": locked()["yunet"]["sha256"],
        "checkpoint_sha256": sha256(args.checkpoint.read_bytes()),
        "twins_left_out": {split: len(rows) for split, rows in twins.items()},
        "measured_with": {"processor": processor(), **versions()},
    }
    description = _describe(folder, checkpoint, args.layout, temperature, facts)
    (folder / "bundle.json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")


def _report(folder: Path, crops: Any, args: argparse.Namespace) -> None:
    """Scores of what was written, into bundle.json and the model card; of the test split only when
    asked, since that is for the one model that was chosen."""
    bundle = load_bundle(folder)
    entries = []
    names = ("valid", "test") if args.test else ("valid",)
    for name in names:
        for precision in ("int8", "fp32"):
            if name not in crops:
                raise DataError(f"{args.data} has no test split; leave --test out")
            probabilities = predict_bundle(bundle, precision, crops[name].pixels)
            split = join(args.data, args.layout, name, crops)
            text, more = evaluate(split, probabilities, args.layout, name, precision)
            entries += more
            print(f"{name} {precision}\n{text}")
    path = folder / "bundle.json"
    description = json.loads(path.read_text(encoding="utf-8"))
    description["scores"] = entries
    split = join(args.data, args.layout, names[-1], crops)
    description["provenance"]["robustness"] = measure(
        split, lambda pixels: predict_bundle(bundle, "int8", pixels), lambda line: None
    )
    (folder / card.NAME).write_text(card.write(description), encoding="utf-8")
    path.write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
    load_bundle(folder)


def run(argv: Sequence[str] | None = None) -> None:
    p = cli.parser(
        "export-model",
        "Turn a checkpoint into the bundle that the node runs: ONNX in float and INT8, known\n"
        "answers, scores. INT8 is calibrated on the data set's training crops, balanced by class.",
        "export-model runs/student/best.pt --data ferplus --layout ferplus --out edge/models --test",
    )
    p.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    p.add_argument("--data", type=Path, required=True, metavar="DIR", help="the raw data set")
    p.add_argument("--layout", choices=LAYOUTS, required=True)
    p.add_argument("--out", type=Path, required=True, metavar="BUNDLE")
    p.add_argument("--weights", type=Path, metavar="DIR", help="folder with the detector's file")
    p.add_argument(
        "--test", action="store_true", help="score the test split too: for the chosen model alone"
    )
    p.add_argument("--force", action="store_true", help="write it even if INT8 strays from float")
    export(p.parse_args(argv))


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run("export-model", run, argv)


if __name__ == "__main__":
    sys.exit(main())
