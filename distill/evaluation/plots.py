"""Plots of scores: confusion matrix, reliability diagram, robustness curves, training curves."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.data.splits import Split, majority
from distill.evaluation.counts import MIXES, CountScores
from distill.evaluation.metrics import (
    ECE_BINS,
    Scores,
    confidence_bin,
    expected_calibration_error,
    has_votes,
)
from distill.evaluation.robustness import CHANGES
from edge.base.errors import DataError
from edge.records import COUNTINGS

SIZE, DPI = (6.4, 5.4), 110


def write_all(
    folder: Path,
    title: str,
    split: Split,
    probabilities: NDArray[np.float64],
    scores: Scores,
    rows: list[dict[str, Any]],
    log: Path | None,
) -> None:
    """Write PNGs by the majority's labels. rows: of `robustness.measure`, or none; log: of
    distill-train, for the training curves."""
    truth = majority(split.votes, len(split.labels))
    kept = truth >= 0
    answer = probabilities.argmax(axis=1)
    hit = (answer == truth)[kept]
    voted = has_votes(split.votes[kept])
    share = split.targets[np.arange(len(answer)), answer][kept] if voted else None
    folder.mkdir(parents=True, exist_ok=True)
    confusion(folder / "confusion.png", scores.confusion, split.labels, title)
    reliability(folder / "reliability.png", probabilities.max(axis=1)[kept], hit, share, title)
    if rows:
        robustness(folder / "robustness.png", rows, title)
    if log and log.is_file():
        training(folder / "training.png", log)


def _canvas(width: float = SIZE[0], height: float = SIZE[1]) -> tuple[Any, Any]:
    """Make a figure that needs no screen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def confusion(path: Path, matrix: list[list[int]], labels: tuple[str, ...], title: str) -> None:
    """Draw rows of the truth, in shares of it, with the counts in the cells."""
    figure, axes = _canvas()
    counts = np.array(matrix)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=8)
    axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right")
    axes.set_yticks(range(len(labels)), labels)
    axes.set(xlabel="answer", ylabel="truth", title=title)
    figure.savefig(path)


def reliability(
    path: Path,
    confidence: NDArray[np.float64],
    hit: NDArray[np.bool_],
    share: NDArray[np.float64] | None,
    title: str,
) -> None:
    """Draw, by confidence, how often the answer is the label (hit, (N,)) and which share of the votes
    it got (share, (N,), None without votes); a calibrated network lies on the diagonal (Guo et al.
    2017)."""
    figure, axes = _canvas()
    place = confidence_bin(confidence)
    bins = [b for b in range(ECE_BINS) if (place == b).any()]
    middle = [(b + 0.5) / ECE_BINS for b in bins]
    axes.plot([0, 1], [0, 1], color="grey", linestyle="--", label="calibrated")
    accuracy = [hit[place == b].mean() for b in bins]
    ece = expected_calibration_error(confidence, hit)
    name = f"is the label (ECE {ece:.3f})"
    axes.bar(middle, accuracy, width=1 / ECE_BINS, alpha=0.5, edgecolor="white", label=name)
    if share is not None:
        got = [share[place == b].mean() for b in bins]
        ece = expected_calibration_error(confidence, share)
        axes.plot(middle, got, color="tab:green", marker="o", label=f"votes for it (ECE {ece:.3f})")
    images = [float((place == b).mean()) for b in bins]
    axes.plot(middle, images, color="tab:orange", marker=".", label="share of images")
    axes.set(
        xlabel="confidence in the answer", ylabel="share", xlim=(0, 1), ylim=(0, 1), title=title
    )
    axes.legend(loc="upper left")
    figure.savefig(path)


