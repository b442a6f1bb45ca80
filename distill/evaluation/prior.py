"""Constants on the logits, one a class, that take the training set's mix out of what is counted.

A network learns how common each class is; argmax then names a rare one far too seldom. Both methods
shift the logits and leave the network alone:

    fitted      the split's totals come out right (calibration in the large, by class)
    log-prior   -tau * log of the split's shares (Menon et al., "Long-tail learning via logit
                adjustment", ICLR 2021), tau chosen on the split

`dominant` counts argmax against majority labels, `expected` sums probabilities against votes. Letters:
N images, K classes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from distill.data.splits import Split, majority
from distill.training.deployable import FEWEST_LABELS
from edge.base.errors import DataError
from edge.classify import softmax
from edge.records import COUNTINGS, Counting

Method = Literal["fitted", "log-prior", "none"]
METHODS: tuple[Method, ...] = get_args(Method)
# Argmax as the limit of softmax(SHARPNESS * logits), which makes the fit convex and smooth.
SHARPNESS = 30.0
# Keeps the constants of a class with a handful of images finite; costs other classes nothing.
RIDGE = 3e-4
TAUS = tuple(round(0.05 * step, 2) for step in range(21))
# What argmax may lose in accuracy for rare classes, of 1.
ACCURACY_LOSS = 0.01
STRENGTHS = (1.0, 0.75, 0.5, 0.25, 0.0)  # shares of fitted constants, until the loss is within
ROOM, ROOMS = 25, 1000

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Prior:
    """constants: (K,) for each way of counting; fitted: how, on what, and what they do, for
    bundle.json."""

    constants: dict[Counting, Array]
    fitted: dict[str, Any]


def fit_totals(logits: Array, totals: Array, sharpness: float, ridge: float = RIDGE) -> Array:
    """Find constants (K,) of mean 0 so that softmax(sharpness * (logits + constants)) averages to
    `totals`, shares (K,) that sum to 1. logits: (N, K).

    Newton's method on mean logsumexp / sharpness - totals . c + ridge / 2 |c|^2, convex in c, whose
    gradient is the error of the totals."""
    classes = logits.shape[1]

    def objective(c: Array) -> float:
        z = sharpness * (logits + c)
        top = z.max(axis=1)
        log_sum = top + np.log(np.exp(z - top[:, None]).sum(axis=1))
        return float(log_sum.mean() / sharpness - totals @ c + ridge / 2 * c @ c)

    constants = np.zeros(classes)
    for _ in range(100):
        p = softmax(sharpness * (logits + constants))
        gradient = p.mean(axis=0) - totals + ridge * constants
        if np.abs(gradient).max() < 1e-7:
            break
        hessian = sharpness * (np.diag(p.mean(axis=0)) - p.T @ p / len(p)) + ridge * np.eye(classes)
        step = np.linalg.solve(hessian, gradient)
        now, size = objective(constants), 1.0
        while objective(constants - size * step) > now - 1e-4 * size * gradient @ step:
            size /= 2
            if size < 1e-6:
                break
        constants = constants - size * step
    return np.asarray(constants - constants.mean())


def count_error(counted: Array, truth: Array, room: int = ROOM) -> float:
    """Return the mean total variation between counted and true people of ROOMS rooms drawn with
    replacement, 0 to 1. counted, truth: (N, K), each row one person's shares."""
    rows = np.random.default_rng(0).integers(0, len(truth), (ROOMS, room))
    wrong = np.abs((counted - truth)[rows].sum(axis=1)).sum(axis=1) / 2
    return float(wrong.mean() / room)


def _one_hot(labels: NDArray[np.int64], classes: int) -> Array:
    return np.asarray(np.eye(classes)[labels])


def _accuracies(answers: NDArray[np.int64], truth: NDArray[np.int64]) -> tuple[float, float]:
    """Return accuracy and mean class accuracy; truth: (N,), all labelled."""
    hit = answers == truth
    return float(hit.mean()), float(np.mean([hit[truth == k].mean() for k in np.unique(truth)]))


