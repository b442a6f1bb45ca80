"""Score a bundle by how far faces are turned: `python -m distill.evaluation.pose`, the figures behind
`classifier.max_turn`.

Faces of a split are grouped by the yaw that the node would estimate for them. In each group: the
share of all faces, the accuracy (majority-8), how often the annotators' own most frequent label of
that group would be right (a guess that sees no face), and total variation between the published
sum of probabilities and the votes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distill.data.crops import crop_detector, find_single
from distill.data.data_set import DataSet, add_data_options, data_of
from distill.data.duplicates import without_near_duplicates
from distill.data.splits import Split, join, majority, open_crops
from distill.models.predict import open_predictor
from edge.base import cli
from edge.pose import yaw
from edge.sources.images import read_picture

EDGES = (0, 15, 30, 40, 50, 60, 70, 80, 90)  # degrees


def build_parser() -> argparse.ArgumentParser:
    p = cli.parser(
        "python -m distill.evaluation.pose",
        "Score a bundle by how far faces are turned.",
        "python -m distill.evaluation.pose --data ferplus --layout ferplus --split valid",
    )
    p.add_argument(
        "--bundle",
        type=Path,
        default=Path("edge/models"),
        metavar="DIR",
        help="what export-model wrote",
    )
    add_data_options(p)
    p.add_argument(
        "--split", choices=("train", "valid", "test"), default="valid", help="what is scored"
    )
    p.add_argument("--precision", choices=("fp32", "int8"), default="int8", help="of the bundle")
    p.add_argument("--weights", type=Path, metavar="DIR", help="folder with the detector's file")
    return p


def turns(data: DataSet, split: str, weights: Path | None = None) -> dict[str, float | None]:
    """Estimate each image's yaw in degrees, by name; None where no face is found."""
    detector = crop_detector(weights)
    try:
        images = data.images[split]
        faces = {name: find_single(read_picture(path), detector) for name, path in images}
    finally:
        detector.backend.close()
    return {name: yaw(face.landmarks) if face else None for name, face in faces.items()}


def table(
    degrees: NDArray[np.float64], probabilities: NDArray[np.float64], split: Split
) -> list[str]:
    """Format a line a group of EDGES. degrees: (N,), nan without a face; probabilities: (N, K)."""
    truth = majority(split.votes, len(split.labels))
    lines = [
        f"{'yaw, degrees':>14} {'faces':>6} {'share %':>8} {'labelled':>8} {'accuracy %':>10} "
        f"{'guess %':>8} {'error of counts':>15}"
    ]
    groups = {
        f"{low} to {high}": (np.abs(degrees) >= low)
        & (np.abs(degrees) < high + (high == EDGES[-1]))
        for low, high in pairwise(EDGES)
    }
    for name, chosen in {**groups, "none found": np.isnan(degrees)}.items():
        labels = truth[chosen & (truth >= 0)]
        given = probabilities[chosen & (truth >= 0)]
        share = f"{name:>14} {chosen.sum():6d} {100 * chosen.mean():8.2f} {len(labels):8d}"
        if not len(labels):
            lines.append(share)
            continue
        right = float((given.argmax(axis=1) == labels).mean())
        guess = float(np.bincount(labels).max() / len(labels))
        votes = split.targets[chosen & (truth >= 0)].mean(axis=0)
        error = float(np.abs(given.mean(axis=0) - votes).sum() / 2)
        lines.append(f"{share} {100 * right:10.1f} {100 * guess:8.1f} {error:15.3f}")
    return lines


def run(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    model = open_predictor(args.bundle, "", (), args.precision)
    data = data_of(args, cli.say, (args.split,))
    crops = open_crops(data, model.crop, args.weights, cli.say)
    split = join(data, args.split, crops).ordered(model.labels, "the model")
    split = without_near_duplicates(split, args.split, data, model.crop, cli.say)
    known = turns(data, args.split, args.weights)
    degrees = np.array([known[name] for name in split.crops.names], dtype=np.float64)
    print("\n".join(table(degrees, model.predict(split.crops.pixels), split)))


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run("distill.evaluation.pose", run, argv)


if __name__ == "__main__":
    sys.exit(main())
