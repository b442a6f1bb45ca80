from __future__ import annotations

import numpy as np
import pytest

from distill.data.splits import argmax, majority
from distill.evaluation.metrics import fit_temperature, score
from edge.classify import softmax

VOTES = np.array(
    [
        # neutral happiness surprise sadness anger disgust fear contempt | unknown not-a-face
        [6, 2, 0, 2, 0, 0, 0, 0, 0, 0],  # neutral
        [4, 4, 0, 0, 0, 0, 0, 0, 2, 0],  # a tie
        [2, 1, 0, 1, 0, 0, 0, 0, 6, 0],  # unknown
        [0, 3, 0, 2, 0, 0, 0, 0, 3, 2],  # a tie with unknown
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 10],  # not a face
        [0, 9, 1, 0, 0, 0, 0, 0, 0, 0],  # happiness
    ]
)
LABELS = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt")


def test_majority_keeps_unique_winners_among_the_classes() -> None:
    assert majority(VOTES, 8).tolist() == [0, -1, -1, -1, -1, 1]


def test_argmax_drops_only_what_unknown_or_not_a_face_wins() -> None:
    assert argmax(VOTES, LABELS).tolist() == [0, 0, -1, 1, -1, 1]


def test_a_tie_is_broken_alike_in_whatever_order_a_model_has_the_classes() -> None:
    columns = [LABELS.index(label) for label in sorted(LABELS)]
    votes = np.concatenate([VOTES[:, columns], VOTES[:, 8:]], axis=1)
    named = [sorted(LABELS)[k] if k >= 0 else None for k in argmax(votes, tuple(sorted(LABELS)))]
    assert named == ["neutral", "neutral", None, "happiness", None, "happiness"]
    two = argmax(np.array([[3, 3], [0, 2]]), ("glad", "calm"))  # of no order that is known
    assert two.tolist() == [0, 1]


@pytest.mark.parametrize("protocol", ["majority-8", "argmax-8"])
def test_an_image_that_nobody_voted_on_has_no_label_and_is_not_scored(protocol: str) -> None:
    votes = np.concatenate([VOTES, np.zeros((3, 10), int)])
    p = np.full((len(votes), 8), 0.125)
    without = score(p[: len(VOTES)], VOTES, LABELS, protocol, rounds=20)
    s = score(p, votes, LABELS, protocol, rounds=20)
    assert (s.n, s.excluded) == (without.n, without.excluded + 3)
    assert (s.accuracy, s.nll, s.ece_votes) == (without.accuracy, without.nll, without.ece_votes)
    assert np.isfinite(s.nll)


def test_scores_of_a_case_worked_out_by_hand() -> None:
    votes = np.zeros((4, 10), dtype=int)
    votes[[0, 1, 2, 3], [0, 0, 1, 1]] = 10
    p = np.full((4, 8), 0.0)
    p[0, 0], p[0, 1] = 0.9, 0.1  # right, sure
    p[1, 1], p[1, 0] = 0.6, 0.4  # wrong
    p[2, 1], p[2, 0] = 0.7, 0.3  # right
    p[3, 1], p[3, 0] = 0.8, 0.2  # right
    s = score(p, votes, LABELS, "majority-8", rounds=200)
    assert (s.n, s.excluded) == (4, 0)
    assert s.accuracy == 0.75
    assert s.mean_class_accuracy == 0.75  # 1/2 and 2/2
    # F1: neutral 2*1/(2*1+0+1), happiness 2*2/(2*2+1+0)
    assert s.macro_f1 == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert s.nll == pytest.approx(-np.mean(np.log([0.9, 0.4, 0.7, 0.8])))
    # Every answer has a bin of its own: mean of |hit - confidence|.
    assert s.ece == pytest.approx(np.mean([0.1, 0.6, 0.3, 0.2]))
    assert s.recall == {"neutral": 0.5, "happiness": 1.0}
    assert s.confusion[0][:2] == [1, 1]
    assert s.accuracy_interval[0] <= 0.75 <= s.accuracy_interval[1]


def test_each_score_says_what_it_is_against() -> None:
    votes = np.zeros((4, 10), dtype=int)
    votes[0, 0] = 10  # ten of ten
    votes[1, :2] = 8, 2
    votes[2, [0, 1, 8]] = 3, 6, 1  # one vote for unknown: of nine votes for classes, six
    votes[3, [0, 1, 2]] = 4, 3, 3
    p = np.zeros((4, 8))
    p[0, 0] = 1.0
    p[1, :2] = 0.8, 0.2
    p[2, :2] = 0.35, 0.65
    p[3, :2] = 0.45, 0.55  # wrong
    s = score(p, votes, LABELS, "majority-8", rounds=0)
    # Every answer has a bin of its own.
    assert s.ece == pytest.approx(np.mean([0.0, 0.2, 0.35, 0.55]))
    assert s.ece_votes == pytest.approx(np.mean([0.0, 0.0, 6 / 9 - 0.65, 0.55 - 0.3]))
    assert s.nll_label == pytest.approx(-np.mean(np.log([1.0, 0.8, 0.65, 0.45])))
    of_third = np.log(0.35) / 3 + 2 * np.log(0.65) / 3
    of_last = 0.4 * np.log(0.45) + 0.3 * np.log(0.55) + 0.3 * np.log(1e-7)
    of_second = 0.8 * np.log(0.8) + 0.2 * np.log(0.2)
    assert s.nll == pytest.approx(-(of_second + of_third + of_last) / 4)
    found = [(b.low, b.n, b.accuracy) for b in s.agreement]
    assert found == [(0.0, 1, 0.0), (0.5, 1, 1.0), (0.7, 1, 1.0), (0.9, 1, 1.0)]


def test_labels_alone_give_no_score_against_votes() -> None:
    s = score(np.full((3, 2), 0.5), np.eye(2, dtype=int)[[0, 1, 1]], ("a", "b"), "majority-8", 0)
    assert s.ece_votes is None
    assert s.agreement == []
    assert s.nll == s.nll_label == pytest.approx(np.log(2))


def test_temperature_undoes_a_known_scaling() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (500, 8)).astype(np.float32)
    targets = softmax(logits).astype(np.float32)
    assert fit_temperature(3.0 * logits, targets) == pytest.approx(3.0, rel=1e-2)
    assert fit_temperature(logits / 2, targets) == pytest.approx(0.5, rel=1e-2)
