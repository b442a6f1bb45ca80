"""Constants on the logits: what they are fitted to, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from distill.data.crops import Crops
from distill.data.splits import Split
from distill.evaluation.prior import (
    ACCURACY_LOSS,
    Sample,
    choose_prior,
    count_error,
    fit_totals,
    read_prior,
    sample,
)
from edge.base.errors import DataError
from edge.classify import softmax
from edge.records import COUNTINGS

LABELS = ("calm", "glad", "rare")


def quiet(line: str) -> None:
    del line


def drawn(count: int = 4000, seed: int = 0, shift: tuple[float, ...] = (0.0, 0.0, -2.0)) -> Sample:
    """A world whose logits are right but for a shift, which a fit has to take out again."""
    rng = np.random.default_rng(seed)
    true = rng.normal(0, 2, (count, 3)) + np.log([0.6, 0.35, 0.05])
    p = softmax(true)
    labels = np.array([rng.choice(3, p=row) for row in p])
    return Sample(true + np.array(shift), labels, p, voted=True)


def test_probabilities_add_up_to_the_totals_and_a_known_shift_comes_back() -> None:
    world = drawn()
    c = fit_totals(world.logits, world.targets.mean(axis=0), 1.0, ridge=0.0)
    assert softmax(world.logits + c).mean(axis=0) == pytest.approx(
        world.targets.mean(axis=0), abs=1e-6
    )
    assert c == pytest.approx(np.array([-2 / 3, -2 / 3, 4 / 3]), abs=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_argmax_counts_match_the_labels_counts(seed: int) -> None:
    world = drawn(seed=seed)
    truth = np.bincount(world.labels, minlength=3)
    c = fit_totals(world.logits, truth / truth.sum(), 30.0)
    counted = np.bincount((world.logits + c).argmax(axis=1), minlength=3)
    assert np.abs(counted - truth).max() <= 0.01 * truth.sum()
    plain = np.bincount(world.logits.argmax(axis=1), minlength=3)
    assert abs(counted[2] - truth[2]) < abs(plain[2] - truth[2]) / 4


def test_a_class_that_no_image_has_gets_no_wild_constant() -> None:
    world = drawn(300)
    for sharpness in (1.0, 30.0):
        c = fit_totals(world.logits, np.array([0.6, 0.4, 0.0]), sharpness)
        assert np.isfinite(c).all()
        assert np.abs(c).max() < 12


@pytest.mark.parametrize("missing", [(2,), (1,), (0, 2)])
def test_a_class_that_no_validation_image_has_is_counted_as_often_as_without_constants(
    missing: tuple[int, ...],
) -> None:
    world, other = drawn(shift=(0.0, 0.0, 0.0)), drawn(seed=1, shift=(0.0, 0.0, 0.0))
    kept = ~np.isin(world.labels, missing)
    targets = np.eye(3)[world.labels[kept]]
    valid = Sample(world.logits[kept], world.labels[kept], targets, voted=False)
    lines: list[str] = []
    prior = choose_prior("fitted", valid, other, LABELS, "toy valid", lines.append)
    assert prior
    names = ", ".join(LABELS[k] for k in missing)
    assert any(line.startswith(f"toy valid has no picture of {names}:") for line in lines)
    plain = np.bincount(other.logits.argmax(axis=1), minlength=3)
    answers = (other.logits + prior.constants["dominant"]).argmax(axis=1)
    for k in missing:
        assert np.bincount(answers, minlength=3)[k] == pytest.approx(plain[k], rel=0.35)


def test_a_validation_split_of_one_class_changes_no_count() -> None:
    world = drawn()
    kept = world.labels == 1
    valid = Sample(world.logits[kept], world.labels[kept], np.eye(3)[world.labels[kept]], False)
    prior = choose_prior("fitted", valid, world, LABELS, "toy valid", quiet)
    assert prior
    assert np.abs(prior.constants["dominant"]).max() < 1e-3


def test_count_error_of_cases_worked_out_by_hand() -> None:
    one, other = np.tile([1.0, 0.0], (50, 1)), np.tile([0.0, 1.0], (50, 1))
    assert count_error(one, one) == 0
    assert count_error(one, other) == pytest.approx(1)
    assert count_error((one + other) / 2, one) == pytest.approx(0.5)


@pytest.mark.parametrize("method", ["fitted", "log-prior"])
def test_constants_for_argmax_raise_mean_class_accuracy_at_a_bounded_loss(method: str) -> None:
    world = drawn()
    prior = choose_prior(method, world, world, LABELS, "toy valid", quiet)
    assert prior
    effect = prior.fitted["effect"]["dominant"]
    assert effect["with"]["mean_class_accuracy"] > effect["without"]["mean_class_accuracy"] + 0.05
    assert effect["with"]["accuracy"] >= effect["without"]["accuracy"] - ACCURACY_LOSS
    assert prior.fitted["method"] == method
    # What is said is what the constants do.
    assert effect["with"] == world.effect("dominant", prior.constants["dominant"])


def test_expected_takes_constants_only_where_training_images_agree() -> None:
    world, right = drawn(), drawn(seed=1, shift=(0.0, 0.0, 0.0))
    kept = choose_prior("fitted", world, drawn(seed=1), LABELS, "toy valid", quiet)
    assert kept
    assert kept.constants["expected"][2] == pytest.approx(4 / 3, abs=0.1)
    lines: list[str] = []
    left = choose_prior("fitted", world, right, LABELS, "toy valid", lines.append)
    assert left
    assert not left.constants["expected"].any()
    assert left.fitted["effect"]["expected"]["not_kept"][2] == pytest.approx(4 / 3, abs=0.1)
    assert any(
        line.startswith("expected: no constants, since those of toy valid") for line in lines
    )
    assert left.constants["dominant"] == pytest.approx(kept.constants["dominant"])


def split(votes: list[list[int]]) -> Split:
    count = len(votes)
    pixels = np.zeros((count, 1, 8, 8), np.uint8)
    crops = Crops(pixels, [f"{i}.png" for i in range(count)], np.ones(count, bool))
    return Split(crops, np.array(votes), LABELS)


def test_a_split_of_few_labels_is_refused_and_one_without_votes_says_so() -> None:
    logits = np.random.default_rng(0).normal(0, 1, (60, 3)).astype(np.float32)
    rows = np.arange(60)
    few = split([[1, 0, 0]] * 10 + [[0, 0, 0]] * 50)
    with pytest.raises(DataError, match="10 images of a split have a label, constants need 50"):
        sample(few, rows, logits)
    hard = sample(split([[1, 0, 0], [0, 1, 0], [0, 0, 1]] * 20), rows, logits)
    lines: list[str] = []
    prior = choose_prior("fitted", hard, hard, LABELS, "toy valid", lines.append)
    assert prior
    assert prior.fitted["votes"] is False
    assert lines[0] == "no image has more than one vote: 'expected' is fitted on labels"
    assert sample(split([[3, 1, 0]] * 60), rows, logits).voted


def test_none_is_none_and_a_file_is_taken_as_it_is(tmp_path: Path) -> None:
    world = drawn(200)
    assert choose_prior("none", world, world, LABELS, "toy valid", quiet) is None
    path = tmp_path / "prior.json"
    path.write_text(json.dumps({"dominant": {"rare": 1, "calm": 0, "glad": -0.5}}))
    prior = choose_prior(str(path), world, world, LABELS, "toy valid", quiet)
    assert prior
    assert prior.constants["dominant"].tolist() == [0, -0.5, 1]
    assert prior.constants["expected"].tolist() == [0, 0, 0]
    assert prior.fitted["method"] == "file"
    assert set(prior.constants) == set(COUNTINGS)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            '{"dominant": {"calm": 0, "glad": 0, "angry": 1}}',
            "has the classes calm, glad, angry, the",
        ),
        ('{"dominant": {"calm": 0}}', "has the classes calm, the model calm, glad, rare"),
        ('{"dominant": [0, 0, 0]}', "has the classes list"),
        ('{"dominant": {"calm": NaN, "glad": 0, "rare": 1}}', "a finite number a class"),
        ('{"dominant": {"calm": "0", "glad": 0, "rare": 1}}', "a finite number a class"),
        ('{"dominant": {"calm": true, "glad": 0, "rare": 1}}', "a finite number a class"),
        ('{"argmax": {"calm": 0, "glad": 0, "rare": 1}}', "'dominant', 'expected' or both"),
        ("{}", "'dominant', 'expected' or both"),
        ("[]", "'dominant', 'expected' or both"),
        ("{", "cannot be read"),
    ],
)
def test_a_file_that_does_not_fit_is_one_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "prior.json"
    path.write_text(text)
    with pytest.raises(DataError, match=says) as error:
        read_prior(path, LABELS)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_names_the_choices(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="give fitted, log-prior, none or a JSON file"):
        read_prior(tmp_path / "gone.json", LABELS)
