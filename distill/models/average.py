"""Average the weights of several checkpoints of one network: `python -m distill.models.average`.

    a.pt, b.pt, ... of the same recipe's network -> their mean, as a checkpoint like each of them

Wortsman et al., "Model soups", ICML 2022. The mean lies well only where the networks lie near each
other: epochs of one run, or runs from one start. Batch statistics are averaged too. Seeds that began
apart answer together instead (`--teacher` or `--checkpoint` given again).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from distill.models import store
from distill.models.checkpoint import read
from edge.base import cli
from edge.base.errors import DataError, UsageError

# What the mean must have in common with each: the network, its classes, and what it reads.
SAME = ("schema", "labels", "frozen")
SECTIONS = ("crop", "student", "teacher")


def average(paths: Sequence[Path]) -> dict[str, Any]:
    """Return the mean as a checkpoint's content; all but the weights is the first file's.

    Its `valid_accuracy` is None and its `epoch` the last of them: the mean was not scored. Raises
    DataError where a file is none, or of another network."""
    first, recipe, _ = read(paths[0])
    contents = [first]
    for path in paths[1:]:
        content, other, _ = read(path)
        different = [key for key in SAME if content[key] != first[key]]
        different += [key for key in SECTIONS if getattr(other, key) != getattr(recipe, key)]
        if different:
            raise DataError(
                f"{path} has another '{different[0]}' than {paths[0]}; average like ones"
            )
        contents.append(content)
    networks = [store.current_names(content["network"]) for content in contents]
    mean = {}
    for name, value in networks[0].items():
        if any(name not in net or net[name].shape != value.shape for net in networks):
            raise DataError(f"{paths[0]} and another file differ in '{name}'; train them again")
        stacked = torch.stack([network[name] for network in networks])
        if not bool(stacked.isfinite().all()):
            raise DataError(
                f"'{name}' holds weights that are not finite (NaN); leave that file out"
            )
        # Counters of batches are whole numbers: the largest stands for all.
        mean[name] = stacked.mean(dim=0) if stacked.is_floating_point() else stacked.amax(dim=0)
    epoch = max(content["epoch"] for content in contents)
    return {**first, "network": mean, "epoch": epoch, "valid_accuracy": None}


def run(argv: Sequence[str] | None = None) -> None:
    p = cli.parser(
        "python -m distill.models.average",
        "Average the weights of several checkpoints of one network.",
        "python -m distill.models.average runs/teacher/epoch-*.pt --out runs/teacher/mean.pt",
    )
    p.add_argument("checkpoint", type=Path, nargs="+", metavar="FILE")
    p.add_argument("--out", type=Path, required=True, metavar="FILE", help="the mean")
    args = p.parse_args(argv)
    if len(args.checkpoint) < 2:
        raise UsageError("one checkpoint is its own mean: give two or more")
    if args.out in args.checkpoint:
        raise UsageError(f"--out {args.out} is one of the checkpoints; choose another name")
    store.save(args.out, average(args.checkpoint))
    print(f"mean of {len(args.checkpoint)} checkpoints: {args.out}; score it by distill-eval")


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run("distill.models.average", run, argv)


if __name__ == "__main__":
    sys.exit(main())
