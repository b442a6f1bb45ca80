"""The people whom a simulated node looks at: how many there are and how they feel drifts."""

from __future__ import annotations

import functools
import itertools
import math
import random
from collections.abc import Sequence

import numpy as np

from edge.records import Expression, Life

MOST_PEOPLE, LEAST_SURE, MOST_SURE = 32, 0.4, 0.9
DEGREES = 8  # of how sure of itself an answer is


@functools.cache
def _answers(labels: int) -> list[list[list[Expression]]]:
    """What one can look like, by person, label and how sure: made once for all rooms of a process. The
    last "label" is a face that is not read."""
    found = []
    for person in range(MOST_PEOPLE):
        looks = []
        for label in range(labels):
            certain = np.full((DEGREES, labels), 0.05, np.float32)
            certain[:, label] = np.linspace(LEAST_SURE, MOST_SURE, DEGREES)
            looks.append([Expression(person, row, Life.ALIVE) for row in certain])
        looks.append([Expression(person, None, Life.ALIVE)] * DEGREES)
        found.append(looks)
    return found


class Classroom:
    """A room full of people whose number and mood drift."""

    def __init__(self, labels: Sequence[str], rng: random.Random) -> None:
        self._rng, self._people = rng, rng.randint(8, 28)
        self._answers, self._kinds = _answers(len(labels)), range(len(labels) + 1)
        # Most people look neutral or glad; how much so wanders around that and comes back.
        self._usual = [2.0, 1.0, *[-1.5] * (len(labels) - 2)][: len(labels)]
        self._mood = [0.0] * len(labels)

    def look(self) -> list[Expression]:
        """Who is in view now, one Expression each."""
        rng = self._rng
        self._people = min(MOST_PEOPLE, max(0, self._people + rng.choice((-1, 0, 0, 0, 0, 1))))
        if rng.random() < 0.002:
            self._people = rng.choice((0, 3, 24))  # a lesson begins or ends
        self._mood = [0.94 * mood + rng.gauss(0, 0.28) for mood in self._mood]
        shares = [math.exp(a + b) for a, b in zip(self._usual, self._mood, strict=True)]
        shares.append(0.02 * sum(shares))
        kinds = rng.choices(
            self._kinds, cum_weights=list(itertools.accumulate(shares)), k=self._people
        )
        return [
            looks[kind][int(DEGREES * rng.random())]
            for looks, kind in zip(self._answers, kinds, strict=False)
        ]
