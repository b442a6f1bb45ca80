"""What is said of one split: scores for a terminal, for bundle.json and, image by image, as CSV.

The headline counts every image: where the detector finds no face the whole image is read, and the
share of those is printed; a second row counts each of them as an error.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.data.domains import DOMAINS
from distill.data.labels import DATA_NAMES
from distill.data.layouts import some
from distill.data.splits import Split, majority
from distill.evaluation.metrics import LABELS, PROTOCOLS, Scores, score, truth_of
from edge.base.errors import DataError
from edge.base.files import write_atomically


def count_undetected(
    split: Split, probabilities: NDArray[np.float64], protocol: str
) -> tuple[float, float]:
    """Return, of the images that the protocol scores, the share without a detected face, and the
    accuracy when each of those counts as wrong, whatever was predicted."""
    truth = truth_of(split.votes, split.labels, protocol)
    kept = truth >= 0
    hit = (probabilities.argmax(axis=1) == truth) & split.crops.found
    return float(1 - split.crops.found[kept].mean()), float(hit[kept].mean())


def format_calibration(scores: Scores) -> list[str]:
    """Format ECE and NLL, a line for what they are against."""
    label = f"ECE(15) {scores.ece:.4f}   NLL {scores.nll_label:.4f}"
    if scores.ece_votes is None:
        return [f"  against the label    {label}   (the data has no votes)"]
    votes = f"ECE(15) {scores.ece_votes:.4f}   NLL {scores.nll:.4f}"
    return [f"  against the label    {label}", f"  against the votes    {votes}"]


def _format_agreement(scores: Scores) -> list[str]:
    cells = [
        f"    {100 * b.low:3.0f} to {100 * b.high:3.0f} % of them  {100 * b.accuracy:6.2f} %  n={b.n}"
        for b in scores.agreement
        if b.accuracy is not None
    ]
    return ["  accuracy by the share of all votes that the label got", *cells] if cells else []


def format_scores(scores: Scores, labels: Sequence[str], undetected: float, strict: float) -> str:
    """Format for a terminal of 80 columns. labels: the classes, also those without an image."""
    low, high = scores.accuracy_interval
    mlow, mhigh = scores.mean_class_accuracy_interval
    by_label = scores.protocol == LABELS
    lines = [
        ("accuracy and mean class accuracy" if by_label else scores.protocol)
        + f"  n={scores.n} excluded={scores.excluded} "
        f"whole-image fallback {100 * undetected:.2f} %",
        f"  accuracy             {100 * scores.accuracy:.2f} %  [{100 * low:.2f}, {100 * high:.2f}]",
        f"  undetected as errors {100 * strict:.2f} %",
        f"  mean class accuracy  {100 * scores.mean_class_accuracy:.2f} %  "
        f"[{100 * mlow:.2f}, {100 * mhigh:.2f}]",
        f"  macro-F1 {scores.macro_f1:.4f}",
        *format_calibration(scores),
    ]
    if absent := [label for label in labels if label not in scores.recall]:
        told = f"no image of {some(absent)}: mean class accuracy is over the other {len(scores.recall)}"
        lines += textwrap.wrap(told, 79, initial_indent="  ", subsequent_indent="    ")
    lines += _format_agreement(scores)
    row = "  recall"
    for label, value in scores.recall.items():
        cell = f" {label} {value:.3f}"
        if len(row) + len(cell) > 79:
            lines.append(row)
            row = "        "
        row += cell
    return "\n".join([*lines, row])


def format_confusion(scores: Scores, labels: Sequence[str]) -> str:
    """Format rows of the truth and columns of the answers, names cut to fit 80 columns."""
    lines = ["  truth \\ answer " + "".join(f"{name[:7]:>8}" for name in labels)]
    for name, row in zip(labels, scores.confusion, strict=True):
        lines.append(f"  {name[:13]:14}" + "".join(f"{count:8d}" for count in row))
    return "\n".join(lines)


def by_domain(
    split: Split, probabilities: NDArray[np.float64], domains: NDArray[np.str_]
) -> dict[str, dict[str, Any]]:
    """Return n and accuracy by the majority's label in each domain that has a labelled image. domains:
    (N,), of `Grouping.of`."""
    truth = majority(split.votes, len(split.labels))
    hit = probabilities.argmax(axis=1) == truth
    kept = {name: (truth >= 0) & (domains == name) for name in DOMAINS}
    return {
        name: {"n": int(rows.sum()), "accuracy": round(float(hit[rows].mean()), 5)}
        for name, rows in kept.items()
        if rows.any()
    }


def mean_of_domains(domains: dict[str, dict[str, Any]]) -> float:
    """Return the mean accuracy, each domain of `by_domain` weighing the same."""
    return float(np.mean([entry["accuracy"] for entry in domains.values()]))


def format_domains(domains: dict[str, dict[str, Any]]) -> str:
    """Format for a terminal of 80 columns."""
    lines = [f"accuracy by kind of picture, mean of them {100 * mean_of_domains(domains):.2f} %"]
    lines += [
        f"  {name:10} {100 * entry['accuracy']:6.2f} %  n={entry['n']}"
        for name, entry in domains.items()
    ]
    return "\n".join(lines)


def write_predictions(
    path: Path, names: Sequence[str], labels: Sequence[str], probabilities: NDArray[np.float64]
) -> None:
    """Write `name,` and one column `p_LABEL` a label, eight decimals."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["name", *(f"p_{label}" for label in labels)])
    for name, row in zip(names, probabilities, strict=True):
        writer.writerow([name, *(f"{value:.8f}" for value in row)])
    write_atomically(path, buffer.getvalue().encode())


def as_entry(
    scores: Scores, layout: str, split: str, precision: str, undetected: float, strict: float
) -> dict[str, Any]:
    """Make one entry of bundle.json's `scores`."""
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


def report(
    split: Split, probabilities: NDArray[np.float64], layout: str, name: str, precision: str
) -> tuple[str, list[dict[str, Any]]]:
    """Return the text to print and the entries, of both protocols where the data set has votes. Raises
    DataError where no image has a label."""
    if not (majority(split.votes, len(split.labels)) >= 0).any():
        raise DataError(f"no image of '{name}' has a label to score against; check its votes")
    texts, entries = [], []
    for protocol in PROTOCOLS if layout == "ferplus" else (LABELS,):
        scores = score(probabilities, split.votes, split.labels, protocol)
        undetected, strict = count_undetected(split, probabilities, protocol)
        texts.append(format_scores(scores, split.labels, undetected, strict))
        entries.append(as_entry(scores, layout, name, precision, undetected, strict))
    return "\n".join(texts), entries
