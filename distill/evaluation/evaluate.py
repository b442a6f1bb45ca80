"""`distill-eval`: a bundle or a checkpoint against a labelled split.

Predictions are made before labels are opened for scoring, and do not depend on them. Of the
validation split the images with a near-duplicate in the test split are predicted, and not scored:
what is chosen there must not have seen it.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.data.crops import LAYOUTS, Crops
from distill.data.duplicates import find_near_duplicates, names_of
from distill.data.labels import DATA_NAMES
from distill.data.splits import Split, crops_folder, join, majority, open_crops
from distill.evaluation.metrics import PROTOCOLS, Scores, fit_temperature, score, tempered, truth_of
from distill.models.predict import Model, asked_together, open_model
from edge.base import cli
from edge.base.errors import DataError
from edge.base.files import write_atomically
from edge.crop import CropSpec


def count_undetected(
    scores_of: Split, probabilities: NDArray[np.float64], protocol: str
) -> tuple[float, float]:
    """Of the images that the protocol scores: the share without a detected face, and the accuracy
    when each of those is wrong, whatever was predicted."""
    truth = truth_of(scores_of.votes, len(scores_of.labels), protocol)
    kept = truth >= 0
    hit = (probabilities.argmax(axis=1) == truth) & scores_of.crops.found
    return float(1 - scores_of.crops.found[kept].mean()), float(hit[kept].mean())


def table(scores: Scores, undetected: float, strict: float) -> str:
    """Lines for a terminal of 80 columns."""
    low, high = scores.accuracy_interval
    mlow, mhigh = scores.mean_class_accuracy_interval
    lines = [
        f"{scores.protocol}  n={scores.n} excluded={scores.excluded} "
        f"whole-image fallback {100 * undetected:.2f} %",
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


def confusion_table(scores: Scores, labels: Sequence[str]) -> str:
    """Rows are the truth, columns the answers, names cut to fit 80 columns."""
    lines = ["  truth \\ answer " + "".join(f"{name[:7]:>8}" for name in labels)]
    for name, row in zip(labels, scores.confusion, strict=True):
        lines.append(f"  {name[:13]:14}" + "".join(f"{count:8d}" for count in row))
    return "\n".join(lines)


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
        raise DataError(f"no image of '{name}' has a label to score against; check its votes")
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
        "distill-eval --bundle edge/models --data ferplus --layout ferplus --split test\n"
        "  distill-eval --checkpoint runs/student/best.pt --data ferplus --layout ferplus \\\n"
        "    --split valid --robustness --plots plots",
    )
    what = p.add_mutually_exclusive_group(required=True)
    what.add_argument("--bundle", type=Path, metavar="DIR")
    what.add_argument(
        "--checkpoint",
        type=Path,
        action="append",
        metavar="FILE",
        help="what distill-train wrote; its last epochs beside it are scored too. Given again, with a\n"
        "checkpoint or a bundle: all answer together",
    )
    p.add_argument("--data", type=Path, required=True, metavar="DIR", help="the raw data set")
    p.add_argument("--layout", choices=LAYOUTS, required=True)
    p.add_argument("--split", choices=("train", "valid", "test"), default="test")
    p.add_argument("--precision", choices=("fp32", "int8"), default="int8", help="of a bundle")
    p.add_argument("--predictions", type=Path, metavar="out.csv", help="write the probabilities")
    p.add_argument("--json", type=Path, metavar="out.json", help="write the scores")
    p.add_argument("--robustness", action="store_true", help="blur, noise, dark, JPEG, small ...")
    p.add_argument("--plots", type=Path, metavar="DIR", help="write them as PNG")
    p.add_argument("--weights", type=Path, metavar="DIR", help="folder with the detector's file")
    p.add_argument(
        "--dinov2",
        default="facebook/dinov2-small",
        metavar="DIR|NAME",
        help="a teacher's frozen DINOv2 (default: %(default)s)",
    )
    p.add_argument("--face", type=Path, metavar="FILE", help="a teacher's face backbone")
    return p


def open_asked(args: argparse.Namespace) -> Model:
    """What the command line names; several checkpoints answer together."""
    if args.bundle:
        return open_model(args.bundle, args.dinov2, args.face, args.precision)
    return asked_together([open_model(path, args.dinov2, args.face) for path in args.checkpoint])


def without_near_duplicates(
    data: Path, layout: str, name: str, spec: CropSpec, split: Split
) -> Split:
    """The validation split without the images that have a twin in the test split; others whole."""
    if name != "valid":
        return split
    twins = names_of(find_near_duplicates(data, layout, crops_folder(data, spec), cli.say)["valid"])
    cli.say(f"left out: {len(twins)} images of valid with a near-duplicate in the test split")
    return split.without(twins)


def calibrated(
    args: argparse.Namespace,
    model: Model,
    crops: dict[str, Crops],
    split: Split,
    probabilities: NDArray[np.float64],
) -> tuple[str, dict[str, Any]]:
    """ECE and NLL at the temperature that fits the validation split's votes (Guo et al. 2017)."""
    valid, known = split, probabilities
    if args.split != "valid":
        valid = join(args.data, args.layout, "valid", crops).ordered(model.labels, "the model")
        valid = without_near_duplicates(args.data, args.layout, "valid", model.crop, valid)
        known = model.predict(valid.crops.pixels)
    voted = valid.targets.sum(axis=1) > 0
    if not voted.any():
        return "calibrated: not, since no image of valid has a label", {"calibrated": None}
    logits = np.log(np.maximum(known[voted], 1e-12)).astype(np.float32)
    temperature = fit_temperature(logits, valid.targets[voted])
    at = tempered(probabilities, temperature)
    scores = score(at, split.votes, split.labels, PROTOCOLS[0], rounds=0)
    entry = {"temperature": round(temperature, 5), "ece": scores.ece, "nll": scores.nll}
    line = (
        f"calibrated: temperature {temperature:.3f}, fitted on {int(voted.sum())} images of valid: "
        f"ECE(15) {scores.ece:.4f}, NLL {scores.nll:.4f}"
    )
    return line, {"calibrated": entry}


