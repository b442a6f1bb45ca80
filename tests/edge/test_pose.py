"""How far a face is turned, from five landmarks: of a face in space, and of the demo's portraits."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from edge.detect import Detector
from edge.inference.loader import open_backend
from edge.pose import shows_front, yaw
from edge.records import Face
from edge.settings import Settings

# A mean face: pupils, nose tip, corners of the mouth; x right, y down, z towards the camera, mm.
FACE = np.array(
    [[-31.5, 0, 0], [31.5, 0, 0], [0, 38, 32], [-25, 70, 6], [25, 70, 6]], dtype=np.float64
)


def seen(degrees: float, roll: float = 0, pitch: float = 0) -> NDArray[np.float32]:
    """Turn the face and see it from far away, 40 pixels between the eyes: (5, 2)."""
    y, r, p = np.radians([degrees, roll, pitch])
    yawed = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    tilted = np.array([[1, 0, 0], [0, np.cos(p), np.sin(p)], [0, -np.sin(p), np.cos(p)]])
    rolled = np.array([[np.cos(r), -np.sin(r), 0], [np.sin(r), np.cos(r), 0], [0, 0, 1]])
    points = FACE @ (rolled @ tilted @ yawed).T
    return (points[:, :2] * 40 / 63 + [320, 240]).astype(np.float32)


@pytest.mark.parametrize("degrees", [-85, -60, -45, -20, 0, 20, 45, 60, 85])
def test_yaw_of_a_face_in_space_is_told_within_five_degrees(degrees: float) -> None:
    assert yaw(seen(degrees)) == pytest.approx(degrees, abs=5)


@pytest.mark.parametrize("roll", [-45, -30, 30, 45, 90])
@pytest.mark.parametrize("degrees", [0, 30, 70])
def test_roll_is_not_taken_for_yaw(degrees: float, roll: float) -> None:
    assert yaw(seen(degrees, roll)) == pytest.approx(yaw(seen(degrees)), abs=0.1)


@pytest.mark.parametrize("pitch", [-30, -15, 15, 30])
def test_a_head_that_is_bent_is_not_taken_for_a_turned_one(pitch: float) -> None:
    assert abs(yaw(seen(0, pitch=pitch))) < 1
    assert abs(yaw(seen(30, pitch=pitch))) < 45


def test_a_mirrored_face_is_turned_to_the_other_side() -> None:
    points = seen(35, roll=10)
    mirrored = (points * [-1, 1] + [640, 0])[[1, 0, 2, 4, 3]].astype(np.float32)
    assert yaw(mirrored) == pytest.approx(-yaw(points), abs=1e-3)


@pytest.mark.parametrize("name", ["portrait-1", "portrait-2", "portrait-3"])
def test_portraits_are_far_from_too_turned_and_mirrored_with_their_picture(
    name: str, detector_file: Path
) -> None:
    image = cv2.imread(f"demo/pictures/{name}.jpg")
    assert image is not None
    backend = open_backend("ort", detector_file, 1)
    detector = Detector(backend, 640, 480)
    (face,), (mirrored,) = (
        detector.find(np.asarray(pixels, dtype=np.uint8)) for pixels in (image, image[:, ::-1])
    )
    backend.close()
    most = Settings().classifier.max_turn
    assert abs(yaw(face.landmarks)) < most / 2
    assert shows_front(face, most)
    # YuNet sets noses some 5 degrees to the left: twice that, and a little, apart.
    assert yaw(mirrored.landmarks) == pytest.approx(-yaw(face.landmarks), abs=12)


@pytest.mark.parametrize("points", [np.zeros((5, 2)), seen(0)[[1, 0, 2, 4, 3]], seen(100)])
def test_points_that_no_front_has_are_turned_all_the_way(points: NDArray[np.float32]) -> None:
    assert abs(yaw(points.astype(np.float32))) == 90


@pytest.mark.parametrize(
    ("apart", "degrees", "front"),
    [
        (0.2, 0, True),
        (0.49, 0, True),
        (0.51, 0, False),
        (0.62, 20, False),
        (0.4, 69, True),
        (0.4, 75, False),
    ],
)
def test_a_front_is_not_turned_too_far_and_has_its_eyes_within_half_the_box(
    apart: float, degrees: float, front: bool
) -> None:
    points = seen(degrees)
    eyes = float(np.hypot(*(points[1] - points[0])))
    box = np.array([300, 220, eyes / apart, eyes / apart], dtype=np.float32)
    assert shows_front(Face(box, points, 0.9), 70) is front
