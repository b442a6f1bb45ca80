from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from edge.detect import Detector, open_detector
from edge.settings import Settings
from edge.sources.images import rotated
from edge.tools.check import advise, look
from edge.tools.orientation import Orientation
from support.paths import CLIP, PICTURES

PORTRAITS = ["astronaut.png", "portrait-1.jpg", "portrait-2.jpg", "portrait-3.jpg"]


@pytest.fixture(scope="module")
def detector(detector_file: Path) -> Detector:
    found, _ = open_detector(Settings())
    found.score = Settings().detector.score
    return found


@pytest.fixture(scope="module")
def classroom() -> list[np.ndarray]:
    """Three pictures of the demo clip, seconds apart."""
    capture = cv2.VideoCapture(str(CLIP))
    frames = [capture.read()[1] for _ in range(301)]
    return [frames[i] for i in (100, 200, 300)]


def told(orientation: Orientation, detector: Detector, picture: np.ndarray) -> str:
    return orientation.look(picture, detector.find(picture))


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (0, ""),
        (90, "the picture is on its side: set camera.rotate to 270"),
        (180, "the picture is upside down: set camera.rotate to 180"),
        (270, "the picture is on its side: set camera.rotate to 90"),
    ],
)
def test_a_turned_classroom_is_told_from_its_faces(
    detector: Detector, classroom: list[np.ndarray], seen: int, words: str
) -> None:
    orientation = Orientation(detector, rotate=0)
    for picture in classroom:
        assert told(orientation, detector, rotated(picture, seen)) == words


@pytest.mark.parametrize("seen", [0, 90, 180, 270])
@pytest.mark.parametrize(
    "name", ["astronaut.png", "portrait-1.jpg", "portrait-2.jpg", "portrait-3.jpg"]
)
def test_one_face_is_enough(detector: Detector, name: str, seen: int) -> None:
    picture = rotated(np.asarray(cv2.imread(str(PICTURES / name))), seen)
    said = told(Orientation(detector, rotate=0), detector, picture)
    assert said.endswith(f"set camera.rotate to {360 - seen}") if seen else said == ""


def test_what_to_set_counts_from_what_is_set(
    detector: Detector, classroom: list[np.ndarray]
) -> None:
    """The camera hangs upside down; 270 was set by mistake, so the picture is on its side."""
    said = told(Orientation(detector, rotate=270), detector, rotated(classroom[0], 90))
    assert said == "the picture is on its side: set camera.rotate to 180"


def test_an_empty_room_says_nothing_of_it(detector: Detector) -> None:
    empty = np.full((480, 640, 3), 90, np.uint8)
    assert told(Orientation(detector, rotate=0), detector, empty) == ""


def test_a_turned_picture_is_never_called_good(
    detector: Detector, classroom: list[np.ndarray]
) -> None:
    picture = rotated(classroom[0], 180)
    view = look(picture, detector.find(picture), detector)
    line = advise(view, told(Orientation(detector, rotate=0), detector, picture))
    assert "good" not in line
    assert "set camera.rotate to 180" in line
