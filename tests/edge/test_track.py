from __future__ import annotations

import itertools

import numpy as np
import pytest

from edge.records import Face, Track
from edge.settings import AUTO_PER_SECOND
from edge.track import Tracker

SHAPE = (480, 640, 3)
STEP = 1 / 30


def face(x: float, y: float, size: float = 50, score: float = 0.9) -> Face:
    box = np.array([x - size / 2, y - size / 2, size, size], dtype=np.float32)
    return Face(box=box, landmarks=np.zeros((5, 2), np.float32), score=score)


def ids(tracks: list[Track]) -> list[int]:
    return [track.id for track in tracks]


def test_everybody_in_the_first_picture_counts_at_once_and_later_ones_after_three() -> None:
    tracker = Tracker(confirm_seconds=2 * STEP)
    assert len(tracker.update([face(100, 100), face(300, 100)], 0.0, SHAPE)) == 2
    counts = []
    for i in range(1, 5):
        faces = [face(100, 100), face(300, 100), face(500, 300)]
        counts.append(len(tracker.update(faces, i * STEP, SHAPE)))
    assert counts == [2, 2, 3, 3]


def test_a_single_false_alarm_never_counts() -> None:
    tracker = Tracker(confirm_seconds=2 * STEP)
    tracker.update([face(100, 100)], 0.0, SHAPE)
    tracker.update([face(100, 100), face(400, 200)], STEP, SHAPE)
    for i in range(2, 8):
        assert len(tracker.update([face(100, 100)], i * STEP, SHAPE)) == 1


def test_track_keeps_id_through_a_short_occlusion() -> None:
    tracker = Tracker()
    before = after = None
    for i in range(90):
        x = 100 + 2.0 * i
        hidden = 30 <= i < 60  # one second
        tracks = tracker.update([] if hidden else [face(x, 200)], i * STEP, SHAPE)
        before = ids(tracks) if i == 29 else before
        after = ids(tracks) if i == 60 else after
    assert before == after == [1]


def test_a_hidden_person_counts_for_the_hold_time_only() -> None:
    tracker = Tracker(hold_seconds=0.3)
    tracker.update([face(300, 200)], 0.0, SHAPE)
    inside = [len(tracker.update([], t, SHAPE)) for t in (0.1, 0.29, 0.4, 1.0)]
    assert inside == [1, 1, 0, 0]


def test_who_walked_out_of_the_picture_is_not_held() -> None:
    tracker = Tracker(hold_seconds=0.3)
    last = []
    for i in range(40):
        x = 560 + 3.0 * i
        last = tracker.update([face(x, 200)] if x < 630 else [], i * STEP, SHAPE)
        if x > 636:
            break
    assert last == []


def test_a_person_back_after_the_forget_time_is_a_new_one() -> None:
    tracker = Tracker(confirm_seconds=0.0, forget_seconds=1.5)
    assert ids(tracker.update([face(300, 200)], 0.0, SHAPE)) == [1]
    assert ids(tracker.update([face(300, 200)], 2.0, SHAPE)) == [2]


def test_crossing_people_keep_their_ids() -> None:
    """Two people cross at walking speed; the farther one is hidden while they overlap."""
    tracker = Tracker()
    start: dict[str, int] = {}
    end: dict[str, int] = {}
    for i in range(120):
        left, right = 100 + 3.5 * i, 520 - 3.5 * i
        faces = [face(left, 200, 60)]
        if abs(left - right) > 45:
            faces.append(face(right, 205, 48))
        tracks = tracker.update(faces, i * STEP, SHAPE)
        seen = {("big" if t.face.size > 54 else "small"): t.id for t in tracks if t.seen}
        start = seen if i == 10 else start
        end = seen if i == 119 else end
    assert start == end
    assert len(start) == 2


def test_weak_detections_keep_a_person_but_never_start_one() -> None:
    tracker = Tracker(strong_score=0.6, confirm_seconds=0.0)
    assert tracker.update([face(100, 100, score=0.4)], 0.0, SHAPE) == []
    tracker.update([face(300, 200)], STEP, SHAPE)
    for i in range(2, 60):
        tracks = tracker.update([face(300, 200, score=0.35)], i * STEP, SHAPE)
        assert ids(tracks) == [1]
        assert tracks[0].seen