def robustness(path: Path, rows: list[dict[str, Any]], title: str) -> None:
    """Draw a curve a change, over its strengths as steps, the plain image at 0."""
    figure, axes = _canvas(7.6)
    for at, change in enumerate(CHANGES):
        own = [row for row in rows if row["change"] == change.name]
        if not own:
            continue  # it needs a found face
        values = [100 * row["accuracy"] for row in [rows[0], *own]]
        strengths = ", ".join(f"{row['strength']:g}" for row in own)
        look = {"color": f"C{at % 6}", "linestyle": "-" if at < 6 else "--", "marker": "o"}
        axes.plot(values, **look, label=f"{change.name}: {strengths} {change.unit}")
    axes.set(xlabel="step (strengths in the legend)", ylabel="accuracy, %", title=title)
    axes.set_xticks(range(1 + max(len(change.strengths) for change in CHANGES)))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="lower left")
    figure.savefig(path)


def counts(path: Path, scores: Sequence[CountScores], title: str) -> None:
    """Draw, of whole counts, the people in the wrong cell by room size and mix; below, the slopes a
    class of the middle size; a column for each truth."""
    scores = [row for row in scores if row.figure == "counts"]
    figure, _ = _canvas(11, 8)
    figure.clear()
    sizes = sorted({row.room for row in scores})
    middle = sizes[len(sizes) // 2]
    truths = list(dict.fromkeys(row.truth for row in scores))
    axes = figure.subplots(2, len(truths), squeeze=False, sharey="row")
    colours = dict(zip(MIXES, ("tab:blue", "tab:green", "tab:red"), strict=True))
    for truth, (above, below) in zip(truths, axes.T, strict=True):
        for c, counting in enumerate(COUNTINGS):
            own = [row for row in scores if (row.truth, row.counting) == (truth, counting)]
            for mix in MIXES:
                found = [row.wrong[mix] for row in own]
                values = 100 * np.array([[e.value, e.low, e.high] for e in found]).T
                above.errorbar(
                    [row.room for row in own],
                    values[0],
                    (values[0] - values[1], values[2] - values[0]),
                    color=colours[mix],
                    linestyle=("-", "--")[c],
                    marker=("o", "s")[c],
                    label=f"{counting}, {mix} mix",
                )
            slopes = next(row.slope for row in own if row.room == middle)
            place = np.arange(len(slopes)) + 0.4 * (c - 0.5)
            at = np.array([[e.value, e.low, e.high] for e in slopes.values()]).reshape(-1, 3).T
            spread = np.abs(at[1:] - at[0])
            below.bar(
                place,
                at[0],
                0.38,
                yerr=spread,
                color=("tab:purple", "tab:orange")[c],
                label=counting,
            )
            below.set_xticks(range(len(slopes)), list(slopes), rotation=45, ha="right")
        above.set_xscale("log")
        above.set_xticks(sizes, [str(size) for size in sizes])
        above.minorticks_off()
        above.set(xlabel="people in the room", title=f"{title}, against {truth}")
        below.axhline(1, color="grey", linestyle=":")
        below.set(title=f"rooms of {middle}, all mixes")
        for drawn in (above, below):
            drawn.grid(alpha=0.3)
    axes[0, 0].set(ylabel="people in the wrong cell, %", ylim=(0, None))
    axes[1, 0].set(ylabel="slope of published against true")
    axes[1, -1].legend(fontsize=8)
    # Outside: where the curves lie depends on the network.
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=6, fontsize=8)
    figure.savefig(path)


def training(path: Path, log: Path) -> None:
    """Draw loss and validation accuracy by epoch, from distill-train's log.csv. Raises DataError where
    it is not one."""
    try:
        with log.open(newline="", encoding="utf-8") as text:
            rows = list(csv.DictReader(text))
        epochs = [int(row["epoch"]) for row in rows]
        losses = [float(row["loss"]) for row in rows]
        accuracies = [100 * float(row["valid_accuracy"] or "nan") for row in rows]
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"{log} is not a log of distill-train ({error})") from error
    figure, axes = _canvas()
    axes.plot(epochs, losses, color="tab:blue")
    axes.set(xlabel="epoch", ylabel="training loss", title=log.parent.name)
    axes.yaxis.label.set_color("tab:blue")
    right = axes.twinx()
    right.plot(epochs, accuracies, color="tab:orange")
    right.set_ylabel("validation accuracy, %", color="tab:orange")
    figure.savefig(path)
