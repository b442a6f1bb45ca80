"""`--check` says when the camera sees most faces from the side."""

from __future__ import annotations

import numpy as np
import pytest

from edge.detect import Detector
from edge.inference.backends.fake import Fake
from edge.inference.bundle import SHIPPED
from edge.records import Face
from edge.tools.check import advise, look

PIXELS = np.random.default_rng(1).integers(90, 170, (100, 300, 3), dtype=np.uint8)
DETECTOR = Detector(Fake(SHIPPED / "student.int8.onnx"), 640, 480)
FRONT = [[10, 12], [30, 12], [20, 22], [12, 32], [28, 32]]
SIDE = [[16, 12], [22, 12], [6, 22], [15, 32], [20, 32]]


def faces(front: int, side: int) -> list[Face]:
    box = np.array([0, 0, 40, 40], dtype=np.float32)
    points = [FRONT] * front + [SIDE] * side
    return [Face(box, np.array(p, dtype=np.float32), 0.9) for p in points]


@pytest.mark.parametrize(("front", "side", "told"), [(0, 1, True), (1, 2, True), (2, 2, False)])
def test_more_than_half_of_the_faces_from_the_side_are_told(
    front: int, side: int, told: bool
) -> None:
    line = advise(look(PIXELS, faces(front, side), DETECTOR, 60))
    assert (f"{side} seen from the side: put the camera where the room looks" in line) == told