@dataclass(frozen=True, slots=True)
class Sample:
    """What is fitted and chosen on: a split's logits (N, K), labels (N,), -1 for none, and targets
    (N, K), zero rows for none; voted: whether there is more than one vote an image."""

    logits: Array
    labels: NDArray[np.int64]
    targets: Array
    voted: bool

    def effect(self, counting: Counting, constants: Array) -> dict[str, float]:
        """Say what constants do: accuracies against the majority labels, and the count error at rooms
        of ROOM against what this way of counting is for."""
        there = self.labels >= 0
        logits, classes = self.logits + constants, self.logits.shape[1]
        accuracy, mean = _accuracies(logits[there].argmax(axis=1), self.labels[there])
        if counting == "dominant":
            counted = _one_hot(logits[there].argmax(axis=1), classes)
            error = count_error(counted, _one_hot(self.labels[there], classes))
        else:
            known = self.targets.sum(axis=1) > 0
            error = count_error(softmax(logits[known]), self.targets[known])
        found = {"accuracy": accuracy, "mean_class_accuracy": mean, "count_error_25": error}
        return {name: round(value, 5) for name, value in found.items()}


def sample(split: Split, rows: NDArray[np.int64], logits: NDArray[np.float32]) -> Sample:
    """Take some rows of a split, (M,), with their logits (M, K).

    Raises DataError where fewer than FEWEST_LABELS images have a label."""
    labels = majority(split.votes[rows], len(split.labels))
    if (count := int((labels >= 0).sum())) < FEWEST_LABELS:
        raise DataError(
            f"{count} images of a split have a label, constants need {FEWEST_LABELS}; give more data, "
            f"or --prior none"
        )
    votes = split.votes[rows][:, : len(split.labels)]
    voted = bool((votes.sum(axis=1) > 1).any())
    targets = split.targets[rows].astype(np.float64)
    return Sample(logits.astype(np.float64), labels, targets, voted)


def _fit(sample: Sample, counting: Counting) -> tuple[Array, dict[str, Any]]:
    if counting == "dominant":
        there = sample.labels >= 0
        shares = _one_hot(sample.labels[there], sample.logits.shape[1]).mean(axis=0)
        whole = _fit_known(sample.logits[there], shares, SHARPNESS)
        bar = sample.effect(counting, 0 * whole)["accuracy"] - ACCURACY_LOSS
        for strength in STRENGTHS:
            if sample.effect(counting, strength * whole)["accuracy"] >= bar:
                break
        return strength * whole, {"strength": strength}
    known = sample.targets.sum(axis=1) > 0
    return _fit_known(sample.logits[known], sample.targets[known].mean(axis=0), 1.0), {}


def _fit_known(logits: Array, shares: Array, sharpness: float) -> Array:
    """Fit constants to shares (K,) of which some may be 0: what the split does not have is left to be
    counted as often there as the network does, since a total of 0 would be fitted by never counting
    it anywhere."""
    absent = shares == 0
    found = softmax(sharpness * logits).mean(axis=0)
    totals = np.where(absent, found, shares * (1 - found[absent].sum()))
    return fit_totals(logits, totals, sharpness)


def _log_prior(sample: Sample, counting: Counting) -> tuple[Array, dict[str, Any]]:
    """Choose tau: for `dominant` the best mean class accuracy within ACCURACY_LOSS, for `expected` the
    least count error."""
    there, classes = sample.labels >= 0, sample.logits.shape[1]
    # One image more a class: the share of a class without any is not 0.
    count = np.bincount(sample.labels[there], minlength=classes) + 1.0
    shift = -np.log(count / count.sum())
    effects = {tau: sample.effect(counting, tau * shift) for tau in TAUS}
    if counting == "dominant":
        bar = effects[0.0]["accuracy"] - ACCURACY_LOSS
        fair = [tau for tau in TAUS if effects[tau]["accuracy"] >= bar]
        tau = max(fair, key=lambda t: effects[t]["mean_class_accuracy"])
    else:
        tau = min(TAUS, key=lambda t: effects[t]["count_error_25"])
    return tau * (shift - shift.mean()), {"tau": tau}


def _absent(sample: Sample, labels: tuple[str, ...]) -> list[str]:
    """Name the classes that no image of a sample is labelled by."""
    return [label for k, label in enumerate(labels) if not (sample.labels == k).any()]


