from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from edge.classify import Classifier, softmax
from edge.inference.backends import TensorSpec
from edge.inference.bundle import Bundle, load_bundle
from edge.records import Face, Track


class Counting:
    """A backend that answers the class it is told to, and remembers its batches."""

    name = "counting"
    input = TensorSpec("faces", (None, 1, 64, 64))

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.answer = 0

    def run(self, batch: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        self.batches.append(len(batch))
        logits = np.zeros((len(batch), 8), dtype=np.float32)
        logits[:, self.answer] = 9.0
        return {"logits": logits}

    def close(self) -> None:
        pass


def track(number: int, size: float = 40, seen: bool = True) -> Track:
    points = np.array([[10, 12], [30, 12], [20, 22], [12, 32], [28, 32]], dtype=np.float32)
    box = np.array([0, 0, size, size], dtype=np.float32)
    return Track(number, Face(box, points, 0.9), seen)


PIXELS = np.full((60, 60, 3), 100, dtype=np.uint8)


def test_one_batch_a_frame_however_many_faces() -> None:
    backend = Counting()
    classifier = Classifier(backend, load_bundle())
    assert len(classifier.read(PIXELS, [track(i) for i in range(30)], 0.0)) == 30
    classifier.read(PIXELS, [], 0.1)
    assert backend.batches == [30, 0]


def test_small_faces_are_not_read_and_hidden_ones_keep_their_last_answer() -> None:
    backend = Counting()
    classifier = Classifier(backend, load_bundle(), min_face_px=16)
    small, large = classifier.read(PIXELS, [track(1, size=12), track(2)], 0.0)
    assert small.probabilities is None
    assert large.probabilities is not None
    (hidden,) = classifier.read(PIXELS, [track(2, seen=False)], 0.2)
    assert backend.batches == [1, 0]
    assert hidden.probabilities == pytest.approx(large.probabilities)


def turned(number: int) -> Track:
    """A face from the side: the eyes near each other, the nose far to the left of them."""
    points = np.array([[16, 12], [22, 12], [6, 22], [15, 32], [20, 32]], dtype=np.float32)
    return Track(number, Face(np.array([0, 0, 40, 40], dtype=np.float32), points, 0.9))


def test_a_face_from_the_side_is_not_read() -> None:
    backend = Counting()
    side, front = Classifier(backend, load_bundle()).read(PIXELS, [turned(1), track(2)], 0.0)
    assert backend.batches == [1]
    assert side.probabilities is None
    assert front.probabilities is not None
    (side,) = Classifier(backend, load_bundle(), max_turn=90).read(PIXELS, [turned(1)], 0.0)
    assert side.probabilities is not None


@pytest.mark.parametrize("unread", [turned(1), track(1, size=12)])
def test_who_cannot_be_read_keeps_the_answer_for_two_seconds(unread: Track) -> None:
    classifier = Classifier(Counting(), load_bundle())
    (read,) = classifier.read(PIXELS, [track(1)], 0.0)
    (soon,) = classifier.read(PIXELS, [unread], 2.0)
    assert soon.probabilities == pytest.approx(read.probabilities)
    (late,) = classifier.read(PIXELS, [unread], 2.1)
    assert late.probabilities is None
    (again,) = classifier.read(PIXELS, [track(1)], 2.2)
    assert again.probabilities is not None


def test_smoothing_follows_time_not_frames() -> None:
    results = []
    for step in (0.5, 0.05):
        backend = Counting()
        classifier = Classifier(backend, load_bundle(), smooth_seconds=0.5)
        classifier.read(PIXELS, [track(1)], 0.0)
        backend.answer = 3
        for i in range(1, round(0.5 / step) + 1):
            (answer,) = classifier.read(PIXELS, [track(1)], i * step)
        assert answer.probabilities is not None
        results.append(float(answer.probabilities[3]))
    assert results[0] == pytest.approx(1 - np.exp(-1), abs=0.01)
    assert results == pytest.approx([results[0]] * 2, abs=1e-3)


def test_a_countings_constants_are_added_to_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = load_bundle()
    asked = []

    def offsets(self: Bundle, counting: str) -> NDArray[np.float32]:
        asked.append(counting)
        return np.array([0, 0, 0, 9 + np.log(7), 0, 0, 0, -1e4], dtype=np.float32)

    monkeypatch.setattr(Bundle, "offsets", offsets)
    classifier = Classifier(Counting(), bundle, counting="expected")
    (answer,) = classifier.read(PIXELS, [track(1)], 0.0)
    assert asked == ["expected"]
    assert answer.probabilities is not None
    assert answer.probabilities[3] == pytest.approx(7 * answer.probabilities[0], rel=1e-3)
    assert answer.probabilities[7] == 0


def test_softmax_is_stable_and_takes_an_empty_batch() -> None:
    values = softmax(np.array([[1e4, 0, -1e4]], dtype=np.float32))
    assert values == pytest.approx(np.array([[1, 0, 0]]))
    assert softmax(np.zeros((0, 8), np.float32)).shape == (0, 8)
