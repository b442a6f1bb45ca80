from __future__ import annotations

import itertools
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edge.base.errors import SourceError
from edge.records import Frame, Tick
from edge.settings import Camera
from edge.sources.faulty import Faulty, Kind
from edge.sources.images import as_bgr
from edge.sources.live import Limits, Live
from edge.sources.open import csi_pipeline, open_source
from support.paths import CLIP, PICTURES
from support.patience import PATIENCE, wait_for
from support.videos import shades, write_video


def frames_of(source: str, **settings: Any) -> list[Frame]:
    found = open_source(Camera(source=source, **{"analyse_per_second": 240.0, **settings}))
    return [item for item in found if isinstance(item, Frame)]


def refused(source: str, read: bool = False) -> str:
    with pytest.raises(SourceError) as caught:
        list(open_source(Camera(source=source)) if read else [open_source(Camera(source=source))])
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_gives_every_picture_in_its_own_time() -> None:
    frames = frames_of(str(CLIP))
    assert len(frames) == 750
    times = [frame.time for frame in frames]
    assert times[0] == 0.0
    assert np.allclose(np.diff(times), 1 / 30, atol=1e-3)
    assert frames[0].pixels.shape == (480, 640, 3)


def test_max_seconds_is_source_time() -> None:
    source = open_source(Camera(source=str(CLIP), analyse_per_second=240.0), max_seconds=2.0)
    assert sum(isinstance(item, Frame) for item in source) == 60


def test_the_last_picture_stands_for_its_own_length() -> None:
    *_, last = open_source(Camera(source=str(CLIP)))
    assert isinstance(last, Tick)
    assert last.time == pytest.approx(25.0, abs=1e-3)


def test_a_folder_gives_its_pictures_in_order_whatever_their_size_and_depth(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.full((40, 30), 7, np.uint8))
    cv2.imwrite(str(tmp_path / "b.png"), np.full((20, 50, 3), 0x1234, np.uint16))
    cv2.imwrite(str(tmp_path / "c.png"), np.full((20, 50, 4), 9, np.uint8))
    (tmp_path / "notes.txt").write_text("not a picture")
    frames = frames_of(str(tmp_path), pictures_per_second=2.0)
    assert [f.pixels.shape for f in frames] == [(40, 30, 3), (20, 50, 3), (20, 50, 3)]
    assert [f.time for f in frames] == [0.0, 0.5, 1.0]
    assert [int(f.pixels[0, 0, 0]) for f in frames] == [7, 0x12, 9]


def test_names_that_are_no_source_are_one_line(tmp_path: Path) -> None:
    assert "no camera at /dev/video77" in refused("77")
    assert "no camera at /dev/nothing" in refused("/dev/nothing")
    assert "no camera, file or folder called" in refused("clip.mpeg")
    assert "no camera, file or folder called" in refused("\N{SUPERSCRIPT TWO}")
    assert "holds no picture" in refused(str(tmp_path))
    text = tmp_path / "clip.mp4"
    text.write_text("this is no video")
    assert "is not a video" in refused(str(text))
    text.write_bytes(b"")
    assert "is empty" in refused(str(text))
    assert "give an rtsp://" in refused("ftp://x/y")


def test_rtsp_that_does_not_answer_is_one_line_without_its_password() -> None:
    message = refused("rtsp://viewer:secret@127.0.0.1:9/stream")
    assert "gives no video" in message
    assert "secret" not in message


def test_csi_without_gstreamer_says_where_to_get_it() -> None:
    if "GStreamer:                   YES" in cv2.getBuildInformation():
        pytest.skip("this OpenCV has GStreamer")
    assert "JetPack's own" in refused("csi:0")
    pipeline = csi_pipeline(1, Camera())
    assert "sensor-id=1" in pipeline
    assert "width=1280,height=720,framerate=30/1" in pipeline


