"""Photographs are no people, whatever light, noise and camera do; who sits quietly is one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import pytest

from edge.liveness import (
    ARRIVE_SECONDS,
    CHECK_SECONDS,
    LIFE_SECONDS,
    ROOM_MARKS,
    STILL_SECONDS,
    LifeSigns,
)
from edge.records import Face, Life, Track
from support.wall import HEIGHT, PEOPLE, POSTERS, WIDTH, Portrait, draw, room

Spoil = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]


def steady(picture: np.ndarray, moment: float, rng: np.random.Generator) -> np.ndarray:
    return picture + rng.normal(0, 2, picture.shape)


def noisy(picture: np.ndarray, moment: float, rng: np.random.Generator) -> np.ndarray:
    return picture + rng.normal(0, 9, picture.shape)


def flickering(picture: np.ndarray, moment: float, rng: np.random.Generator) -> np.ndarray:
    light = 1 + 0.2 * np.sin(6.1 * moment)
    return steady(picture * light + 5 * np.cos(3 * moment), moment, rng)


def shaded(picture: np.ndarray, moment: float, rng: np.random.Generator) -> np.ndarray:
    """Somebody's shadow goes over the wall."""
    far = np.arange(WIDTH) - (90 * moment % (WIDTH + 300) - 150)
    return steady(picture * (1 - 0.5 * np.exp(-((far / 60) ** 2)))[None, :, None], moment, rng)


def shaken(picture: np.ndarray, moment: float, rng: np.random.Generator) -> np.ndarray:
    """The camera hangs from a ceiling on which somebody walks."""
    turn = cv2.getRotationMatrix2D((WIDTH / 2, HEIGHT / 2), 0.3 * np.sin(5 * moment), 1)
    turn[:, 2] += (3 * np.sin(7.3 * moment) + rng.normal(0, 1), 3 * np.cos(9.1 * moment))
    options = {"flags": cv2.INTER_CUBIC, "borderMode": cv2.BORDER_REFLECT}
    return steady(cv2.warpAffine(picture, turn, (WIDTH, HEIGHT), **options), moment, rng)


def compressed(picture: np.ndarray, moment: float, rng: np.random.Generator) -> np.ndarray:
    whole = np.clip(steady(picture, moment, rng), 0, 255).astype(np.uint8)
    return cv2.imdecode(cv2.imencode(".jpg", whole, [cv2.IMWRITE_JPEG_QUALITY, 25])[1], 1)


def screened(picture: np.ndarray, moment: float, rng: np.random.Generator) -> np.ndarray:
    """A screen on the wall scrolls a text."""
    text = np.roll(room(7)[:95, :300], int(40 * moment), axis=0)
    whole = picture.copy()
    whole[105:200, 230:530] = text
    return steady(whole, moment, rng)


def passed(picture: np.ndarray, moment: float, rng: np.random.Generator) -> np.ndarray:
    """Somebody walks along the wall, again and again."""
    at = int(120 * moment % (WIDTH + 200)) - 100
    left, right = (min(max(side, 0), WIDTH) for side in (at - 25, at + 25))
    whole = picture.copy()
    whole[20:, left:right] = room(3)[20:, 200 : 200 + right - left]
    return steady(whole, moment, rng)


def lives(
    portraits: Sequence[Portrait], spoil: Spoil, seconds: float
) -> Iterator[tuple[float, list[Life]]]:
    """Moment and lives, in order, five pictures a second."""
    rng, signs, wall, faces = np.random.default_rng(0), LifeSigns(), room(), {}
    for k in range(round(5 * seconds)):
        moment = k / 5
        whole = spoil(draw(portraits, moment, wall, faces), moment, rng)
        pixels = np.clip(whole, 0, 255).astype(np.uint8)
        tracks = [Track(n, one.face(moment, rng)) for n, one in enumerate(portraits)]
        yield moment, [track.life for track in signs.judge(pixels, tracks, moment)]


SLOW = [
    pytest.param(one, marks=pytest.mark.slow) for one in (steady, noisy, shaded, screened, passed)
]


@pytest.mark.parametrize("spoil", [flickering, shaken, compressed, *SLOW])
@pytest.mark.slow
def test_photographs_never_come_to_life_and_people_do_within_seconds(spoil: Spoil) -> None:
    seen = list(lives([*POSTERS, *PEOPLE], spoil, 9))
    for moment, row in seen:
        assert Life.ALIVE not in row[: len(POSTERS)], moment
    assert seen[-1][1][len(POSTERS) :] == [Life.ALIVE] * len(PEOPLE)


@pytest.mark.slow
def test_who_reads_quietly_is_alive_soon() -> None:
    """A millimetre and a half: a face of 60 pixels is 180 mm high."""
    quiet = [dataclasses.replace(one, sway=1.5 * one.size / 180) for one in PEOPLE]
    seen = list(lives([*POSTERS, *quiet], steady, 14))
    assert seen[-1][1] == [Life.UNPROVEN] * len(POSTERS) + [Life.ALIVE] * len(PEOPLE)


