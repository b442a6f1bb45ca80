"""Plots of scores, as one would put them into a talk: confusion matrix, reliability diagram,
robustness, counts, training curves. Titles say on how many images, and by which protocol. Each
function writes a PNG and returns what it drew."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from distill.data.splits import Split
from distill.evaluation.canvas import name_classes, sheet, shortened
from distill.evaluation.counts import MIXES, CountScores, Estimate
from distill.evaluation.metrics import (
    ECE_BINS,
    LABELS,
    Scores,
    confidence_bin,
    expected_calibration_error,
    has_votes,
    truth_of,
)
from distill.evaluation.robustness import CHANGES
from edge.base.errors import DataError
from edge.records import COUNTINGS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, GREEN, ORANGE, RED = "tab:blue", "tab:green", "tab:orange", "tab:red"
NO_IMAGE = "0.9"  # grey of a class without an image
LOG_RATIO = 3.5  # strengths further apart than this go on a scale of ratios
COLUMNS = 3  # of panels of robustness


def write_all(
    folder: Path,
    name: str,
    split: Split,
    probabilities: NDArray[np.float64],
    scores: Scores,
    rows: list[dict[str, Any]],
    log: Path | None,
) -> None:
    """Write PNGs by the labels of the scores' protocol. name: of network and data, for the titles;
    probabilities: (N, K); rows: of `robustness.measure`, or none; log: of distill-train, for the
    training curves. Raises OSError where `folder` cannot be written, DataError for a bad log."""
    truth = truth_of(split.votes, split.labels, scores.protocol)
    kept = truth >= 0
    answer = probabilities.argmax(axis=1)
    hit = (answer == truth)[kept]
    voted = has_votes(split.votes[kept])
    share = split.targets[np.arange(len(answer)), answer][kept] if voted else None
    title = headline(name, scores)
    folder.mkdir(parents=True, exist_ok=True)
    confusion(folder / "confusion.png", scores.confusion, split.labels, title)
    reliability(folder / "reliability.png", probabilities.max(axis=1)[kept], hit, share, title)
    if rows:
        robustness(folder / "robustness.png", rows, title)
    if log and log.is_file():
        training(folder / "training.png", log)


def headline(name: str, scores: Scores) -> str:
    """Say what was scored, how well, on how many images, by which labels."""
    protocol = LABELS if scores.ece_votes is None else scores.protocol
    return f"{name}\naccuracy {100 * scores.accuracy:.1f} %, n = {scores.n:,}, {protocol}"


def confusion(path: Path, matrix: list[list[int]], labels: Sequence[str], title: str) -> Figure:
    """Draw a row a class of the truth: colour and percent are shares of the row, above them the count.
    A class without an image is a grey row."""
    counts = np.array(matrix)
    images = counts.sum(axis=1)
    shares = counts / np.maximum(images, 1)[:, None]
    side = max(0.64 * len(labels), 3.2)
    with sheet(path, side + 3.3, side + 1.9) as figure:
        axes = figure.add_subplot()
        shown = np.ma.masked_array(shares, np.repeat(images == 0, len(labels)))
        axes.set_facecolor(NO_IMAGE)
        # The sheet is as wide and high as its letters want, so that cells are nearly square; an image
        # of a fixed aspect would push letters over the edge.
        drawn = axes.imshow(shown, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for (row, column), count in np.ndenumerate(counts):
            if not images[row]:
                continue
            share = shares[row, column]
            colour = "white" if share > 0.5 else "black"
            text = f"{count}\n{100 * share:.0f} %" if count else "0"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=9)
        for row in np.flatnonzero(images == 0):
            axes.text(
                (len(labels) - 1) / 2, float(row), "no image", ha="center", va="center", fontsize=9
            )
        name_classes(axes.xaxis, list(labels))
        rows = [f"{shortened(x)} ({n})" for x, n in zip(labels, images, strict=True)]
        axes.set_yticks(range(len(labels)), rows)
        axes.set(xlabel="answer", ylabel="truth (images)", title=title)
        scale = figure.colorbar(drawn, ax=axes, format=lambda x, _: f"{100 * x:.0f} %")
        scale.set_label("share of the truth's images")
    return figure


def _wilson(share: NDArray[np.float64], n: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return by how much a share of n lies above and below its 95 % bounds, (2, B) (Wilson 1927)."""
    z = 1.96
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    reach = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return np.maximum([share - (middle - reach), middle + reach - share], 0)