def test_thirty_shaking_people_stay_thirty() -> None:
    rng = np.random.default_rng(0)
    tracker = Tracker()
    places = [(60 + 100 * (i % 6), 50 + 90 * (i // 6)) for i in range(30)]
    numbers: set[int] = set()
    for i in range(150):
        shaken = [
            face(x + rng.normal(0, 1.5), y + rng.normal(0, 1.5), 40)
            for x, y in places
            if rng.random() > 0.1  # the detector misses one in ten
        ]
        tracks = tracker.update(shaken, i * STEP, SHAPE)
        numbers |= set(ids(tracks))
        if i > 5:
            assert len(tracks) in (29, 30)
    assert len(numbers) <= 31


def test_in_pictures_far_apart_everybody_counts_at_once() -> None:
    """A folder of pictures: no next picture will confirm anybody."""
    tracker = Tracker(confirm_seconds=2 * STEP, hold_seconds=0.3)
    for i, x in enumerate((100, 300, 500, 200)):
        assert len(tracker.update([face(x, 200)], float(i), SHAPE)) == 1


def seated(rate: float, miss: float, seconds: float = 40.0) -> float:
    """Mean of the people that are counted of thirty, who shake, and whom the detector loses for a
    moment: for a sixth of a second in the mean, `miss` of the time."""
    rng, count = np.random.default_rng(3), round(30 * seconds)
    off = 6 / 30
    on = off * miss / (1 - miss)
    seen = np.ones((count, 30), dtype=bool)
    luck, shaken = rng.random(seen.shape), rng.normal(0, 1.5, (*seen.shape, 2))
    for k, i in itertools.product(range(1, count), range(30)):
        seen[k, i] = luck[k, i] > on if seen[k - 1, i] else luck[k, i] < off
    tracker, people = Tracker(), []
    for k in np.arange(0, count, 30 / rate).astype(int):
        places = [(60 + 100 * (i % 6), 50 + 90 * (i // 6)) for i in range(30) if seen[k, i]]
        noise = shaken[k, seen[k]]
        faces = [face(x + dx, y + dy, 40) for (x, y), (dx, dy) in zip(places, noise, strict=True)]
        people.append(len(tracker.update(faces, float(k) / 30, SHAPE)))
    return float(np.mean(people))


@pytest.mark.parametrize("miss", [0.0, 0.05, 0.1])
@pytest.mark.parametrize("rate", [5.0, AUTO_PER_SECOND, 10.0])
@pytest.mark.slow
def test_thirty_seated_people_count_the_same_from_few_pictures_as_from_thirty_a_second(
    rate: float, miss: float
) -> None:
    assert seated(rate, miss) == pytest.approx(seated(30.0, miss), abs=0.2)


@pytest.mark.parametrize("rate", [5.0, AUTO_PER_SECOND, 10.0, 30.0])
@pytest.mark.parametrize("speed", [40.0, 105.0, 180.0, 260.0])
def test_crossing_people_keep_their_ids_at_every_rate(rate: float, speed: float) -> None:
    """speed: pixels a second, towards each other; faces of 60 and 48 pixels."""
    tracker, seen = Tracker(), []
    for k in range(int(400 / speed * rate) + 1):
        moment = k / rate
        left, right = 100 + speed * moment, 500 - speed * moment
        faces = [face(left, 200, 60)]
        if abs(left - right) > 45:
            faces.append(face(right, 205, 48))
        tracks = tracker.update(faces, moment, SHAPE)
        now = {("big" if t.face.size > 54 else "small"): t.id for t in tracks if t.seen}
        seen += [now] if len(now) == 2 else []
    assert seen[0] == seen[-1]


@pytest.mark.parametrize("rate", [5.0, AUTO_PER_SECOND, 10.0])
def test_at_the_usual_rates_one_sight_is_no_person_and_two_are(rate: float) -> None:
    tracker = Tracker()
    tracker.update([], 0.0, SHAPE)
    assert tracker.update([face(100, 100)], 1 / rate, SHAPE) == []
    assert len(tracker.update([face(100, 100)], 2 / rate, SHAPE)) == 1
