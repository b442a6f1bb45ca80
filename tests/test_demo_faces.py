"""The drawn people of the demo's clip."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

faces = importlib.import_module("faces")
PERSON = faces.Person((150, 180, 222), (30, 40, 55), (160, 70, 30))


def test_an_expression_between_two_is_either_at_the_ends_and_differs_in_between() -> None:
    pictures = [
        faces.draw(PERSON, faces.NEUTRAL.towards(faces.SURPRISED, part))[0] for part in (0, 0.5, 1)
    ]
    assert np.array_equal(pictures[0], faces.draw(PERSON, faces.NEUTRAL)[0])
    assert np.array_equal(pictures[2], faces.draw(PERSON, faces.SURPRISED)[0])
    assert np.abs(pictures[1] - pictures[0]).max() > 20
    assert np.abs(pictures[1] - pictures[2]).max() > 20


@pytest.mark.parametrize("name", ["NEUTRAL", "HAPPY", "SURPRISED", "SAD", "ANGRY"])
def test_a_drawing_is_a_picture_with_a_background_to_see_through(name: str) -> None:
    canvas, mask = faces.draw(PERSON, getattr(faces, name))
    assert canvas.shape == (faces.SIDE, faces.SIDE, 3)
    assert mask.shape == (faces.SIDE, faces.SIDE, 1)
    assert canvas.min() >= 0
    assert canvas.max() <= 255
    assert mask[0, 0, 0] == 0
    assert mask[faces.SIDE // 2, faces.SIDE // 2, 0] == 1
