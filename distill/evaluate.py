"""`distill-eval`: a bundle or a checkpoint against a labelled split.

The headline counts every picture: where the detector finds no face the whole picture is read, and
the share of those is printed; a second row counts each of them as an error. Predictions are made
before labels are opened for scoring, and do not depend on them.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.data import Split, argmax, join, majority, open_crops
from distill.metrics import PROTOCOLS, Scores, score, softmax
from edge import cli
from edge.backends import open_backend
from edge.bundle import Bundle, load_bundle
from edge.crop import CropSpec
from edge.crops import LAYOUTS
from edge.errors import DataError
from edge.weights import write_atomically

DATA_NAMES = {"ferplus": "FER+", "rafdb": "RAF-DB", "folders": "class folders"}


def predict_bundle(
    bundle: Bundle, precision: str, pixels: NDArray[np.uint8], threads: int = 2, batch: int = 64
) -> NDArray[np.float64]:
    """Probabilities (N, K) of uint8 crops (N, C, S, S), by the deployed file under ONNX Runtime."""
    backend = open_backend("ort", bundle.model(precision), threads)
    try:
        parts = [
            backend.run(pixels[start : start + batch].astype(np.float32))["logits"]
            for start in range(0, len(pixels), batch)
        ]
    finally:
        backend.close()
    return softmax(np.concatenate(parts))


def count_undetected(
    scores_of: Split, probabilities: NDArray[np.float64], protocol: str
) -> tuple[float, float]:
    """Of the pictures that the protocol scores: the share without a detected face, and the accuracy
    when each of those is wrong, whatever was predicted."""
    classes = len(scores_of.labels)
    truth = (majority if protocol == PROTOCOLS[0] else argmax)(scores_of.votes, classes)
    kept = truth >= 0
    hit = (probabilities.argmax(axis=1) == truth) & scores_of.crops.found
    return float(1 - scores_of.crops.found[kept].mean()), float(hit[kept].mean())


def table(scores: Scores, undetected: float, strict: float) -> str:
    """Lines for a terminal of 80 columns."""
    low, high = scores.accuracy_interval
    mlow, mhigh = scores.mean_class_accuracy_interval
    lines = [
        f"{scores.protocol}  n={scores.n} excluded={scores.excluded} "
        f"whole-picture fallback {100 * undetected:.2f} %",
        f"  accuracy             {100 * scores.accuracy:.2f} %  [{100 * low:.2f}, {100 * high:.2f}]",
        f"  undetected as errors {100 * strict:.2f} %",
        f"  mean class accuracy  {100 * scores.mean_class_accuracy:.2f} %  "
        f"[{100 * mlow:.2f}, {100 * mhigh:.2f}]",
        f"  macro-F1 {scores.macro_f1:.4f}   ECE(15) {scores.ece:.4f}   "
        f"NLL vs soft votes {scores.nll:.4f}",
    ]
    row = "  recall"
    for label, value in scores.recall.items():
        cell = f" {label} {value:.3f}"
        if len(row) + len(cell) > 79:
            lines.append(row)
            row = "        "
        row += cell
    return "\n".join([*lines, row])


def write_predictions(
    path: Path, names: Sequence[str], labels: Sequence[str], probabilities: NDArray[np.float64]
) -> None:
    """`name,` and one column `p_LABEL` a label, eight decimals."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["name", *(f"p_{label}" for label in labels)])
    for name, row in zip(names, probabilities, strict=True):
        writer.writerow([name, *(f"{value:.8f}" for value in row)])
    write_atomically(path, buffer.getvalue().encode())


def as_entry(
    scores: Scores, layout: str, split: str, precision: str, undetected: float, strict: float
) -> dict[str, Any]:
    """One entry of bundle.json's `scores`."""
    entry = dataclasses.asdict(scores)
    return {
        "data": DATA_NAMES[layout],
        "split": split,
        "precision": precision,
        "interval": "bootstrap of pictures, 2,000 rounds, seed 0, 95 %",
        "whole_picture_fallback": round(undetected, 5),
        "accuracy_undetected_as_errors": round(strict, 5),
        **{
            key: round(value, 5) if isinstance(value, float) else value
            for key, value in entry.items()
        },
    }


