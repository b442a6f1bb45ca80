"""Which pictures are analysed: evenly, by time, whatever the camera's own rate is and does."""

from __future__ import annotations

import itertools
import threading
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.records import Frame, Tick
from edge.settings import AUTO_PER_SECOND, Camera
from edge.sources.live import Limits, Live
from edge.sources.open import open_source
from edge.sources.pace import Pace
from support.paths import CLIP
from support.patience import PATIENCE
from support.videos import shades, write_video


def chosen(pace: Pace, moments: list[float]) -> list[float]:
    return [moment for moment in moments if pace.due(moment)]


@given(
    camera=st.floats(2.0, 120.0),
    rate=st.floats(0.5, 60.0),
    jitter=st.floats(0.0, 0.3),
    seed=st.integers(0, 99),
)
def test_pictures_are_chosen_evenly_and_as_many_as_asked(
    camera: float, rate: float, jitter: float, seed: int
) -> None:
    seconds = 40.0
    shaken = np.random.default_rng(seed).uniform(-jitter, jitter, int(seconds * camera)) / camera
    moments = [k / camera + float(shaken[k]) for k in range(len(shaken))]
    found = chosen(Pace(rate), moments)
    assert found[0] == moments[0]
    asked = min(rate, camera)
    assert abs(len(found) - asked * seconds) <= 2 + 0.04 * asked * seconds
    apart = np.diff(found)
    assert float(apart.max()) <= 1 / asked + (1 + 2 * jitter) / camera + 1e-6


def test_after_a_gap_nothing_is_made_up_for() -> None:
    moments = [k / 30 for k in range(60)] + [12 + k / 30 for k in range(60)]
    after = [moment for moment in chosen(Pace(7.5), moments) if moment >= 12]
    assert after[0] == 12
    assert np.allclose(np.diff(after), 1 / 7.5)


def test_a_camera_that_changes_its_rate_is_followed() -> None:
    moments = list(
        itertools.accumulate([1 / 30] * 300 + [1 / 10] * 100 + [1 / 60] * 600, initial=0.0)
    )
    found = np.array(chosen(Pace(7.5), moments))
    for start, end in ((0, 10), (10, 20), (20, 30)):
        assert sum((found >= start) & (found < end)) == pytest.approx(75, abs=2)


def test_asking_for_more_than_the_camera_gives_is_one_line_and_no_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    moments = [k / 15 for k in range(900)]
    assert chosen(Pace(30.0, "camera", warn=True), moments) == moments
    (line,) = caplog.messages
    assert "gives 15 pictures a second, camera.analyse_per_second asks for 30" in line
    caplog.clear()
    chosen(Pace(30.0, "camera"), moments)
    chosen(Pace(14.9, "camera", warn=True), moments)
    # It was away half of the time, and gave enough else.
    chosen(Pace(15.0, "camera", warn=True), [m + 20 * (m // 20) for m in moments])
    assert not caplog.messages


class Grabber:
    """A camera of 100 pictures a second that counts what is done with them."""

    def __init__(self, level: int | None = None) -> None:
        self.grabbed, self.level = 0, level
        self.retrieved: list[int] = []

    def read(self) -> tuple[bool, Any]:
        raise AssertionError("a capture that can grab is not read")

    def grab(self) -> bool:
        time.sleep(0.01)
        self.grabbed += 1
        return True

    def retrieve(self) -> tuple[bool, Any]:
        self.retrieved.append(self.grabbed)
        value = self.grabbed % 251 if self.level is None else self.level
        return True, np.full((8, 8, 3), value, np.uint8)

    def release(self) -> None:
        pass


def test_what_is_not_due_is_taken_from_the_device_and_never_decoded_nor_dropped() -> None:
    camera, stop = Grabber(), threading.Event()
    source = Live("fake", lambda: camera, stop=stop, pace=Pace(5.0), max_seconds=PATIENCE)
    frames = list(itertools.islice((i for i in source if isinstance(i, Frame)), 8))
    source.close()
    assert camera.grabbed > 4 * len(camera.retrieved)
    assert sum(frame.dropped for frame in frames) <= 1
    assert np.median(np.diff([frame.time for frame in frames])) == pytest.approx(0.2, abs=0.05)


@pytest.mark.slow
def test_what_is_due_and_not_taken_in_time_is_dropped() -> None:
    camera = Grabber()
    source = Live("fake", lambda: camera, pace=Pace(20.0), max_seconds=PATIENCE)
    frames = []
    for item in source:
        if isinstance(item, Frame):
            frames.append(item)
            time.sleep(0.5)
        if len(frames) == 4:
            break
    source.close()
    assert sum(frame.dropped for frame in frames) >= 9


@pytest.mark.slow
def test_a_camera_of_which_few_pictures_are_due_is_neither_away_nor_frozen() -> None:
    camera = Grabber()
    limits = Limits(timeout=0.3, hang=5.0, freeze=3.0)
    source = Live("fake", lambda: camera, limits, pace=Pace(0.5), max_seconds=3.0)
    items = list(source)
    source.close()
    assert {item.camera for item in items if isinstance(item, Tick)} <= {"live"}
    assert 1 <= sum(isinstance(item, Frame) for item in items) <= 3


def test_a_picture_that_repeats_is_frozen_after_the_same_seconds_as_ever() -> None:
    camera = Grabber(level=120)
    limits = Limits(timeout=0.3, freeze=1.0)
    source = Live("fake", lambda: camera, limits, pace=Pace(5.0), max_seconds=PATIENCE)
    began = time.monotonic()
    for item in source:
        if isinstance(item, Tick) and item.camera == "frozen":
            break
    source.close()
    assert 1.0 < time.monotonic() - began < PATIENCE


def test_a_file_is_read_at_the_rate_in_its_own_time_and_repeats() -> None:
    def moments(**settings: Any) -> tuple[list[float], float]:
        *frames, last = open_source(Camera(source=str(CLIP), **settings))
        return [frame.time for frame in frames], last.time

    found, end = moments()
    assert end == pytest.approx(25.0, abs=1e-3), "the pictures that are stepped over are time too"
    assert len(found) == pytest.approx(25 * AUTO_PER_SECOND, abs=1)
    assert np.allclose(np.diff(found), 1 / AUTO_PER_SECOND, atol=1e-3)
    assert moments() == (found, end)
    assert len(moments(analyse_per_second=5.0)[0]) == 125


def test_the_due_pictures_are_those_that_reading_all_gives_then(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", shades(range(0, 240, 4)), 30)
    every = open_source(Camera(source=str(path), analyse_per_second=30.0))
    whole = {round(f.time, 3): f.pixels for f in every if isinstance(f, Frame)}
    few = open_source(Camera(source=str(path), analyse_per_second=7.0))
    found = [f for f in few if isinstance(f, Frame)]
    assert 10 <= len(found) <= 16
    for frame in found:
        assert np.array_equal(frame.pixels, whole[round(frame.time, 3)])


def test_every_picture_of_a_folder_is_analysed(tmp_path: Path) -> None:
    for k in range(30):
        cv2.imwrite(str(tmp_path / f"{k:02}.png"), np.full((20, 30, 3), k, np.uint8))
    settings = Camera(source=str(tmp_path), pictures_per_second=30.0, analyse_per_second=1.0)
    assert sum(isinstance(item, Frame) for item in open_source(settings)) == 30