def reliability(
    path: Path,
    confidence: NDArray[np.float64],
    hit: NDArray[np.bool_],
    share: NDArray[np.float64] | None,
    title: str,
) -> Figure:
    """Draw, by confidence, how often the answer is the label (hit, (N,)) and which share of the votes
    it got (share, (N,), None without votes); a calibrated network lies on the diagonal (Guo et al.
    2017). Below, how many images are that confident."""
    place = confidence_bin(confidence)
    images = np.bincount(place, minlength=ECE_BINS)
    bins = np.flatnonzero(images)

    def means(values: NDArray[Any]) -> NDArray[np.float64]:
        return np.array([values[place == b].mean() for b in bins])

    with sheet(path, 6.4, 7.4) as figure:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        above.plot([0, 1], [0, 1], color="grey", linestyle="--", label="calibrated")
        at, right = means(confidence), means(hit)
        ece = expected_calibration_error(confidence, hit)
        above.errorbar(
            at,
            right,
            _wilson(right, images[bins]),
            color=BLUE,
            marker="o",
            capsize=2,
            label=f"the answer is the majority's label: ECE {ece:.3f} (bars: 95 %)"
            if share is not None
            else f"the answer is the label: ECE {ece:.3f} (bars: 95 %)",
        )
        if share is not None:
            ece = expected_calibration_error(confidence, share)
            name = f"share of the votes that the answer got: ECE {ece:.3f}"
            above.plot(at, means(share), color=GREEN, marker="s", label=name)
        above.set(ylabel="share", ylim=(-0.02, 1.02), title=title)
        below.bar(
            (np.arange(ECE_BINS) + 0.5) / ECE_BINS,
            images,
            width=1 / ECE_BINS,
            color="0.6",
            edgecolor="white",
        )
        below.set(xlabel="confidence in the answer", ylabel="images", xlim=(0, 1))
        for axes in (above, below):
            axes.grid(visible=True)
        # Outside: no corner of the diagram is empty for every network.
        figure.legend(loc="outside lower center", fontsize=9.5)
    return figure


