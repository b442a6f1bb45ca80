"""No picture is counted that the decoder did not write, whatever OpenCV is installed."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edge.base.errors import SourceError
from edge.records import Frame, Tick
from edge.settings import Camera
from edge.sources.decoder import (
    COLOUR_TOLERANCE,
    INTERLACED,
    MOST_REPEATS,
    QUARTERS,
    Decoder,
    NotDecoded,
    converts_interlaced,
    whole,
)
from edge.sources.live import Limits, Live
from edge.sources.open import open_source
from support.paths import ROOT
from support.patience import PATIENCE
from support.videos import shades, write_video

SHAPE = (48, 64, 3)
Write = Any


class FakeCapture:
    """OpenCV's VideoCapture, that writes what each step of a list writes into the buffer."""

    def __init__(self, *steps: Write, shape: tuple[int, int, int] = SHAPE) -> None:
        self.steps, self.shape = iter(steps), shape
        self.step: Write = None
        self.count = 0
        self.released = False

    def grab(self) -> bool:
        self.step = next(self.steps, None)
        self.count += self.step is not None
        return self.step is not None

    def retrieve(self, image: Any = None) -> tuple[bool, Any]:
        if image is None or image.shape != self.shape:
            image = np.empty(self.shape, np.uint8)
        self.step(image)
        return True, image

    def get(self, propId: int) -> float:
        return {
            cv2.CAP_PROP_FRAME_WIDTH: float(self.shape[1]),
            cv2.CAP_PROP_FRAME_HEIGHT: float(self.shape[0]),
            cv2.CAP_PROP_POS_MSEC: 40.0 * (self.count - 1),
            cv2.CAP_PROP_FOURCC: 0.0,
        }[propId]

    def release(self) -> None:
        self.released = True


def paint(level: int) -> Write:
    return lambda image: image.fill(level)


def nothing(image: Any) -> None:
    """Leaves the buffer as it is."""


