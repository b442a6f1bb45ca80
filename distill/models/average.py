"""Average the weights of several checkpoints of one network: `python -m distill.models.average`.

    a.pt, b.pt, ... of the same recipe's network -> their mean, as a checkpoint like each of them

Wortsman et al., "Model soups", ICML 2022. The mean lies well only where the networks lie near each
other: epochs of one run, or runs from one start. Batch statistics are averaged too. Seeds that began
apart answer together instead (`--teacher` or `--checkpoint` given again).

A bundle among them is a student's start: what was learned from it on harder images and the start
itself often meet in a mean that keeps the one's accuracy and the other's sturdiness (Wortsman et al.,
"Robust fine-tuning of zero-shot models", CVPR 2022). Bundles hold the deployed form alone, so then all
are averaged in that form.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill.models import store
from distill.models.build import build_student
from distill.models.checkpoint import read, was_validated
from distill.models.predict import validated
from distill.models.provenance import kept
from distill.models.warm_start import RECALIBRATION_FACES, Start, read_start, warm_start
from edge.base import cli
from edge.base.errors import DataError, UsageError

# What the mean must have in common with each: the network, its classes, and what it reads.
SAME = ("schema", "labels", "frozen")
SECTIONS = ("crop", "student", "teacher")


def average(paths: Sequence[Path]) -> dict[str, Any]:
    """Return the mean as a checkpoint's content; all but the weights is the first file's.

    Its `valid_accuracy` is None and its `epoch` the last of them: the mean was not scored. It was
    `validated` where all of them were, and `averaged` says of each what it learned from, and how many
    `times` it counts where it was given again. Raises DataError where a file is none, or of another
    network."""
    first, recipe, _ = read(paths[0])
    contents, learned = [first], [kept(paths[0], recipe, first)]
    for path in paths[1:]:
        content, other, _ = read(path)
        different = [key for key in SAME if content[key] != first[key]]
        different += [key for key in SECTIONS if getattr(other, key) != getattr(recipe, key)]
        if different:
            raise DataError(
                f"{path} has another '{different[0]}' than {paths[0]}; average like ones"
            )
        contents.append(content)
        learned.append(kept(path, other, content))
    networks = [store.current_names(content["network"]) for content in contents]
    mean = {}
    for name, value in networks[0].items():
        if any(name not in net or net[name].shape != value.shape for net in networks):
            raise DataError(f"{paths[0]} and another file differ in '{name}'; train them again")
        stacked = torch.stack([network[name] for network in networks])
        refuse_not_finite({name: stacked})
        # Counters of batches are whole numbers: the largest stands for all.
        mean[name] = stacked.mean(dim=0) if stacked.is_floating_point() else stacked.amax(dim=0)
    epoch = max(content["epoch"] for content in contents)
    kept_apart = all(map(was_validated, contents))
    return {
        **first,
        "network": mean,
        "epoch": epoch,
        "valid_accuracy": None,
        "validated": kept_apart,
        "averaged": _times(learned),
    }


def _times(learned: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Keep what each file learned from once, with `times` where it was given more than once."""
    found = [one for place, one in enumerate(learned) if one not in learned[:place]]
    return [{**one, "times": times} if (times := learned.count(one)) > 1 else one for one in found]


def of_deployed(paths: Sequence[Path]) -> dict[str, Any]:
    """Return the mean of students' deployed forms, bundles among them, as a checkpoint's content; what
    is not a weight is the first checkpoint's.

    A bundle's weights hold its temperature, so the mean's is fitted anew when it is exported. Raises
    DataError as `average` does, and where no checkpoint is among them."""
    files = [path for path in paths if not path.is_dir()]
    if not files:
        raise DataError("none of these is a checkpoint, whose recipe the mean would have; add one")
    content, recipe, _ = read(files[0])
    starts = [read_start(path) for path in paths]
    student = build_student(recipe, len(content["labels"]))
    for path, start in zip(paths, starts, strict=True):
        pairs = {
            "labels": (start.labels, tuple(content["labels"])),
            "crop": (start.recipe.crop, recipe.crop),
            "student": (start.config, student.config),
        }
        if different := [name for name, (own, first) in pairs.items() if own != first]:
            raise DataError(
                f"{path} has another '{different[0]}' than {files[0]}; average like ones"
            )
        refuse_not_finite(start.weights)
    weights = {
        name: torch.stack([start.weights[name] for start in starts]).mean(dim=0)
        for name in starts[0].weights
    }
    labels = starts[0].labels
    mean = Start(student.config, labels, recipe, weights, {})
    # In evaluation mode the student computes the mean whatever these are; `--start` measures them anew.
    faces = np.random.default_rng(0).integers(
        0, 256, (RECALIBRATION_FACES, recipe.crop.channels, recipe.crop.size, recipe.crop.size)
    )
    warm_start(student, mean, labels, faces.astype(np.uint8))
    kept_apart = all(map(validated, paths))
    return {
        **content,
        "network": student.state_dict(),
        "valid_accuracy": None,
        "validated": kept_apart,
        "averaged": _times([start.metadata for start in starts]),
    }


def refuse_not_finite(weights: Mapping[str, Tensor]) -> None:
    """Raise DataError for NaN and infinity."""
    for name, value in weights.items():
        if not bool(value.isfinite().all()):
            raise DataError(
                f"'{name}' holds weights that are not finite (NaN); leave that file out"
            )


def run(argv: Sequence[str] | None = None) -> None:
    p = cli.parser(
        "python -m distill.models.average",
        "Average the weights of several checkpoints of one network.",
        "python -m distill.models.average runs/teacher/epoch-*.pt --out runs/teacher/mean.pt",
    )
    p.add_argument(
        "checkpoint",
        type=Path,
        nargs="+",
        metavar="FILE|BUNDLE",
        help="given twice it counts twice",
    )
    p.add_argument("--out", type=Path, required=True, metavar="FILE", help="the mean")
    args = p.parse_args(argv)
    if len(args.checkpoint) < 2:
        raise UsageError("one checkpoint is its own mean: give two or more")
    if args.out in args.checkpoint:
        raise UsageError(f"--out {args.out} is one of the checkpoints; choose another name")
    bundles = any(path.is_dir() for path in args.checkpoint)
    store.save(args.out, (of_deployed if bundles else average)(args.checkpoint))
    print(f"mean of {len(args.checkpoint)} checkpoints: {args.out}; score it by distill-eval")


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run("distill.models.average", run, argv)


if __name__ == "__main__":
    sys.exit(main())