def robustness(path: Path, rows: list[dict[str, Any]], title: str) -> Figure:
    """Draw a panel a change: accuracy over its strengths, in their unit and worse to the right, and as
    a dashed line that of the same images without it."""
    lines = -(-len(CHANGES) // COLUMNS)
    with sheet(path, 2.6 * COLUMNS, 2.15 * lines + 0.9) as figure:
        panels = figure.subplots(lines, COLUMNS, squeeze=False, sharey=True)
        for change, axes in zip(CHANGES, panels.flat, strict=False):
            own = [row for row in rows if row["change"] == change.name]
            axes.set(title=change.name, xlabel=change.unit, ylim=(0, 100))
            axes.grid(visible=True)
            if not own:
                axes.set_xticks([])
                axes.text(0.5, 50, "not measured:\nno face found", ha="center", va="center")
                axes.set_xlim(0, 1)
                continue
            x = [row["strength"] for row in own]
            y = [100 * row["accuracy"] for row in own]
            plain = 100 * own[0].get("plain", rows[0]["accuracy"])
            axes.axhline(plain, color="grey", linestyle="--")
            axes.plot(x, y, color=BLUE, marker="o")
            for at, value in zip(x, y, strict=True):
                under = value > 20
                axes.annotate(
                    f"{value:.0f}",
                    (at, value),
                    (0, -5 if under else 5),
                    textcoords="offset points",
                    ha="center",
                    va="top" if under else "bottom",
                    fontsize=9,
                )
            _strengths(axes, x)
        for axes in panels.flat[len(CHANGES) :]:
            axes.set_axis_off()
        figure.suptitle(f"{title}\ndashed: the same images without the change", fontsize=10.5)
        figure.supylabel("accuracy, %")
    return figure


def _strengths(axes: Any, strengths: Sequence[float]) -> None:
    """Mark a horizontal axis at the strengths that were measured, milder to the left."""
    low, high = min(strengths), max(strengths)
    ratios = low > 0 and high / low > LOG_RATIO
    if ratios:
        axes.set_xscale("log")
        room = (high / low) ** 0.15
        ends = (low / room, high * room)
    else:
        room = 0.15 * (high - low) or 1.0
        ends = (low - room, high + room)
    axes.set_xlim(ends if strengths[-1] >= strengths[0] else ends[::-1])
    axes.set_xticks(strengths, [f"{x:g}" for x in strengths])
    axes.minorticks_off()


def counts(path: Path, scores: Sequence[CountScores], title: str) -> Figure:
    """Draw, of whole counts, the people in the wrong cell by room size and mix; below, the slopes a
    class of the middle size; a column for each truth. Bars are 95 % intervals."""
    scores = [row for row in scores if row.figure == "counts"]
    sizes = sorted({row.room for row in scores})
    middle = sizes[len(sizes) // 2]
    truths = list(dict.fromkeys(row.truth for row in scores))
    with sheet(path, 3.9 * max(len(truths), 1.6), 8.2) as figure:
        axes = figure.subplots(2, len(truths), squeeze=False, sharey="row")
        for truth, (above, below) in zip(truths, axes.T, strict=True):
            for at, counting in enumerate(COUNTINGS):
                own = [row for row in scores if (row.truth, row.counting) == (truth, counting)]
                own.sort(key=lambda row: row.room)
                _wrong_cells(above, own, at, counting)
                slopes = next(row.slope for row in own if row.room == middle)
                _slopes(below, slopes, list(own[0].absolute[MIXES[0]]), at, counting)
            above.set_xscale("log")
            above.set_xticks(sizes, [str(size) for size in sizes])
            above.minorticks_off()
            above.set(xlabel="people in the room", title=f"against {truth}")
            below.axhline(1, color="grey", linestyle=":")
            below.set(title=f"rooms of {middle}, all mixes")
            for drawn in (above, below):
                drawn.grid(visible=True)
        axes[0, 0].set(ylabel="people in the wrong cell, %", ylim=(0, None))
        axes[1, 0].set(ylabel="slope of published against true")
        figure.suptitle(f"{title}\ncounts of made-up rooms, bars: 95 %", fontsize=10.5)
        # Outside: where the curves lie depends on the network.
        curves, bars = (row[0].get_legend_handles_labels() for row in axes)
        both = [*curves[0], *bars[0]], [*curves[1], *bars[1]]
        figure.legend(*both, loc="outside lower center", ncols=3, fontsize=9)
    return figure


def _wrong_cells(axes: Any, rows: Sequence[CountScores], at: int, counting: str) -> None:
    """Draw a curve a mix over the room's size. at: of the counting, for its look."""
    for mix, colour in zip(MIXES, (BLUE, GREEN, RED), strict=True):
        found = [row.wrong[mix] for row in rows]
        value, low, high = 100 * np.array([[e.value, e.low, e.high] for e in found]).T
        axes.errorbar(
            [row.room for row in rows],
            value,
            (value - low, high - value),
            color=colour,
            linestyle=("-", "--")[at],
            marker=("o", "s")[at],
            label=f"{counting}, {mix} mix",
        )


def _slopes(
    axes: Any, slopes: dict[str, Estimate], labels: list[str], at: int, counting: str
) -> None:
    """Draw a bar a class that has a slope; at: of the counting, 0 or 1."""
    known = [k for k, label in enumerate(labels) if label in slopes]
    found = [slopes[labels[k]] for k in known]
    value, low, high = np.array([[e.value, e.low, e.high] for e in found]).reshape(-1, 3).T
    axes.bar(
        np.array(known) + 0.4 * (at - 0.5),
        value,
        0.38,
        yerr=np.maximum([value - low, high - value], 0),
        color=("tab:purple", ORANGE)[at],
        label=f"{counting}, slope",
    )
    name_classes(axes.xaxis, labels)


def training(path: Path, log: Path) -> Figure:
    """Draw training and validation loss, and below validation accuracy with the best epoch, from
    distill-train's log.csv. Raises DataError where it is not one."""
    try:
        with log.open(newline="", encoding="utf-8") as text:
            rows = list(csv.DictReader(text))
        epochs = [int(row["epoch"]) for row in rows]
        losses = [float(row["loss"]) for row in rows]
        accuracies = [100 * float(row["valid_accuracy"] or "nan") for row in rows]
        valid = [float(row.get("valid_loss") or "nan") for row in rows]
        votes = [float(row.get("loss_votes") or "nan") for row in rows]
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"{log} is not a log of distill-train ({error})") from error
    with sheet(path, 6.4, 6.4) as figure:
        above, below = figure.subplots(2, 1, sharex=True)
        above.plot(epochs, losses, color=BLUE, marker=".", label="training, all losses")
        if votes != losses and np.isfinite(votes).any():
            look = {"color": BLUE, "linestyle": "--", "marker": "."}
            above.plot(epochs, votes, **look, label="training, against the votes")
        if np.isfinite(valid).any():
            name = "validation, against the votes"
            above.plot(epochs, valid, color=ORANGE, marker=".", label=name)
        above.set(ylabel="loss", title=log.parent.name)
        below.plot(epochs, accuracies, color=ORANGE, marker=".")
        if np.isfinite(accuracies).any():
            best = int(np.nanargmax(accuracies))
            below.axvline(epochs[best], color="grey", linestyle=":")
            title = f"best: {accuracies[best]:.1f} % after epoch {epochs[best]}"
            below.set_title(title)
        below.set(xlabel="epoch", ylabel="validation accuracy, %")
        below.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
        below.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        for axes in (above, below):
            axes.grid(visible=True)
        figure.legend(loc="outside lower center", ncols=2, fontsize=9.5)
    return figure
