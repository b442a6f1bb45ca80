"""Faces that do not move are a state, which tells of a group that is published and of nobody else."""

from __future__ import annotations

import numpy as np
import pytest

from edge.records import Face, Life, Track
from edge.unmoved import BEGIN_SECONDS, END_SECONDS, Unmoved

FACE = Face(np.array([0, 0, 9, 9], np.float32), np.zeros((5, 2), np.float32), 0.9)


def tracks(alive: int, *others: Life) -> list[Track]:
    lives = [*[Life.ALIVE] * alive, *others]
    return [Track(n, FACE, life=life) for n, life in enumerate(lives)]


@pytest.mark.parametrize("life", [Life.UNPROVEN, Life.STILL])
def test_faces_that_do_not_move_are_told_after_a_minute_and_for_ten(life: Life) -> None:
    state = Unmoved()
    for second in range(int(BEGIN_SECONDS)):
        state.look(tracks(5, life), 5, 100.0 + second)
        assert not state.told
    state.look(tracks(5, life), 5, 100.0 + BEGIN_SECONDS)
    assert state.told
    for second in range(1, int(END_SECONDS)):
        state.look(tracks(5), 5, 100.0 + BEGIN_SECONDS + second)
        assert state.told
    state.look(tracks(5), 5, 100.0 + BEGIN_SECONDS + END_SECONDS)
    assert not state.told


def test_nothing_is_told_of_a_group_that_is_too_small() -> None:
    state = Unmoved()
    for second in range(1000):
        state.look(tracks(second % 5, *[Life.STILL] * 10), 5, float(second))
        assert not state.told
    state.look(tracks(5, *[Life.STILL] * 10), 5, 1000.0)
    for second in range(1001, 3000):
        state.look(tracks(second % 5), 5, float(second))
    before = state.told
    state.look([], 5, 4000.0)
    assert state.told is before


def test_without_a_group_unproven_faces_count_and_are_not_told() -> None:
    state = Unmoved()
    for second in range(200):
        state.look(tracks(0, Life.UNPROVEN), 1, float(second))
    assert not state.told
    for second in range(200, 400):
        state.look(tracks(0, Life.STILL), 1, float(second))
    assert state.told
