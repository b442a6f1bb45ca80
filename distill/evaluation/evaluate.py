"""`distill-eval`: a bundle or a checkpoint against a labelled split.

Predictions are made before labels are opened for scoring, and do not depend on them. Of the
validation split the images with a near-duplicate in the test split are predicted, and not scored:
what is chosen there must not have seen it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.data.crops import Crops, require_detector
from distill.data.data_set import DataSet, add_data_options, data_of
from distill.data.domains import Grouping
from distill.data.duplicates import without_near_duplicates
from distill.data.splits import Split, join, open_crops
from distill.evaluation import counts, shared
from distill.evaluation.metrics import PROTOCOLS, fit_temperature, has_votes, score, tempered
from distill.evaluation.report import (
    by_domain,
    format_calibration,
    format_confusion,
    format_domains,
    report,
    write_predictions,
)
from distill.models.face_files import add_backbone_options
from distill.models.predict import (
    Predictor,
    ensemble,
    in_blocks,
    logits_behind,
    open_predictor,
    validated,
)
from edge.base import cli
from edge.base.errors import DataError
from edge.base.files import refuse_unwritable, write_atomically
from edge.inference.bundle import load_bundle
from edge.records import COUNTINGS


def build_parser() -> argparse.ArgumentParser:
    p = cli.parser(
        "distill-eval",
        "Score a bundle (as deployed) or a checkpoint (as trained) on a labelled split.",
        "distill-eval --bundle edge/models --data ferplus --layout ferplus --split test\n"
        "  distill-eval --checkpoint runs/student/best.pt --data ferplus --layout ferplus \\\n"
        "    --split valid --robustness --plots plots",
    )
    what = p.add_mutually_exclusive_group(required=True)
    what.add_argument("--bundle", type=Path, metavar="DIR", help="what export-model wrote")
    what.add_argument(
        "--checkpoint",
        type=Path,
        action="append",
        metavar="FILE",
        help="what distill-train wrote; the last epochs in its folder are scored too. Given again,\n"
        "with a checkpoint or a bundle: all answer together, as they teach",
    )
    add_data_options(p)
    p.add_argument(
        "--split", choices=("train", "valid", "test"), default="test", help="what is scored"
    )
    p.add_argument("--precision", choices=("fp32", "int8"), default="int8", help="of a bundle")
    p.add_argument("--predictions", type=Path, metavar="out.csv", help="write the probabilities")
    p.add_argument("--json", type=Path, metavar="out.json", help="write the scores")
    p.add_argument("--robustness", action="store_true", help="small, dark, turned, masked ...")
    p.add_argument(
        "--counts",
        action="store_true",
        help="count made-up rooms as a node does, against the truth",
    )
    p.add_argument(
        "--rooms", type=_positive, default=counts.ROOMS, metavar="N", help="of each kind"
    )
    p.add_argument(
        "--room-sizes",
        type=_positive,
        nargs="+",
        default=counts.ROOM_SIZES,
        metavar="PEOPLE",
        help="people in a room",
    )
    p.add_argument("--seed", type=_from_zero, default=0, metavar="N", help="of the rooms")
    p.add_argument("--plots", type=Path, metavar="DIR", help="write them as PNG")
    p.add_argument("--weights", type=Path, metavar="DIR", help="folder with the detector's file")
    add_backbone_options(p)
    return p


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number above 0")
    return int(text)


def _from_zero(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 0")
    return int(text)


def _open(args: argparse.Namespace) -> Predictor:
    """Open what the command line names; several checkpoints answer together, a bundle among them
    without its counting constants, of which the mean would hold a part."""
    if args.bundle:
        return open_predictor(args.bundle, args.dinov2, args.face, args.precision)
    several = len(args.checkpoint) > 1
    return ensemble(
        [open_predictor(p, args.dinov2, args.face, learned=several) for p in args.checkpoint]
    )


def _labelled(data: DataSet, model: Predictor, crops: dict[str, Crops], name: str) -> Split:
    """Join a split's labels, in the model's order, and leave near-duplicates of the test split out."""
    split = shared.over(join(data, name, crops), model.labels)
    return without_near_duplicates(split, name, data, model.crop, cli.say)


def _calibrate(
    args: argparse.Namespace,
    data: DataSet,
    model: Predictor,
    crops: dict[str, Crops],
    split: Split,
    probabilities: NDArray[np.float64],
) -> tuple[str, dict[str, Any]]:
    """Score ECE and NLL at the temperature that fits the validation split's votes (Guo et al. 2017)."""
    valid, known = split, probabilities
    if args.split != "valid":
        try:
            valid = _labelled(data, model, crops, "valid")
        except DataError as error:  # what was scored by now does not need that split
            return f"calibrated: not, since {error}", {"calibrated": None}
        known = in_blocks(model.predict, valid.crops.pixels, "predicting valid")
    voted = valid.targets.sum(axis=1) > 0
    if not voted.any():
        return "calibrated: not, since no image of valid has a label", {"calibrated": None}
    logits = logits_behind(known[voted]).astype(np.float32)
    temperature = fit_temperature(logits, valid.targets[voted])
    at = tempered(probabilities, temperature)
    scores = score(at, split.votes, split.labels, PROTOCOLS[0], rounds=0)
    entry = {"temperature": round(temperature, 5)}
    entry |= {name: getattr(scores, name) for name in ("ece", "ece_votes", "nll", "nll_label")}
    line = (
        f"calibrated: temperature {temperature:.3f}, fitted on {int(voted.sum())} images of valid:\n"
        + "\n".join(format_calibration(scores))
    )
    return line, {"calibrated": entry}