def test_a_cut_off_clip_is_read_to_its_end_and_then_reported(tmp_path: Path) -> None:
    whole = CLIP.read_bytes()
    # AVI promises its number of pictures in the header.
    data = write_video(tmp_path / "whole.avi", shades(range(100)), 30).read_bytes()
    cut = tmp_path / "cut.avi"
    cut.write_bytes(data[: len(data) // 2])
    seen: list[Frame | Tick] = []
    with pytest.raises(SourceError, match="it is cut off"):
        seen.extend(open_source(Camera(source=str(cut), analyse_per_second=240.0)))
    assert 20 < len(seen) < 80
    broken = tmp_path / "cut.mp4"
    broken.write_bytes(whole[: len(whole) // 2])
    assert "is not a video" in refused(str(broken))  # its index stood at the end


def test_pictures_of_impossible_size_are_refused_by_name(tmp_path: Path) -> None:
    huge = tmp_path / "huge.png"
    cv2.imwrite(str(huge), np.zeros((1, 20_000), np.uint8))
    assert "huge.png is 20000x1 pixels" in refused(str(tmp_path), read=True)
    huge.write_bytes(b"\x89PNG\r\n\x1a\n")
    assert "huge.png is not a picture" in refused(str(tmp_path), read=True)


def test_as_bgr_refuses_what_is_no_picture() -> None:
    for wrong in (None, np.zeros((0, 5, 3), np.uint8), np.zeros((5, 5, 2), np.uint8)):
        assert as_bgr(wrong) is None
    assert as_bgr(np.zeros((5, 5, 3), np.float32)) is None


class Script:
    """A capture that follows a list: a picture's value, None for a failed read, or an action."""

    def __init__(self, *steps: Any) -> None:
        self.steps = iter(steps)
        self.released = False

    def read(self) -> tuple[bool, Any]:
        step = next(self.steps, None)
        if callable(step):
            step = step()
        time.sleep(0.005)
        return step is not None, None if step is None else np.full((8, 8, 3), step, np.uint8)

    def release(self) -> None:
        self.released = True


def test_the_newest_picture_wins_and_the_skipped_ones_are_counted() -> None:
    stop = threading.Event()
    source = Live("fake", lambda: Script(*range(1, 200)), stop=stop)
    frames: list[Frame] = []
    for item in source:
        if isinstance(item, Frame):
            frames.append(item)
            time.sleep(0.05)  # a slow pipeline
        if len(frames) == 5:
            break
    source.close()
    values = [int(f.pixels[0, 0, 0]) for f in frames]
    assert values == sorted(values)
    # Every picture up to the last is either here or counted as skipped.
    assert sum(f.dropped for f in frames[1:]) == values[-1] - values[0] - 4
    assert [f.time for f in frames] == sorted(f.time for f in frames)


def test_a_camera_that_goes_away_gives_ticks_and_comes_back(monkeypatch: Any) -> None:
    monkeypatch.setattr("edge.sources.live.FIRST_RETRY_SECONDS", 0.4)
    monkeypatch.setattr("edge.sources.live.TICK_SECONDS", 0.05)
    captures = iter([Script(1, 2, 3, None), None, Script(*([7] * 200))])
    opened: list[Script] = []

    def opener() -> Script:
        capture = next(captures)
        if capture is None:
            raise SourceError("still away")
        opened.append(capture)
        return capture

    source = Live("fake", opener, Limits(timeout=0.1))
    kinds: list[str] = []
    deadline = time.monotonic() + PATIENCE
    for item in source:
        kinds.append(item.camera if isinstance(item, Tick) else f"frame {item.pixels[0, 0, 0]}")
        if kinds[-1] == "frame 7" or time.monotonic() > deadline:
            break
    source.close()
    order = [kind for kind, _ in itertools.groupby(kinds)]
    assert order.index("away") < order.index("frame 7")
    assert opened[0].released


def test_a_camera_that_was_never_there_fails_at_once() -> None:
    def opener() -> Script:
        raise SourceError("no camera")

    with pytest.raises(SourceError, match="no camera"):
        Live("fake", opener)


def test_the_test_pattern_is_live_and_stops_in_time() -> None:
    camera = Camera(source="test", fps=60.0, analyse_per_second=60)
    source = open_source(camera, max_seconds=PATIENCE)
    pictures = (item for item in source if isinstance(item, Frame))
    assert len(list(itertools.islice(pictures, 5))) == 5
    source.close()
    assert source.live
    source = open_source(camera, max_seconds=0.5)
    assert sum(isinstance(item, Frame) for item in source) <= 40
    source.close()


def test_a_folder_of_the_demo_pictures_is_read(tmp_path: Path) -> None:
    shutil.copytree(PICTURES, tmp_path / "p")
    assert len(frames_of(str(tmp_path / "p"))) == 4


def test_a_file_and_a_folder_may_begin_with_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `loop:~/clip.mp4` does: in node.yaml no shell expands it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copy(PICTURES / "portrait-1.jpg", tmp_path)
    assert len(frames_of("~/portrait-1.jpg")) == len(frames_of("~")) == 1


@pytest.mark.parametrize("name", sorted(path.name for path in PICTURES.iterdir()))
def test_one_picture_is_read_as_a_folder_of_one(name: str) -> None:
    source = open_source(Camera(source=str(PICTURES / name)))
    frame, end = source
    assert isinstance(frame, Frame)
    assert (source.kind, source.seconds, end.time) == ("folder", 1.0, 1.0)


def test_one_picture_that_is_damaged_is_told_by_name(tmp_path: Path) -> None:
    (tmp_path / "cut.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(SourceError, match=r"cut\.jpg"):
        list(open_source(Camera(source=str(tmp_path / "cut.jpg"))))


def test_a_video_that_gives_no_number_of_pictures_has_no_length(tmp_path: Path) -> None:
    # A picture by another name: OpenCV counts -9e18 frames of it.
    shutil.copy(PICTURES / "astronaut.png", tmp_path / "video.mp4")
    source = open_source(Camera(source=str(tmp_path / "video.mp4")))
    assert source.seconds is None
    assert sum(isinstance(item, Frame) for item in source) == 1


def test_max_seconds_ends_the_last_window_whole() -> None:
    *_, last = open_source(Camera(source=str(CLIP)), max_seconds=4.0)
    assert isinstance(last, Tick)
    assert last.time == 4.0


def test_a_device_that_opens_and_gives_nothing_is_not_opened_in_a_rush() -> None:
    opened: list[Script] = []

    def opener() -> Script:
        opened.append(Script())
        return opened[-1]

    source = Live("fake", opener, max_seconds=1.0)
    assert all(isinstance(item, Tick) for item in source)
    source.close()
    assert 1 <= len(opened) <= 4
    assert all(capture.released for capture in opened)


def test_an_error_inside_a_read_is_a_lost_picture_not_a_lost_thread(monkeypatch: Any) -> None:
    monkeypatch.setattr("edge.sources.live.FIRST_RETRY_SECONDS", 0.1)

    def fail() -> int:
        raise cv2.error("driver")

    captures = iter([Script(1, fail), Script(*([7] * 200))])
    source = Live("fake", lambda: next(captures))
    values = (int(i.pixels[0, 0, 0]) for i in source if isinstance(i, Frame))
    assert 7 in itertools.islice(values, 50)
    source.close()


def states(kind: Kind, limits: Limits, good: float, bad: float) -> Iterator[str]:
    """What a faulty camera is said to be, in order."""
    from edge.sources.synthetic import Pattern

    faulty = Faulty(kind, Pattern(fps=60), good, bad)
    source = Live("test", faulty.open, limits, max_seconds=PATIENCE)
    try:
        for item in source:
            yield item.camera if isinstance(item, Tick) else "picture"
    finally:
        source.close()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.sources.live.FIRST_RETRY_SECONDS", 0.05)
    monkeypatch.setattr("edge.sources.live.LAST_RETRY_SECONDS", 0.1)
    monkeypatch.setattr("edge.sources.live.TICK_SECONDS", 0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "said"),
    [("die", "away"), ("lie", "away"), ("freeze", "frozen"), ("hang", "hanging")],
)
def test_each_fault_is_noticed_named_and_survived(hasty: None, kind: Kind, said: str) -> None:
    awaited = ["picture", said, "picture"]
    seen = []
    for state in states(kind, Limits(timeout=0.2, hang=0.6, freeze=0.3), good=0.5, bad=1.5):
        seen.append(state)
        # A machine that starves the reader may bring about other faults between these.
        if state == awaited[0]:
            awaited.pop(0)
        if not awaited:
            return
    pytest.fail(f"{awaited} did not come: {set(seen)}")


def test_a_reader_that_is_stuck_is_left_and_another_takes_over(hasty: None) -> None:
    """Also where the driver never answers: the process does not wait for it, not even at the end."""
    stuck = threading.Event()
    captures = iter([Script(1, 2, lambda: stuck.wait(PATIENCE)), Script(*([7] * 500))])
    source = Live("fake", lambda: next(captures), Limits(timeout=0.1, hang=0.4))
    began = time.monotonic()
    for item in source:
        if isinstance(item, Frame) and item.pixels[0, 0, 0] == 7:
            break
    source.close()
    assert time.monotonic() - began < PATIENCE
    stuck.set()


def test_a_camera_that_stays_away_ends_the_run_after_the_stated_attempts(hasty: None) -> None:
    captures = iter([Script(1)])

    def opener() -> Script:
        found = next(captures, None)
        if found is None:
            raise SourceError("gone")
        return found

    source = Live("fake", opener, Limits(timeout=0.1, give_up=5))
    with pytest.raises(
        SourceError, match=r"the camera is away: no picture in \d+ s and (\d+) attempts"
    ) as ended:
        for _ in source:
            pass
    source.close()
    # Its thread may have tried again by the time that the loop looks.
    assert int(str(ended.value).split(" attempts")[0].split()[-1]) >= 5


def test_a_still_room_is_no_frozen_camera() -> None:
    """One pixel of a sensor's noise in sixty-four is enough."""
    values = itertools.cycle([7, 8])
    source = Live(
        "fake",
        lambda: Script(*itertools.islice(values, 200)),
        Limits(timeout=0.1, freeze=0.2),
        max_seconds=0.8,
    )
    items = list(source)
    source.close()
    assert any(isinstance(item, Frame) for item in items)
    # Where the reader starves, no picture comes in time: that is told as it is.
    assert "frozen" not in {item.camera for item in items if isinstance(item, Tick)}


def test_a_first_opening_that_hangs_is_one_line_and_gives_the_device_back_later() -> None:
    answers = threading.Event()
    late = Script(1)

    def opener() -> Script:
        answers.wait(PATIENCE)
        return late

    with pytest.raises(SourceError, match="does not answer within 0 s"):
        Live("fake", opener, Limits(hang=0.3))
    answers.set()
    wait_for(lambda: late.released, "the device given back")


def test_a_video_is_played_as_a_camera_again_and_again(tmp_path: Path) -> None:
    path = write_video(tmp_path / "short.avi", shades(range(0, 200, 20)), 50)
    began = time.monotonic()
    source = open_source(Camera(source=f"loop:{path}", analyse_per_second=50), max_seconds=1.0)
    assert source.live
    frames = [item for item in source if isinstance(item, Frame)]
    source.close()
    assert time.monotonic() - began > 0.9
    levels = [int(f.pixels.mean()) for f in frames]
    assert sum(b < a for a, b in itertools.pairwise(levels)) >= 2, "it started again"
    assert len(frames) + sum(f.dropped for f in frames) <= 52, "at its own pace"
    assert "is not a video" in refused("loop:absent.mp4")
    assert "is not a video" in refused(f"loop:{tmp_path}")


class Lens:
    """A camera that delivers for ever: a picture's grey level, and its noise's."""

    def __init__(self, level: int, noise: int) -> None:
        self.level, self.noise = level, noise
        self.random = np.random.default_rng(4)

    def read(self) -> tuple[bool, Any]:
        time.sleep(0.005)
        noise = self.random.integers(0, self.noise + 1, (48, 64, 3))
        return True, (self.level + noise).astype(np.uint8)

    def release(self) -> None:
        pass


@pytest.mark.parametrize(
    ("level", "noise", "said"), [(0, 0, "dark"), (0, 4, "dark"), (120, 0, "frozen")]
)
@pytest.mark.slow
def test_a_covered_or_still_camera_is_called_so_and_ends_no_run(
    hasty: None, caplog: pytest.LogCaptureFixture, level: int, noise: int, said: str
) -> None:
    lens = Lens(level, noise)
    limits = Limits(freeze=0.2, give_up=3)
    source = Live("fake", lambda: lens, limits, max_seconds=PATIENCE)
    attempts = 0
    seen: list[str] = []
    for item in source:
        seen.append(item.camera if isinstance(item, Tick) else "picture")
        attempts += seen[-1] == said
        if attempts == 30:
            lens.level, lens.noise = 120, 40  # the hand goes away
        if attempts >= 30 and seen[-1] == "picture":
            break
    source.close()
    order = [state for state, _ in itertools.groupby(s for s in seen if s != "live")]
    assert order == ["picture", said, "picture"]
    assert "covered" in caplog.text
    assert "cable" not in caplog.text