def upper_half(image: Any) -> None:
    image[: image.shape[0] // 2] = 90


def left_half(image: Any) -> None:
    image[:, : image.shape[1] // 2] = 90


def all_but_a_block(image: Any) -> None:
    kept = image[16:32, 16:32].copy()
    image.fill(90)
    image[16:32, 16:32] = kept


def levels(decoder: Decoder) -> list[tuple[int, float]]:
    found = []
    while True:
        ok, picture = decoder.read()
        if not ok:
            return found
        found.append((int(picture[0, 0, 0]), round(decoder.stamp, 3)))


@pytest.mark.parametrize("wrong", [nothing, upper_half, left_half, all_but_a_block])
@pytest.mark.parametrize("before", [0, 3])
def test_a_picture_that_is_not_written_or_only_in_part_is_none(wrong: Write, before: int) -> None:
    decoder = Decoder(FakeCapture(*[paint(9)] * before, wrong))
    for _ in range(before):
        assert decoder.read()[0]
    with pytest.raises(NotDecoded, match="the decoder gave no picture"):
        decoder.read()


def test_pictures_that_are_written_pass_whatever_their_size_and_what_they_show() -> None:
    noise = np.random.default_rng(1).integers(0, 256, SHAPE, dtype=np.uint8)

    def random(image: Any) -> None:
        image[:] = noise[: image.shape[0], : image.shape[1]]

    for shape in (SHAPE, (1, 1, 3), (2, 500, 3)):
        steps = [paint(0), paint(255), paint(255)]
        assert levels(Decoder(FakeCapture(*steps, shape=shape))) == [
            (0, 0.0),
            (255, 0.04),
            (255, 0.08),
        ]
    assert Decoder(FakeCapture(random)).read()[0]
    assert whole(noise, np.random.default_rng(2).integers(0, 256, SHAPE, dtype=np.uint8))


def test_a_picture_that_changes_its_size_is_read() -> None:
    capture = FakeCapture(paint(1), paint(2), paint(3))
    decoder = Decoder(capture)
    assert decoder.read()[1].shape == SHAPE
    capture.shape = (96, 128, 3)
    assert decoder.read()[1].shape == capture.shape
    assert decoder.read()[1].shape == capture.shape


class Stale(FakeCapture):
    """As OpenCV 5 does with interlaced video: copies the last picture that it did write, or what its
    own memory happened to hold, over the whole buffer."""

    def __init__(self, *steps: Write) -> None:
        super().__init__(*steps)
        self.own = np.random.default_rng(3).integers(0, 256, SHAPE, dtype=np.uint8)

    def retrieve(self, image: Any = None) -> tuple[bool, Any]:
        self.step(self.own)
        return True, self.own.copy()


def test_of_a_decoder_that_is_not_proven_only_pictures_that_changed_count() -> None:
    """What comes first may be memory that nobody wrote, what comes again the picture before."""
    steps = [nothing, paint(1), nothing, nothing, paint(2), nothing, paint(3)]
    assert levels(Decoder(Stale(*steps), proven=False)) == [(1, 0.04), (2, 0.16), (3, 0.24)]


def test_of_a_decoder_that_is_not_proven_interlaced_pictures_before_and_after_others_are_none() -> (
    None
):
    few = [nothing] * (MOST_REPEATS - 1)
    decoder = Decoder(Stale(*few, paint(1), paint(2), *few), proven=False)
    assert [level for level, _ in levels(decoder)] == [1, 2]


@pytest.mark.parametrize("count", [1, 2, MOST_REPEATS, 100])
def test_of_a_decoder_that_is_not_proven_no_picture_counts_where_none_changes(count: int) -> None:
    decoder = Decoder(Stale(*[nothing] * count), proven=False)
    with pytest.raises(NotDecoded, match=f"OpenCV {cv2.__version__} does not convert it"):
        decoder.read()


def test_of_a_decoder_that_is_not_proven_pictures_may_stop_to_change_for_a_moment_only() -> None:
    decoder = Decoder(Stale(paint(1), paint(2), *[nothing] * 100), proven=False)
    assert decoder.read()[1][0, 0, 0] == 2
    with pytest.raises(NotDecoded):
        decoder.read()


def quarters(frame: Frame) -> np.ndarray:
    return frame.pixels[12::24, 16::32].astype(int)


def test_interlaced_video_is_given_as_it_is_or_refused_in_one_line() -> None:
    """The known file, through this installation's own OpenCV."""
    source = open_source(Camera(source=str(INTERLACED), analyse_per_second=240.0))
    if converts_interlaced():
        frames = [item for item in source if isinstance(item, Frame)]
        assert len(frames) == 2
        assert all(np.abs(quarters(f) - QUARTERS).max() <= COLOUR_TOLERANCE for f in frames)
    else:
        with pytest.raises(SourceError, match=r"interlaced.mpg: the decoder gave no picture"):
            list(source)


def test_the_opencv_that_the_kit_asks_for_gives_interlaced_video() -> None:
    if not cv2.__version__.startswith("4.11."):
        pytest.skip(f"OpenCV {cv2.__version__} is not the one of pyproject.toml")
    assert converts_interlaced()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.sources.live.FIRST_RETRY_SECONDS", 0.02)
    monkeypatch.setattr("edge.sources.live.LAST_RETRY_SECONDS", 0.05)
    monkeypatch.setattr("edge.sources.live.TICK_SECONDS", 0.02)


def states(source: Any, until: set[str]) -> list[str]:
    """What is said of a camera, each once, until one of the words comes."""
    seen: list[str] = []
    for item in source:
        seen.append(item.camera if isinstance(item, Tick) else "picture")
        if seen[-1] in until:
            break
    source.close()
    return [state for state, _ in itertools.groupby(seen)]


@pytest.mark.parametrize("wrong", [nothing, upper_half])
def test_a_camera_whose_pictures_are_not_written_is_named_and_counted_from_never(
    hasty: None, wrong: Write, caplog: pytest.LogCaptureFixture
) -> None:
    source = Live("fake", lambda: Decoder(FakeCapture(*[wrong] * 9)), Limits(timeout=0.1))
    assert "picture" not in states(source, {"undecoded"})
    assert "camera undecoded source=fake: the decoder gave no picture" in caplog.text


def test_a_camera_that_turns_to_interlaced_video_is_named(hasty: None) -> None:
    openings = itertools.chain([[paint(1), paint(2)]], itertools.repeat([]))

    def opener() -> Decoder:
        return Decoder(Stale(*next(openings), *[nothing] * 100), proven=False)

    source = Live("fake", opener, Limits(timeout=0.1, give_up=3))
    with pytest.raises(SourceError, match=r"the camera is undecoded: .* does not convert it"):
        states(source, set())
    source.close()


def test_an_interlaced_camera_at_an_address_is_given_as_it_is_or_named(hasty: None) -> None:
    """By HTTP, through this installation's own OpenCV."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=INTERLACED.parent))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        address = f"http://127.0.0.1:{server.server_port}/{INTERLACED.name}"
        source = open_source(Camera(source=address, timeout_seconds=0.2), max_seconds=PATIENCE)
        frames, words = [], set[str]()
        for item in source:
            if isinstance(item, Frame):
                frames.append(item)
                break
            words.add(item.camera)
            if item.camera == "undecoded":
                break
        source.close()
    finally:
        server.shutdown()
        server.server_close()
    if converts_interlaced():
        assert np.abs(quarters(frames[0]) - QUARTERS).max() <= COLOUR_TOLERANCE
    else:
        assert not frames
        assert "undecoded" in words


def test_names_that_are_a_protocol_to_ffmpeg_or_not_utf8_are_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_video(tmp_path / "a.avi", shades(range(0, 200, 20))).read_bytes()
    folder = tmp_path / "Kl\udce4sse"  # Latin-1
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in ("10:15:00.avi", "http:x.avi", "a b%d.avi", "-x.avi", "ä|&.avi"):
        Path(name).write_bytes(data)
        source = open_source(Camera(source=name, analyse_per_second=240.0))
        frames = [i for i in source if isinstance(i, Frame)]
        assert len(frames) == (10 if converts_interlaced() else 9), name
        loop = open_source(Camera(source=f"loop:{name}"), max_seconds=0.3)
        assert any(isinstance(item, Frame) for item in loop), name
        loop.close()


LATIN = """
import sys
from pathlib import Path
from edge.sources.decoder import open_file
assert sys.getfilesystemencoding() == "iso8859-9", sys.getfilesystemencoding()
found = open_file(Path(sys.argv[1]))
print(found.get(7))
"""


@pytest.mark.process
def test_a_name_is_a_files_where_the_machine_writes_no_utf_8(tmp_path: Path) -> None:
    """OpenCV takes names for UTF-8: one in Latin letters would be that of another file."""
    made = tmp_path / "tr_TR.ISO-8859-9"
    words = ["localedef", "-i", "tr_TR", "-f", "ISO-8859-9", str(made)]
    if shutil.which(words[0]) is None or subprocess.run(words, capture_output=True).returncode:
        pytest.skip("needs localedef and the sources of locales (Debian: apt-get install locales)")
    write_video(tmp_path / "a.avi", shades(range(0, 200, 20)))
    write_video(tmp_path / "Kl\u00e4sse.avi", shades(range(0, 200, 50)))
    (tmp_path / "a.avi").rename(tmp_path / "Kl\udce4sse.avi")
    env = {**os.environ, "LOCPATH": str(tmp_path), "LC_ALL": made.name, "PYTHONUTF8": "0"}
    for name, pictures in ((b"Kl\xe4sse.avi", "10.0"), ("Kl\u00e4sse.avi".encode(), "4.0")):
        done = subprocess.run(
            [sys.executable, "-c", LATIN, os.fsencode(tmp_path) + b"/" + name],
            capture_output=True,
            cwd=ROOT,
            env=env,
        )
        assert done.stdout.decode("latin-1").strip() == pictures, done.stderr