def _score_last_epochs(
    args: argparse.Namespace, chosen: Predictor, paths: list[Path], split: Split, best: float
) -> tuple[str, dict[str, Any]]:
    """Score the last epochs next to the chosen one: a choice that was only luck shows. What is beside
    the chosen one and cannot be read is told of."""
    found: dict[str, float] = {}
    for path in paths:
        try:
            known = open_predictor(path, args.dinov2, args.face)
            if known.crop != chosen.crop or not set(split.labels) <= set(known.labels):
                raise DataError(f"{path} is another run's; take it out of that folder")
        except DataError as error:
            cli.say(f"not scored beside the chosen one: {error}")
            continue
        model = shared.restrict(known, split.labels)
        p = in_blocks(model.predict, split.crops.pixels, f"predicting by {path.stem}")
        found[path.stem] = score(p, split.votes, split.labels, PROTOCOLS[0], rounds=0).accuracy
    accuracies = list(found.values())
    entry = {"last_epochs": list(found), "accuracies": accuracies, "best": best}
    if not found:
        return f"no last epochs, chosen {100 * best:.2f}", entry
    cells = ", ".join(f"{100 * value:.2f}" for value in accuracies)
    mean = 100 * float(np.mean(accuracies))
    return f"last {len(found)} epochs {cells} (mean {mean:.2f}), chosen {100 * best:.2f}", entry


def _measure_robustness(model: Predictor, split: Split) -> list[dict[str, Any]]:
    try:
        from distill.evaluation import robustness
    except ImportError as error:
        raise DataError("--robustness needs torch; install the 'train' extra") from error
    rows = robustness.measure(split, model.crop.template, model.predict, cli.say)
    print(robustness.table(rows))
    return rows


def _count_rooms(
    args: argparse.Namespace, split: Split, probabilities: NDArray[np.float64]
) -> list[counts.CountScores]:
    """Count rooms by the constants of a bundle; a checkpoint has none."""
    none = np.zeros(len(split.labels), dtype=np.float32)
    bundle = load_bundle(args.bundle) if args.bundle else None
    offsets = dict.fromkeys(COUNTINGS, none)
    if bundle:
        own = [bundle.labels.index(label) for label in split.labels]
        offsets = {c: bundle.offsets(c)[own] for c in COUNTINGS}
    sizes = sorted(set(args.room_sizes))
    scores = counts.measure(split, probabilities, offsets, sizes, args.rooms, args.seed)
    print(counts.table(scores, args.rooms))
    if not has_votes(split.votes):
        print("the data has no votes: rooms are counted against the labels alone")
    return scores


def run(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    refuse_unwritable("--predictions", args.predictions)
    refuse_unwritable("--json", args.json)
    refuse_unwritable("--plots", args.plots, folder=True)
    require_detector(args.weights)
    model = _open(args)
    data = data_of(args, cli.say, (args.split,))
    known, labels = model.labels, data.votes(args.split)[1]
    common = shared.shared_classes(known, labels)
    crops = open_crops(data, model.crop, args.weights, cli.say)
    names = crops[args.split].names
    answers = in_blocks(model.predict, crops[args.split].pixels, f"predicting {args.split}")
    if args.predictions:
        write_predictions(args.predictions, names, model.labels, answers)
    model = shared.restrict(model, common)
    split = _labelled(data, model, crops, args.split)
    answers = answers[np.isin(names, split.crops.names)]
    probabilities = shared.columns(answers, known, split.labels)
    lines, differs = shared.explain(split, labels, known, answers)
    text, entries = report(split, probabilities, args.layout, args.split, model.precision)
    asked = [args.bundle] if args.bundle else args.checkpoint
    if "valid" in crops and (knowing := [str(path) for path in asked if not validated(path)]):
        lines.append(
            f"{' and '.join(knowing)} learned from all of train (--train-on-all), or its start did: "
            f"where valid is a part of that, it knows the pictures that are scored or fitted on there"
        )
    print(f"{' and '.join(map(str, asked))} {model.precision} on {args.data} {args.split}")
    print("\n".join([*lines, text]))
    entries += [differs] if differs else []
    scores = score(probabilities, split.votes, split.labels, PROTOCOLS[0], rounds=0)
    print(format_confusion(scores, split.labels))
    if "train" in crops:
        domains = by_domain(
            split, probabilities, Grouping.by(crops["train"]).of(split.crops.pixels)
        )
        print(format_domains(domains))
        entries.append({"domains": domains})
    if "valid" in crops:
        line, entry = _calibrate(args, data, model, crops, split, probabilities)
        print(line)
        entries.append(entry)
    alone = args.checkpoint[0] if args.checkpoint and len(args.checkpoint) == 1 else None
    if alone and (epochs := sorted(alone.parent.glob("epoch-*.pt"))):
        line, entry = _score_last_epochs(args, model, epochs, split, scores.accuracy)
        print(line)
        entries.append(entry)
    rows = _measure_robustness(model, split) if args.robustness else []
    if rows:
        entries.append({"robustness": rows})
    counted = _count_rooms(args, split, probabilities) if args.counts else []
    if counted:
        entries.append({"counts": counts.as_entry(counted, args.rooms, args.seed)})
    if args.json:
        write_atomically(args.json, (json.dumps(entries, indent=1) + "\n").encode())
    if args.plots:
        from distill.evaluation import plots

        title = f"{args.layout} {args.split}, {model.precision}"
        log = alone.parent / "log.csv" if alone else None
        plots.write_all(args.plots, title, split, probabilities, scores, rows, log)
        if counted:
            plots.counts(args.plots / "counts.png", counted, plots.headline(title, scores))
        print(f"plots written to {args.plots}")


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run("distill-eval", run, argv)


if __name__ == "__main__":
    sys.exit(main())