@pytest.mark.slow
def test_photographs_alone_in_a_shaking_picture_stay_photographs() -> None:
    for _, row in lives(POSTERS, shaken, 6):
        assert row == [Life.UNPROVEN] * len(POSTERS)


def test_one_sign_of_life_is_none_and_life_ends_without_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    moved: list[int] = []
    monkeypatch.setattr("edge.liveness._moved", lambda old, now: list(moved))
    signs, pixels = LifeSigns(), np.zeros((40, 40, 3), np.uint8)
    box = np.array([10, 10, 20, 20], np.float32)
    track = Track(7, Face(box, np.full((5, 2), 20, np.float32), 0.9))

    def after(start: float, seconds: float, *who: int) -> Life:
        moved[:] = who
        life = Life.STILL
        for k in range(1, round(seconds / CHECK_SECONDS) + 1):
            (judged,) = signs.judge(pixels, [track], start + k * CHECK_SECONDS)
            life = judged.life
        return life

    # References are of 0.5, 2.5, 4.5 s and so on.
    assert after(0.0, 2.5) is Life.UNPROVEN
    assert after(2.5, 2.0, 7) is Life.UNPROVEN, "as often as it likes against one reference"
    assert after(4.5, 4.0) is Life.UNPROVEN
    assert after(8.5, 0.5, 7) is Life.ALIVE
    assert after(9.0, LIFE_SECONDS - 6.0) is Life.ALIVE
    assert after(LIFE_SECONDS + 3.0, 0.5) is Life.UNPROVEN


@pytest.mark.parametrize(("speed", "grown"), [(30.0, 1.0), (0.0, 1.5), (0.0, 1.0)])
def test_a_track_left_on_a_photograph_shows_life_there_or_has_none(
    monkeypatch: pytest.MonkeyPatch, speed: float, grown: float
) -> None:
    """By a passer-by, by somebody nearer, and by nobody: who only stays lives on."""
    monkeypatch.setattr("edge.liveness._moved", lambda old, now: list(moved))
    signs, pixels, moved = LifeSigns(), np.zeros((40, 400, 3), np.uint8), [7]

    def judge(moment: float, at: float, size: float) -> Track:
        box = np.array([at, 10, size, size], np.float32)
        track = Track(7, Face(box, np.full((5, 2), 20, np.float32), 0.9))
        return signs.judge(pixels, [track], moment)[0]

    for k in range(41):
        before = judge(k / 5, 20 + speed * k / 5, 20 * grown)
    assert before.life is Life.ALIVE
    moved.clear()
    at = 20 + speed * 8 + (15 if speed else 0)
    after = [judge(8 + k / 5, at, 20.0) for k in range(1, 20)]
    stays = speed == 0.0 and grown == 1.0
    assert (after[0].place == before.place) is stays
    late = {track.life for k, track in enumerate(after, 1) if k / 5 > ARRIVE_SECONDS + 0.3}
    assert late == {Life.ALIVE if stays else Life.UNPROVEN}
    moved.append(7)
    assert [judge(12 + k / 5, at, 20.0) for k in range(20)][-1].life is Life.ALIVE


@pytest.mark.parametrize(("others", "life"), [(0, Life.UNPROVEN), (ROOM_MARKS, Life.STILL)])
def test_a_face_is_still_after_minutes_in_which_the_room_moved(others: int, life: Life) -> None:
    signs, pixels = LifeSigns(), np.zeros((40, 40, 3), np.uint8)
    box = np.array([10, 10, 20, 20], np.float32)
    track = Track(1, Face(box, np.full((5, 2), 20, np.float32), 0.9))
    signs.judge(pixels, [track], 0.0)
    signs._room += others
    (before,) = signs.judge(pixels, [track], STILL_SECONDS - 1)
    assert before.life is Life.UNPROVEN
    (judged,) = signs.judge(pixels, [track], STILL_SECONDS)
    assert judged.life is life


def test_a_picture_of_another_size_or_without_a_mark_is_survived() -> None:
    signs = LifeSigns()
    box = np.array([10, 10, 20, 20], np.float32)
    track = Track(1, Face(box, np.full((5, 2), 20, np.float32), 0.9))
    sizes: list[Any] = [(40, 40), (40, 40), (3, 3), (2000, 3000), (2000, 3000), (40, 60), (40, 60)]
    for k, size in enumerate(sizes):
        (judged,) = signs.judge(np.full((*size, 3), 90, np.uint8), [track], float(k))
        assert judged.life is Life.UNPROVEN
    assert signs.judge(np.full((40, 60, 3), 90, np.uint8), [], 9.0) == []