def read_prior(path: Path, labels: tuple[str, ...]) -> dict[Counting, Array]:
    """Read a file of constants, {"dominant": {LABEL: NUMBER, ...}, "expected": {...}}, of which one may
    be left out (zeros). Raises DataError in one line, also where it is of other classes."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"--prior {path} cannot be read ({str(error)[:80]}); give fitted, log-prior, none or a "
            f"JSON file"
        ) from error
    if not isinstance(content, dict) or not content or not set(content) <= set(COUNTINGS):
        raise DataError(f"--prior {path} must hold 'dominant', 'expected' or both, and no more")
    constants = {counting: np.zeros(len(labels)) for counting in COUNTINGS}
    for counting in COUNTINGS:
        if counting not in content:
            continue
        row = content[counting]
        if not isinstance(row, dict) or sorted(row) != sorted(labels):
            other = ", ".join(row) if isinstance(row, dict) else type(row).__name__
            raise DataError(
                f"--prior {path}: '{counting}' has the classes {other}, the model "
                f"{', '.join(labels)}; give one number for each of these"
            )
        given = [row[label] for label in labels]
        if any(isinstance(v, bool) or not isinstance(v, int | float) for v in given) or not (
            np.isfinite(given).all()
        ):
            raise DataError(f"--prior {path}: '{counting}' must hold a finite number a class")
        constants[counting] = np.array(given, dtype=np.float64)
    return constants


def choose_prior(
    which: str,
    sample: Sample,
    learned: Sample,
    labels: tuple[str, ...],
    data: str,
    say: Callable[[str], None],
) -> Prior | None:
    """Return the constants that `--prior` asks for, or None for `none`. Raises DataError in one line.

    which: one of METHODS or a JSON file; sample: of the validation split, whose name is `data`;
    learned: of the training split. A network's probabilities add up to its training votes, so what
    makes sums worse there has fitted how one split's annotators voted: `expected` goes without."""
    if which == "none":
        return None
    fitted: dict[str, Any] = {"method": which if which in METHODS else "file", "data": data}
    fitted["images"] = int((sample.labels >= 0).sum())
    fitted["votes"] = sample.voted
    if not sample.voted:
        say("no image has more than one vote: 'expected' is fitted on labels")
    if which == "fitted" and (absent := _absent(sample, labels)):
        say(
            f"{data} has no picture of {', '.join(absent)}: no constant is fitted to that, so it is "
            f"counted there as often as without"
        )
    given = None if which in METHODS else read_prior(Path(which), labels)
    constants: dict[Counting, Array] = {}
    fitted["effect"] = {}
    for counting in COUNTINGS:
        row, more = np.zeros(len(labels)), dict[str, Any]()
        if given:
            row = given[counting]
        else:
            row, more = (_fit if which == "fitted" else _log_prior)(sample, counting)
        none = np.zeros(len(labels))
        without = sample.effect(counting, none)
        row = np.round(row, 5)
        if counting == "expected" and not given:
            before, after = (learned.effect(counting, c)["count_error_25"] for c in (none, row))
            more |= {"train_count_error_25": {"without": before, "with": after}}
            if after > before:
                say(
                    f"expected: no constants, since those of {data} raise the count error on training "
                    f"images from {before:.4f} to {after:.4f}"
                )
                more |= {"not_kept": row.tolist()}
                row = none
        with_ = sample.effect(counting, row)
        constants[counting] = row
        fitted["effect"][counting] = {"without": without, "with": with_, **more}
        cells = ", ".join(f"{label} {v:+.2f}" for label, v in zip(labels, row, strict=True))
        say(f"{counting}: constants {cells}")
        say(
            f"{counting}: accuracy {100 * without['accuracy']:.2f} > {100 * with_['accuracy']:.2f} %,"
            f" mean class {100 * without['mean_class_accuracy']:.2f} > "
            f"{100 * with_['mean_class_accuracy']:.2f} %, count error at {ROOM} people "
            f"{without['count_error_25']:.4f} > {with_['count_error_25']:.4f}"
        )
    return Prior(constants, fitted)
