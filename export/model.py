"""`export-model`: checkpoint or bundle -> bundle, refused when INT8 strays from float."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.data.crops import crop_detector, require_detector
from distill.data.data_set import DataSet, add_data_options, data_of
from distill.data.disk import refuse_full_disk
from distill.data.duplicates import (
    NearDuplicate,
    chosen_on,
    find_near_duplicates,
    names_of,
    without_near_duplicates,
)
from distill.data.labels import DATA_NAMES
from distill.data.sampling import validation_labels
from distill.data.splits import (
    Split,
    crops_folder,
    join,
    majority,
    open_crops,
    refuse_other_classes,
)
from distill.evaluation.prior import METHODS, choose_prior, read_prior, sample
from distill.evaluation.report import report
from distill.evaluation.robustness import measure
from distill.models.predict import in_blocks, logits_of, predict_bundle
from distill.training.deployable import ENOUGH_CROPS, FEWEST_LABELS
from edge.base import cli
from edge.base.errors import DataError, EdgeError
from edge.base.files import refuse_unwritable
from edge.health.reports import versions
from edge.inference.bundle import load_bundle
from edge.inference.weights import locked
from edge.tools.bench import processor
from export.agree import torch_equals_onnx
from export.calibrate import balanced, crops_of, pictures_in
from export.describe import FILES, KNOWN_INPUTS, describe, known_inputs
from export.folder import put_in_place, refuse_other_folders
from export.metadata import stamp, write_description
from export.precisions import agree_all, judge_agreement, row, write_all
from export.source import Source, read_source
from export.to_int8 import Quantiser, attentions
from export.to_onnx import export_onnx, fold

CALIBRATION_CROPS = 1024
DRAFTS, BESIDE_WEIGHTS = 8, 2**20  # float files' worth of drafts, and bytes of graphs and texts
LEARNED_CROPS = 4096  # training crops on which the constants of `expected` are tried too


def export(args: argparse.Namespace) -> None:
    """Write everything into a draft folder next to the target and replace the target in one step."""
    source = read_source(args.source)
    if not source.provenance.get("validated", True):
        cli.say(
            "this network, or its start, learned from all of train (--train-on-all): temperature, "
            "constants and tolerance are taken on pictures that it knows; for a node train without "
            "that option"
        )
    if args.prior and args.prior not in METHODS:
        read_prior(Path(args.prior), source.labels)  # refused before an hour of measuring
    spec = source.recipe.crop.spec()

    if args.calibration:
        pictures_in(args.calibration)
    refuse_other_folders(args.out)
    refuse_unwritable("--out", args.out.parent, folder=True)
    require_detector(args.weights)
    needs = ("train", "valid", "test") if args.test else ("train", "valid")
    data = data_of(args, cli.say, needs)
    refuse_other_classes(data.votes("train")[1], source.labels, "the model")  # before any crop
    crops = open_crops(data, spec, args.weights, cli.say)
    train, valid = (
        join(data, name, crops).ordered(source.labels, "the model") for name in ("train", "valid")
    )
    weights = sum(value.numel() for value in source.student.parameters())
    room = DRAFTS * 4 * weights + BESIDE_WEIGHTS
    # ONNX's shape inference writes what fits on a full disk, and does not say so.
    refuse_full_disk(args.out.parent, room, "make room, or give --out on another disk")
    duplicates = find_near_duplicates(data, crops_folder(data, spec), cli.say)
    with tempfile.TemporaryDirectory(dir=args.out.parent, prefix=f".{args.out.name}.") as draft:
        folder = Path(draft) / "bundle"
        folder.mkdir()
        _fill(folder, source, train, valid, duplicates, args, cli.say)
        _report(folder, data, crops, args)
        put_in_place(folder, args.out)
    print(f"bundle written to {args.out}")


def judge_temperature(
    temperature: float, images: int, force: bool, say: Callable[[str], None]
) -> None:
    """Say what a temperature at an end of its range tells of the checkpoint. images: it was fitted on.
    Raises EdgeError at the upper end, where every answer is made a guess, unless `force`."""
    if np.log(temperature) > 1.99 and not force:
        raise EdgeError(
            f"the fitted temperature {temperature:.3g} is at the upper end of its range: this "
            f"checkpoint has learned nothing that can be calibrated; train it, or --force"
        )
    if np.log(temperature) < -1.99:
        say(
            f"the fitted temperature {temperature:.3g} is at the lower end of its range: nearly all "
            f"of {images} images of valid are read right; harder ones calibrate better"
        )


def _fill(
    folder: Path,
    source: Source,
    train: Split,
    valid: Split,
    duplicates: dict[str, list[NearDuplicate]],
    args: argparse.Namespace,
    say: Callable[[str], None],
) -> None:
    classes = len(source.labels)
    # Nothing is fitted or judged on pictures that the test split has too.
    unchosen = names_of(duplicates["valid"])
    apart, truth = chosen_on(valid, unchosen), validation_labels(valid, unchosen)
    if not (truth >= 0).any():
        raise DataError(f"no image of {args.data}'s valid has a label; give data with labels")
    voted = apart.targets.sum(axis=1) > 0
    student, temperature = source.deploy(apart.crops.pixels[voted], apart.targets[voted], cli.say)
    if source.temperature is None:
        judge_temperature(temperature, int(voted.sum()), args.force, say)
    export_onnx(student, folder / FILES["fp32"])
    difference = torch_equals_onnx(student, folder / FILES["fp32"], valid.crops.pixels[:512])
    say(f"torch = ONNX within {difference:.2g} over {min(512, len(valid.crops.names))} crops")
    labels = majority(train.votes, classes)
    labels[[name in names_of(duplicates["train"]) for name in train.crops.names]] = -1
    faces = _calibration_faces(source, train, labels, args, say)
    quantiser = Quantiser(folder / FILES["fp32"], faces, folder.parent)
    sensitivity = write_all(quantiser, folder, faces[::2], say)
    which = args.prior or ("fitted" if _enough_for_constants(truth, labels, say) else "none")
    prior = None
    if which != "none":
        own = names_of(duplicates["train"])
        rows = np.flatnonzero([name not in own for name in train.crops.names])
        some = np.linspace(0, len(rows) - 1, min(LEARNED_CROPS, len(rows))).astype(int)
        # Of the file that most nodes run: INT8 moves the rare classes, and they are what is fitted.
        unseen, learned = (
            sample(split, places, logits_of(folder / FILES["int8-cpu"], split.crops.pixels[places]))
            for split, places in ((apart, np.arange(len(apart.votes))), (train, rows[some]))
        )
        name = f"{DATA_NAMES[args.layout]} valid"
        prior = choose_prior(which, unseen, learned, source.labels, name, say)
    if prior:
        for file in FILES.values():
            fold(folder / file, prior.constants["dominant"])
    agreement = agree_all(folder, valid.crops.pixels, truth, source.labels)
    for role, found in agreement.items():
        print(row(role, "valid", found))
    strays = judge_agreement(agreement, int((truth >= 0).sum()), args.force, say)
    inputs = known_inputs(crop_detector(args.weights), source.recipe.crop.spec())
    np.save(folder / KNOWN_INPUTS, inputs)
    facts = {
        "calibration_crops": len(faces),
        "calibration_folder": bool(args.calibration),
        "sensitivity": {
            role: [error.as_dict() for error in errors] for role, errors in sensitivity.items()
        },
        "attention": [list(a.nodes) for a in attentions(quantiser.model)],
        "agreement": {role: found.as_dict() for role, found in agreement.items()},
        **({"out_of_tolerance": strays} if strays else {}),
        "detector_sha256": locked()["yunet"]["sha256"],
        "twins_left_out": {split: len(rows) for split, rows in duplicates.items()},
        "measured_with": {"processor": processor(), **versions()},
    }
    description = describe(folder, source, args.layout, temperature, prior, facts)
    stamp(folder, description)
    write_description(folder, description)


def _calibration_faces(
    source: Source,
    train: Split,
    labels: NDArray[np.int64],
    args: argparse.Namespace,
    say: Callable[[str], None],
) -> NDArray[np.uint8]:
    """Return what INT8 is calibrated on, (N, C, S, S): the pictures of --calibration, or training
    images balanced by their labels (N,)."""
    if args.calibration:
        spec, detector = source.recipe.crop.spec(), crop_detector(args.weights)
        faces = crops_of(args.calibration, CALIBRATION_CROPS, detector, spec, args.skip_bad, say)
    else:
        faces = train.crops.pixels[balanced(labels, len(source.labels), CALIBRATION_CROPS)]
    if len(faces) < ENOUGH_CROPS:
        say(
            f"warning: calibrated on {len(faces)} pictures; below {ENOUGH_CROPS} INT8's ranges may be "
            f"too narrow. --calibration DIR takes more, without labels"
        )
    return faces


def _enough_for_constants(
    truth: NDArray[np.int64], labels: NDArray[np.int64], say: Callable[[str], None]
) -> bool:
    """Tell whether constants can be fitted on the labels of valid and train, -1 for none."""
    counts = [int((known >= 0).sum()) for known in (truth, labels)]
    if min(counts) >= FEWEST_LABELS:
        return True
    say(
        f"warning: no constants for the counting, as by --prior none: {counts[0]} images of valid and "
        f"{counts[1]} of train have a label, {FEWEST_LABELS} of each are needed"
    )
    return False


def _report(folder: Path, data: DataSet, crops: Any, args: argparse.Namespace) -> None:
    """Score what was written, into bundle.json and the model card; on the test split only when asked,
    since that is for the one model that was chosen."""
    bundle = load_bundle(folder)
    entries = []
    names = ("valid", "test") if args.test else ("valid",)
    for name in names:
        split = join(data, name, crops).ordered(bundle.labels, "the bundle")
        split = without_near_duplicates(split, name, data, bundle.crop, cli.say)
        for precision in ("int8", "fp32"):
            predict = partial(predict_bundle, bundle, precision)
            what = f"predicting {name} in {precision}"
            probabilities = in_blocks(predict, split.crops.pixels, what)
            text, more = report(split, probabilities, args.layout, name, precision)
            entries += more
            print(f"{name} {precision}\n{text}")
    description = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    description["scores"] = entries
    if args.test:
        truth = majority(split.votes, len(split.labels))
        found = agree_all(folder, split.crops.pixels, truth, split.labels)
        for role, agreement in found.items():
            print(row(role, "test", agreement))
        description["provenance"]["agreement_test"] = {r: a.as_dict() for r, a in found.items()}
    description["provenance"]["robustness"] = measure(
        split,
        bundle.crop.template,
        lambda pixels: predict_bundle(bundle, "int8", pixels),
        cli.say,
    )
    write_description(folder, description)
    load_bundle(folder)


def run(argv: Sequence[str] | None = None) -> None:
    p = cli.parser(
        "export-model",
        "Turn a checkpoint, or a bundle again, into the bundle that the node runs: ONNX in float\n"
        "and INT8, known answers, scores. INT8 is calibrated on the data set's training crops,\n"
        "balanced by class, or on a folder of pictures without labels.",
        "export-model runs/student/best.pt --data ferplus --layout ferplus --out edge/models --test\n"
        "  export-model edge/models --data ferplus --layout ferplus --out plain --prior none",
    )
    p.add_argument(
        "source",
        type=Path,
        metavar="CHECKPOINT|BUNDLE",
        help="what distill-train or this command wrote",
    )
    add_data_options(p)
    p.add_argument("--out", type=Path, required=True, metavar="BUNDLE", help="the folder to write")
    p.add_argument(
        "--prior",
        metavar="fitted|log-prior|none|FILE.json",
        help="constants on the logits for each way of counting: fitted to the validation split's\n"
        f"totals (default, where {FEWEST_LABELS} images have a label), its log shares, none, or a\n"
        "file's",
    )
    p.add_argument(
        "--calibration",
        type=Path,
        metavar="DIR",
        help="calibrate INT8 on the pictures in this folder, which need no labels, instead",
    )
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
