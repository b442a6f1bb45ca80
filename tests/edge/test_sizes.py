from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from edge.detect import Detector, open_detector
from edge.inference.loader import open_backend
from edge.settings import Settings
from edge.sizes import Carried, by_shape, candidates, expected, fitted
from edge.tools.check import advise, look
from support.small_faces import packed, portraits, recall


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((720, 1280), (1280, 736)),  # as it is: 16 rows of padding
        ((480, 640), (640, 480)),
        ((1080, 1920), (1280, 736)),
        ((1280, 720), (736, 1280)),
        ((20, 10000), (1280, 32)),
        ((1, 1), (32, 32)),
    ],
)
def test_a_size_has_the_pictures_shape(shape: tuple[int, int], size: tuple[int, int]) -> None:
    assert by_shape(shape) == size


@given(st.integers(1, 8000), st.integers(1, 8000))
def test_every_candidate_holds_its_picture_with_less_than_32_to_spare(h: int, w: int) -> None:
    sizes = candidates((h, w, 3))
    assert sizes == sorted(sizes, key=lambda size: size[0] * size[1])
    for width, height in sizes:
        assert width % 32 == height % 32 == 0
        assert max(width, height) <= 1920
        scale = min(1.0, width / w, height / h)
        assert width - w * scale < 33 or height - h * scale < 33
    assert fitted((h, w), 10_000)[0] - w < 32  # never made larger


class Machine:
    """A machine whose detector takes so many seconds for a million pixels."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
        self.now, self.seconds, self.runs = 0.0, seconds, 0
        monkeypatch.setattr("edge.sizes.time.process_time", lambda: self.now)

    def run(self, size: tuple[int, int]) -> None:
        self.runs += 1
        self.now += self.seconds * size[0] * size[1] / 1e6


@pytest.mark.parametrize(
    ("seconds", "size"),
    [(0.025, (1920, 1088)), (0.05, (1280, 736)), (0.1, (960, 544)), (10, (640, 384))],
)
def test_a_camera_gets_the_largest_size_that_the_machine_carries(
    monkeypatch: pytest.MonkeyPatch, seconds: float, size: tuple[int, int]
) -> None:
    machine = Machine(monkeypatch, seconds)
    choose = Carried(machine.run, per_second=7.5, cores=1)
    assert choose((1080, 1920)) == size
    runs = machine.runs
    assert choose((1080, 1920)) == size
    assert machine.runs == runs  # each size is timed once


def test_more_pictures_a_second_leave_less_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, 0.05)
    assert Carried(machine.run, 7.5, 1)((720, 1280)) == (1280, 736)
    assert Carried(machine.run, 15, 1)((720, 1280)) == (960, 544)
    assert Carried(machine.run, 15, 2)((720, 1280)) == (1280, 736)


def test_pictures_of_another_shape_get_another_size(detector_file: Path) -> None:
    detector, _ = open_detector(Settings())
    sizes = []
    for shape in ((720, 1280), (480, 640), (640, 480), (720, 1280), (33, 1)):
        detector.find(np.zeros((*shape, 3), np.uint8))
        sizes.append(detector.size)
    assert sizes == ["1280x736", "640x480", "480x640", "1280x736", "32x64"]
    detector.halve(True)
    detector.find(np.zeros((480, 640, 3), np.uint8))
    assert detector.size == "320x224"
    detector.halve(False)
    assert detector.size == "640x480"


def test_a_size_that_is_set_stays(detector_file: Path) -> None:
    settings = Settings.model_validate({"detector": {"width": 320, "height": 256}})
    detector, _ = open_detector(settings)
    detector.carry(7.5, 2, (720, 1280))
    detector.find(np.zeros((720, 1280, 3), np.uint8))
    assert detector.size == "320x256"


def test_both_sides_are_set_or_none() -> None:
    with pytest.raises(ValidationError, match="both, or neither"):
        Settings.model_validate({"detector": {"width": 320}})
    both = {"detector": {"width": "auto", "height": "auto"}}
    assert expected(Settings.model_validate(both)) == (1280, 736)
    turned = Settings.model_validate({"camera": {"rotate": 90}})
    assert expected(turned) == (736, 1280)


def test_faces_that_are_small_for_the_detector_are_told(detector_file: Path) -> None:
    detector = Detector(open_backend("ort", detector_file, 1), 640, 384)
    picture = np.zeros((720, 1280, 3), np.uint8)
    (_, face), *_ = portraits(detector)
    face.box[:] = (100, 100, 28, 28)
    line = advise(look(picture, [face], detector))
    assert "faces under 32 px may be missed at detector size 640x384" in line
    assert "set detector.width" in line
    detector.width, detector.height = 1280, 736
    assert "missed" not in advise(look(picture, [face], detector))


@pytest.mark.slow
def test_of_faces_of_12_pixels_nearly_all_are_found_by_default(detector_file: Path) -> None:
    detector, _ = open_detector(Settings())
    detector.score = Settings().detector.score
    small = Detector(detector.backend, 640, 480, detector.score)
    people = portraits(Detector(detector.backend, 640, 640))
    share, _, faces = recall(detector.find, people, packed, 12, 1)
    assert detector.size == "1280x736"
    assert faces > 100
    assert share > 0.9
    assert recall(small.find, people, packed, 12, 1)[0] < 0.1, "the pictures are too easy"