def evaluate(
    split: Split, probabilities: NDArray[np.float64], layout: str, name: str, precision: str
) -> tuple[str, list[dict[str, Any]]]:
    """The printed table and the entries, both protocols where the data set has votes."""
    if not (majority(split.votes, len(split.labels)) >= 0).any():
        raise DataError(f"no picture of '{name}' has a label to score against; check its votes")
    texts, entries = [], []
    for protocol in PROTOCOLS if layout == "ferplus" else PROTOCOLS[:1]:
        scores = score(probabilities, split.votes, split.labels, protocol)
        undetected, strict = count_undetected(split, probabilities, protocol)
        texts.append(table(scores, undetected, strict))
        entries.append(as_entry(scores, layout, name, precision, undetected, strict))
    return "\n".join(texts), entries


def build_parser() -> argparse.ArgumentParser:
    p = cli.parser(
        "distill-eval",
        "Score a bundle (as deployed) or a checkpoint (as trained) on a labelled split.",
        "distill-eval --bundle edge/models --data ferplus --layout ferplus --split test",
    )
    what = p.add_mutually_exclusive_group(required=True)
    what.add_argument("--bundle", type=Path, metavar="DIR")
    what.add_argument("--checkpoint", type=Path, metavar="FILE", help="what distill-train wrote")
    p.add_argument("--data", type=Path, required=True, metavar="DIR", help="the raw data set")
    p.add_argument("--layout", choices=LAYOUTS, required=True)
    p.add_argument("--split", choices=("train", "valid", "test"), default="test")
    p.add_argument("--precision", choices=("fp32", "int8"), default="int8", help="of a bundle")
    p.add_argument("--predictions", type=Path, metavar="out.csv", help="write the probabilities")
    p.add_argument("--json", type=Path, metavar="out.json", help="write the scores")
    p.add_argument("--weights", type=Path, metavar="DIR", help="folder with the detector's file")
    return p


def _predict(
    args: argparse.Namespace,
) -> tuple[tuple[str, ...], CropSpec, Any]:
    """Labels, crop and a function from crops to probabilities."""
    if args.bundle:
        bundle = load_bundle(args.bundle)
        return (
            bundle.labels,
            bundle.crop,
            lambda pixels: predict_bundle(bundle, args.precision, pixels),
        )
    from distill.checkpoint import load_checkpoint
    from distill.course import predict

    checkpoint = load_checkpoint(args.checkpoint)
    student = checkpoint.student
    return (
        checkpoint.labels,
        checkpoint.recipe.crop.spec(),
        lambda pixels: softmax(predict(student, pixels)),
    )


def run(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    labels, spec, predict_crops = _predict(args)
    crops = open_crops(
        args.data, args.layout, spec, args.weights, lambda line: print(line, file=sys.stderr)
    )
    if args.split not in crops:
        raise DataError(f"{args.data} has no split '{args.split}'; it has {', '.join(crops)}")
    probabilities = predict_crops(crops[args.split].pixels)
    if args.predictions:
        write_predictions(args.predictions, crops[args.split].names, labels, probabilities)
    split = join(args.data, args.layout, args.split, crops)
    if split.labels != labels:
        raise DataError(
            f"{args.data} has the classes {', '.join(split.labels)}, the model "
            f"{', '.join(labels)}; score it on data with its own classes"
        )
    precision = args.precision if args.bundle else "fp32"
    text, entries = evaluate(split, probabilities, args.layout, args.split, precision)
    print(f"{args.bundle or args.checkpoint} {precision} on {args.data} {args.split}")
    print(text)
    if args.json:
        write_atomically(args.json, (json.dumps(entries, indent=1) + "\n").encode())


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run("distill-eval", run, argv)


if __name__ == "__main__":
    sys.exit(main())
