"""Plots for a talk: what they say, and that no letter is cut off or lies on another."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from distill.evaluation import counts, plots
from distill.evaluation.counts import CountScores, Estimate
from distill.evaluation.metrics import Scores, score
from distill.evaluation.robustness import CHANGES

pytestmark = pytest.mark.slow  # matplotlib

NAMES = (
    "neutral and calm", "happiness", "surprise or astonishment", "a_sadness of the very longest kind",
    "$5 anger $x_1$", "disgust", "fear", "contempt", "pain", "boredom", "interest", "shame",
)  # fmt: skip
TITLE = "ferplus valid, int8\naccuracy 84.1 %, n = 3,170, majority-8"


def texts(figure: Any) -> list[str]:
    """All that is written on a sheet."""
    from matplotlib.text import Text

    return [t.get_text() for t in figure.findobj(Text) if t.get_text() and t.get_visible()]


def assert_readable(figure: Any, path: Path) -> None:
    """Nothing is over the sheet's edge, no two names of one axis or titles lie on one another, no
    legend on a diagram."""
    image = cv2.imread(str(path))
    assert image.std() > 5, "not an empty sheet"
    margin = np.concatenate([image[:, :2].ravel(), image[:, -2:].ravel()])
    assert (margin == 255).all(), "something is cut off at a side"
    assert (image[:2] == 255).all()
    assert (image[-2:] == 255).all()
    height, width = image.shape[:2]
    assert 0.5 < height / width < 2
    panels = [axes.get_window_extent() for axes in figure.axes if axes.axison]
    for a, b in combinations(panels, 2):
        assert not overlap(a, b)
    legends = [legend.get_window_extent() for legend in figure.legends]
    assert not [axes.get_legend() for axes in figure.axes if axes.get_legend()]
    assert not [1 for legend in legends for panel in panels if overlap(legend, panel)]
    for axes in figure.axes:
        across = [t for t in axes.get_xticklabels() if t.get_text()]
        if across and across[0].get_rotation() == 0:
            boxes = [t.get_window_extent() for t in across]
            assert not [1 for a, b in combinations(boxes, 2) if overlap(a, b)], across
        down = [t.get_window_extent() for t in axes.get_yticklabels() if t.get_text()]
        assert not [1 for a, b in combinations(down, 2) if overlap(a, b)]


def overlap(a: Any, b: Any) -> bool:
    """Tell whether two boxes share more than a line."""
    return bool(min(a.x1, b.x1) - max(a.x0, b.x0) > 0.5 and min(a.y1, b.y1) - max(a.y0, b.y0) > 0.5)


def scores_of(classes: int, votes: int) -> Scores:
    p = np.full((40, classes), 0.1 / (classes - 1))
    p[np.arange(40), np.arange(40) % classes] = 0.9
    truth = np.eye(classes, dtype=np.int64)[np.arange(40) % classes] * votes
    return score(p, truth, NAMES[:classes], "majority-8", rounds=0)


def test_the_title_says_accuracy_images_and_protocol() -> None:
    assert plots.headline("rafdb test, fp32", scores_of(8, 10)) == (
        "rafdb test, fp32\naccuracy 100.0 %, n = 40, majority-8"
    )
    # One label an image is no majority of votes.
    assert plots.headline("own test", scores_of(3, 1)).endswith("n = 40, labels")


@pytest.mark.parametrize("classes", [2, 3, 7, 8, 12])
def test_a_confusion_matrix_of_any_size_shows_counts_and_shares(
    tmp_path: Path, classes: int
) -> None:
    matrix = np.full((classes, classes), 1000)
    matrix[0] = 0
    matrix[0, :2] = 3, 1
    matrix[-1] = 0
    path = tmp_path / "confusion.png"
    figure = plots.confusion(path, matrix.tolist(), NAMES[:classes], TITLE)
    assert_readable(figure, path)
    said = texts(figure)
    assert "3\n75 %" in said
    assert "1\n25 %" in said
    assert said.count("no image") == 1, "the last class's row is no row of zeros"
    assert TITLE in said
    assert "100 %" in said, "the scale"
    assert "neutral and calm (4)" in said
    if classes > 4:
        assert f"$5 anger $x_1$ ({classes * 1000})" in said, "as it stands, and not as a formula"


def test_cells_of_a_confusion_matrix_hold_their_numbers(tmp_path: Path) -> None:
    matrix = np.full((8, 8), 11_111)
    figure = plots.confusion(tmp_path / "c.png", matrix.tolist(), NAMES[:8], TITLE)
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) == 64
    assert not [1 for a, b in combinations(boxes, 2) if overlap(a, b)]


@pytest.mark.parametrize("voted", [True, False])
def test_a_reliability_diagram_names_the_error_by_both_truths(tmp_path: Path, voted: bool) -> None:
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.2, 1, 300)
    confidence[:2] = 0.01, 1.0  # a bin of one image
    hit = rng.uniform(size=300) < confidence
    share = confidence - 0.1 if voted else None
    path = tmp_path / "reliability.png"
    figure = plots.reliability(path, confidence, hit, share, TITLE)
    assert_readable(figure, path)
    (legend,) = figure.legends
    named = [text.get_text() for text in legend.get_texts()]
    assert len([name for name in named if "ECE 0." in name]) == (2 if voted else 1)
    assert ("share of the votes that the answer got: ECE 0.100" in named) == voted
    assert any("majority" in name for name in named) == voted


def rows_without(*left_out: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {"change": "none", "strength": None, "unit": "", "accuracy": 0.84, "n": 10}
    ]
    for change in CHANGES:
        for step, strength in enumerate(change.strengths):
            entry = {"change": change.name, "strength": strength, "unit": change.unit}
            entry |= {"accuracy": (0.8, 0.6, 0.1, 0.0)[step], "plain": 0.86, "n": 10}
            rows += [entry] if change.name not in left_out else []
    return rows


def test_robustness_has_a_panel_a_change_over_its_own_unit(tmp_path: Path) -> None:
    path = tmp_path / "robustness.png"
    figure = plots.robustness(path, rows_without("yaw", "mask", "sunglasses"), TITLE)
    assert_readable(figure, path)
    panels = {axes.get_title(): axes for axes in figure.axes if axes.get_title()}
    assert list(panels) == [change.name for change in CHANGES]
    for change in CHANGES:
        axes = panels[change.name]
        assert axes.get_xlabel() == change.unit
        if change.name in ("yaw", "mask", "sunglasses"):
            assert "not measured" in axes.texts[0].get_text()
            continue
        (curve,) = [line for line in axes.lines if line.get_marker() == "o"]
        assert list(curve.get_xdata()) == list(change.strengths), "in its unit, not in steps"
        left, right = axes.get_xlim()
        places = axes.transData.transform([(x, 50) for x in change.strengths])[:, 0]
        assert list(places) == sorted(places), "worse to the right"
        assert min(left, right) < min(change.strengths) < max(change.strengths) < max(left, right)
        plain = next(line for line in axes.lines if line.get_linestyle() == "--")
        assert plain.get_ydata()[0] == pytest.approx(86)


def count_scores(classes: int, truths: tuple[counts.Truth, ...]) -> list[CountScores]:
    labels = NAMES[:classes]
    at = Estimate(0.2, 0.1, 0.4)
    by_label = dict.fromkeys(labels, at)
    return [
        CountScores(
            room, truth, counting, "counts",
            dict.fromkeys(counts.MIXES, at), dict.fromkeys(counts.MIXES, by_label),
            dict.fromkeys(counts.MIXES, by_label), dict.fromkeys(labels[:-1], at),
        )
        for room in (10, 25, 100) for truth in truths for counting in ("dominant", "expected")
    ]  # fmt: skip


@pytest.mark.parametrize("truths", [("labels",), ("votes", "labels")])
@pytest.mark.parametrize("classes", [3, 8])
def test_counts_keep_a_place_for_a_class_without_a_slope(
    tmp_path: Path, truths: tuple[counts.Truth, ...], classes: int
) -> None:
    path = tmp_path / "counts.png"
    figure = plots.counts(path, count_scores(classes, truths), TITLE)
    assert_readable(figure, path)
    bars = figure.axes[len(truths)]
    assert len(bars.get_xticklabels()) == classes
    assert len(bars.patches) == 2 * (classes - 1)
    assert {f"against {truth}" for truth in truths} <= set(texts(figure))


def log_of(folder: Path, rows: list[str], header: str) -> Path:
    folder.mkdir()
    (folder / "log.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder / "log.csv"


WHOLE = "epoch,loss,loss_votes,loss_logits,valid_accuracy,valid_loss"


@pytest.mark.parametrize("epochs", [1, 2, 40])
def test_training_shows_validation_loss_and_the_best_epoch(tmp_path: Path, epochs: int) -> None:
    rows = [f"{e},{3 / (e + 1)},{1 / (e + 1)},{2 / (e + 1)},0.5,{0.9 + e}" for e in range(epochs)]
    rows[epochs // 2] = f"{epochs // 2},1,0.4,0.6,0.75,0.8"
    path = tmp_path / "training.png"
    figure = plots.training(path, log_of(tmp_path / "run_$1", rows, WHOLE))
    assert_readable(figure, path)
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "validation, against the votes" in named
    valid = next(x for x in figure.axes[0].lines if "validation" in str(x.get_label()))
    assert valid.get_ydata()[epochs // 2] == 0.8
    assert f"best: 75.0 % after epoch {epochs // 2}" in texts(figure)
    ticks = [float(t) for t in figure.axes[1].get_xticks()]
    assert all(t.is_integer() for t in ticks), "there is no half epoch"


def test_training_without_a_validation_split_shows_the_loss_alone(tmp_path: Path) -> None:
    path = tmp_path / "training.png"
    figure = plots.training(path, log_of(tmp_path / "run", ["0,2,2,,,", "1,1,1,,,"], WHOLE))
    assert_readable(figure, path)
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["training, all losses"]