def last_epochs(
    args: argparse.Namespace, folder: Path, split: Split, best: float
) -> tuple[str, dict[str, Any]]:
    """Accuracy of the last epochs beside the chosen one's: a choice that was only luck shows."""
    paths = sorted(folder.glob("epoch-*.pt"))
    found = []
    for path in paths:
        p = open_model(path, args.dinov2, args.face).predict(split.crops.pixels)
        found.append(score(p, split.votes, split.labels, PROTOCOLS[0], rounds=0).accuracy)
    entry = {"last_epochs": [path.stem for path in paths], "accuracies": found, "best": best}
    cells = ", ".join(f"{100 * value:.2f}" for value in found)
    mean = 100 * float(np.mean(found))
    return f"last {len(paths)} epochs {cells} (mean {mean:.2f}), chosen {100 * best:.2f}", entry


def run(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)

    model = open_asked(args)
    crops = open_crops(args.data, args.layout, model.crop, args.weights, cli.say)
    if args.split not in crops:
        raise DataError(f"{args.data} has no split '{args.split}'; it has {', '.join(crops)}")
    probabilities = model.predict(crops[args.split].pixels)
    if args.predictions:
        write_predictions(args.predictions, crops[args.split].names, model.labels, probabilities)
    whole = join(args.data, args.layout, args.split, crops).ordered(model.labels, "the model")
    split = without_near_duplicates(args.data, args.layout, args.split, model.crop, whole)
    probabilities = probabilities[np.isin(whole.crops.names, split.crops.names)]
    text, entries = evaluate(split, probabilities, args.layout, args.split, model.precision)
    asked = [args.bundle] if args.bundle else args.checkpoint
    title = f"{' and '.join(map(str, asked))} {model.precision} on {args.data} {args.split}"
    print(title)
    print(text)
    scores = score(probabilities, split.votes, split.labels, PROTOCOLS[0], rounds=0)
    print(confusion_table(scores, split.labels))
    if "valid" in crops:
        line, entry = calibrated(args, model, crops, split, probabilities)
        print(line)
        entries.append(entry)
    alone = args.checkpoint[0] if args.checkpoint and len(args.checkpoint) == 1 else None
    if alone and list(alone.parent.glob("epoch-*.pt")):
        line, entry = last_epochs(args, alone.parent, split, scores.accuracy)
        print(line)
        entries.append(entry)
    rows = measure(args, model, split, cli.say) if args.robustness else []
    if rows:
        entries.append({"robustness": rows})
    if args.json:
        write_atomically(args.json, (json.dumps(entries, indent=1) + "\n").encode())
    if args.plots:
        name = f"{model.precision} {args.layout} {args.split}"
        log = alone.parent / "log.csv" if alone else None
        plot(args.plots, name, split, probabilities, rows, log)


def measure(
    args: argparse.Namespace, model: Model, split: Split, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    try:
        from distill.evaluation import robustness
    except ImportError as error:
        raise DataError("--robustness needs torch; install the 'train' extra") from error
    rows = robustness.measure(split, model.predict, say)
    print(robustness.table(rows))
    return rows


def plot(
    folder: Path,
    title: str,
    split: Split,
    probabilities: NDArray[np.float64],
    rows: list[dict[str, Any]],
    log: Path | None,
) -> None:
    """PNGs of the majority's protocol; log: distill-train's, for the training curves."""
    from distill.evaluation import plots

    truth = majority(split.votes, len(split.labels))
    kept = truth >= 0
    answer = probabilities.argmax(axis=1)
    matrix = score(probabilities, split.votes, split.labels, PROTOCOLS[0], rounds=0).confusion
    folder.mkdir(parents=True, exist_ok=True)
    plots.confusion(folder / "confusion.png", matrix, split.labels, title)
    confidence, hit = probabilities.max(axis=1)[kept], (answer == truth)[kept]
    plots.reliability(folder / "reliability.png", confidence, hit, title)
    if rows:
        plots.robustness(folder / "robustness.png", rows, title)
    if log and log.is_file():
        plots.training(folder / "training.png", log)
    print(f"plots written to {folder}")


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run("distill-eval", run, argv)


if __name__ == "__main__":
    sys.exit(main())
