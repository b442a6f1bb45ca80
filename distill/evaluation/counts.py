"""How far a node's counts are from the people in a room: `distill-eval --counts`.

Rooms are filled with images of a split that have a label (majority-8), drawn with replacement: first
each seat's class from the room's mix, then an image of that class. Mixes: `own` is the split's;
`near` one around it a room, Dirichlet(20 * own); `far` one of any kind, Dirichlet(1). The node's own
`Window` counts each room, a picture and a window of ten seconds each, and what it publishes, whole
people and person-seconds, is compared with the labels of the people and with the sum of their votes'
shares. Those are no whole numbers: rounding to people alone costs a room of 25 about two hundredths,
which the person-seconds, in tenths of a person, do not lose. Letters: N images, K classes, R rooms.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from distill.data.splits import Split, majority
from distill.evaluation.metrics import has_votes
from distill.models.predict import logits_behind
from distill.progress import Progress
from edge.aggregate import Window
from edge.base.errors import DataError
from edge.classify import softmax
from edge.records import COUNTINGS, Counting, Expression, Frame, Life, Reading, Tick

Truth = Literal["votes", "labels"]
Mix = Literal["own", "near", "far"]
Figure = Literal["counts", "person_seconds"]
MIXES: tuple[Mix, ...] = get_args(Mix)
ROOM_SIZES, ROOMS = (10, 25, 100), 2000
FIGURES: tuple[Figure, ...] = get_args(Figure)
SECONDS = 10.0  # of a window, as by default in node.yaml
NEAR, FAR = 20.0, 1.0  # Dirichlet: concentration around the own mix; of each class
ROUNDS = 1000  # of the bootstrap

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean or slope over rooms, and its 95 % bootstrap interval over rooms."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class CountScores:
    """One way of counting, as published in one of the figures, against one truth, in rooms of one size.

    wrong: by mix, the share of the people who stand in a wrong cell (total variation), 0..1.
    absolute, bias: by mix and label, |published - true| and published - true, in people.
    slope: by label, of published against true people over the rooms of all mixes (least squares); a
    label of which every room has as many has none."""

    room: int
    truth: Truth
    counting: Counting
    figure: Figure
    wrong: dict[Mix, Estimate]
    absolute: dict[Mix, dict[str, Estimate]]
    bias: dict[Mix, dict[str, Estimate]]
    slope: dict[str, Estimate]


def shifted(probabilities: Array, offsets: NDArray[np.float32]) -> NDArray[np.float32]:
    """Add a counting's offsets (K,) to the logits behind probabilities (N, K) float64; gives (N, K)
    float32, as the node reads them."""
    return softmax(logits_behind(probabilities) + offsets).astype(np.float32)


def draw_rooms(
    truth: NDArray[np.int64], classes: int, room: int, rooms: int, mix: Mix, seed: int
) -> NDArray[np.int64]:
    """Fill rooms: rows of `truth` (N,), labels without -1, as (rooms, room). Classes that no image has
    stay out of every mix."""
    rng = np.random.default_rng([seed, room, MIXES.index(mix)])
    images = [np.flatnonzero(truth == k) for k in range(classes)]
    present = [k for k in range(classes) if len(images[k])]
    own = np.array([len(images[k]) for k in present]) / len(truth)
    if mix == "own":
        shares = np.tile(own, (rooms, 1))
    else:
        shares = rng.dirichlet(NEAR * own if mix == "near" else FAR * np.ones(len(own)), rooms)
    seats = []
    for share in shares:
        people = rng.multinomial(room, share)
        drawn = [rng.choice(images[k], n) for k, n in zip(present, people, strict=True)]
        seats.append(np.concatenate(drawn))
    return np.array(seats)


def publish(
    probabilities: NDArray[np.float32],
    rooms: NDArray[np.int64],
    labels: tuple[str, ...],
    counting: Counting,
) -> dict[Figure, Array]:
    """Return what a node publishes of each room: people by label, (R, K), whole in `counts` and in
    tenths in `person_seconds`.

    probabilities: (N, K), those of the counting; rooms: (R, seats), rows of them."""
    window = Window(
        labels,
        seconds=SECONDS,
        min_group=1,
        max_gap_seconds=SECONDS,
        file_start=0.0,
        counting=counting,
    )
    blank = np.zeros((1, 1, 3), dtype=np.uint8)
    readings: list[Reading] = []
    for time, seats in zip(SECONDS * np.arange(len(rooms)), rooms, strict=True):
        people = [Expression(i, probabilities[row], Life.ALIVE) for i, row in enumerate(seats)]
        readings += window.add(Frame(blank, float(time), float(time)), people)
    end = SECONDS * len(rooms)
    readings += window.tick(Tick(end, end, "file"))
    counts, seconds = (
        np.array([[(row or {})[label] for label in labels] for row in rows], dtype=np.float64)
        for rows in zip(*((r.counts, r.person_seconds) for r in readings), strict=True)
    )
    return {"counts": counts, "person_seconds": seconds / SECONDS}


def _estimates(values: Array, weights: Array) -> list[Estimate]:
    """Means of (R, M) columns, with bootstrap weights (ROUNDS, R) whose rows sum to R."""
    low, high = np.percentile(weights @ values / len(values), [2.5, 97.5], axis=0)
    return [Estimate(*map(float, row)) for row in zip(values.mean(axis=0), low, high, strict=True)]


def _slopes(true: Array, published: Array, weights: Array) -> list[Estimate | None]:
    """Least-squares slopes of (R, K) published against true, a class; None where true is constant."""
    true, published = true - true.mean(axis=0), published - published.mean(axis=0)

    def slope(w: Array) -> Array:
        x, y, xx, xy = (w @ v / w.sum(axis=1, keepdims=True) for v in (
            true, published, true * true, true * published
        ))  # fmt: skip
        spread = xx - x * x
        # A resampled set of rooms may hold one room alone, which has no slope.
        empty = np.full_like(xy, np.nan)
        return np.asarray(np.divide(xy - x * y, spread, out=empty, where=spread > 1e-9))

    value = slope(np.ones((1, len(true))))[0]
    drawn = slope(weights)
    known = np.isfinite(value)
    found: list[Estimate | None] = [None] * len(value)
    for k in np.flatnonzero(known):
        low, high = np.nanpercentile(drawn[:, k], [2.5, 97.5])
        found[k] = Estimate(float(value[k]), float(low), float(high))
    return found


def _compare(
    labels: tuple[str, ...], true: dict[Mix, Array], published: dict[Mix, Array], seed: int
) -> dict[str, Any]:
    """Compare people by class, (R, K) a mix; the fields of CountScores that hold results."""
    rng = np.random.default_rng(seed)
    found: dict[str, Any] = {"wrong": {}, "absolute": {}, "bias": {}}
    weights = []
    for mix in MIXES:
        error = published[mix] - true[mix]
        rooms = len(error)
        w = rng.multinomial(rooms, np.full(rooms, 1 / rooms), ROUNDS).astype(np.float64)
        weights.append(w)
        size = true[mix].sum(axis=1, keepdims=True)
        wrong = np.abs(error).sum(axis=1, keepdims=True) / 2 / size
        found["wrong"][mix] = _estimates(wrong, w)[0]
        found["absolute"][mix] = dict(zip(labels, _estimates(np.abs(error), w), strict=True))
        found["bias"][mix] = dict(zip(labels, _estimates(error, w), strict=True))
    people, counted = (np.concatenate([rows[mix] for mix in MIXES]) for rows in (true, published))
    slopes = zip(labels, _slopes(people, counted, np.hstack(weights)), strict=True)
    found["slope"] = {label: slope for label, slope in slopes if slope is not None}
    return found


def measure(
    split: Split,
    probabilities: Array,
    offsets: Mapping[Counting, NDArray[np.float32]],
    sizes: Sequence[int] = ROOM_SIZES,
    rooms: int = ROOMS,
    seed: int = 0,
) -> list[CountScores]:
    """Count rooms by every counting, against every truth that the split has.

    probabilities: (N, K) of the split's images; offsets: (K,) on their logits. Raises DataError for a
    room larger than the split, or where no image has a label."""
    classes = len(split.labels)
    truth = majority(split.votes, classes)
    kept = truth >= 0
    if not kept.any():
        raise DataError("no image has a label to count rooms by; check the split's votes")
    if max(sizes) > kept.sum():
        raise DataError(
            f"a room of {max(sizes)} is larger than the split, which has {kept.sum()} images with a "
            f"label; give smaller --room-sizes"
        )
    truth, read = truth[kept], {c: shifted(probabilities[kept], offsets[c]) for c in COUNTINGS}
    shares: dict[Truth, Array] = {"labels": np.eye(classes)[truth]}
    if has_votes(split.votes[kept]):
        shares = {"votes": split.targets[kept].astype(np.float64), **shares}
    scores = []
    total = len(sizes) * len(COUNTINGS) * len(MIXES) * rooms
    with Progress("counting rooms", total, "rooms") as bar:
        for room in sizes:
            seats = {mix: draw_rooms(truth, classes, room, rooms, mix, seed) for mix in MIXES}
            for counting in COUNTINGS:
                published = {}
                for mix in MIXES:
                    published[mix] = publish(read[counting], seats[mix], split.labels, counting)
                    bar.advance(rooms)
                for against, share in shares.items():
                    true = {mix: share[seats[mix]].sum(axis=1) for mix in MIXES}
                    for figure in FIGURES:
                        people = {mix: published[mix][figure] for mix in MIXES}
                        found = _compare(split.labels, true, people, seed)
                        scores.append(CountScores(room, against, counting, figure, **found))
    return scores


def as_entry(scores: Sequence[CountScores], rooms: int, seed: int) -> dict[str, Any]:
    """Make the entry of `--json`."""
    return {
        "rooms": rooms,
        "seed": seed,
        "mixes": {"own": None, "near": f"Dirichlet({NEAR:g} * own)", "far": f"Dirichlet({FAR:g})"},
        "interval": f"bootstrap of rooms, {ROUNDS} rounds, 95 %",
        "scores": [dataclasses.asdict(row) for row in scores],
    }


def _columns(scores: Sequence[CountScores], room: int, figure: Figure) -> list[CountScores]:
    chosen = [row for row in scores if (row.room, row.figure) == (room, figure)]
    return sorted(chosen, key=lambda row: (row.truth == "labels", row.counting == "dominant"))


def _line(name: str, cells: Sequence[str]) -> str:
    return f"{name[:11]:11}" + "".join(f"{cell:>17}" for cell in cells)


def table(scores: Sequence[CountScores], rooms: int) -> str:
    """Format for 80 columns: errors of every size and mix; slopes, bias and error by class of the
    middle size. All intervals are in the JSON."""
    sizes = sorted({row.room for row in scores})
    middle = sizes[len(sizes) // 2]
    columns = _columns(scores, middle, "counts")
    lines = [
        f"rooms: {rooms} of each kind; [95 %]",
        _line("", [f"against {row.truth}" for row in columns]),
        _line("", [row.counting for row in columns]),
    ]
    for figure, name in zip(FIGURES, ("whole counts", "person-seconds"), strict=True):
        lines.append(f"people in the wrong cell, %, by {name}")
        for room in sizes:
            for mix in MIXES:
                found = [row.wrong[mix] for row in _columns(scores, room, figure)]
                cells = [
                    f"{100 * e.value:.1f} [{100 * e.low:.1f},{100 * e.high:.1f}]" for e in found
                ]
                lines.append(_line(f"{room:4d} {mix}", cells))
    labels = list(columns[0].absolute["own"])
    lines.append(
        f"slope of published against true people, whole counts, {middle} people, all mixes"
    )
    for label in labels:
        slopes = [row.slope.get(label) for row in columns]
        cells = ["-" if e is None else f"{e.value:.2f} [{e.low:.2f},{e.high:.2f}]" for e in slopes]
        lines.append(_line(label, cells))
    lines.append(f"bias / mean absolute error, people, whole counts, {middle} people, own mix")
    for label in labels:
        pairs = [
            (row.bias["own"][label].value, row.absolute["own"][label].value) for row in columns
        ]
        lines.append(_line(label, [f"{bias:+.2f} / {error:.2f}" for bias, error in pairs]))
    return "\n".join(lines)
