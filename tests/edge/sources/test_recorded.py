"""Files and folders as they are found on sticks, phones and recorders."""

from __future__ import annotations

import itertools
import logging
import shutil
import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edge.base.errors import SourceError
from edge.records import Frame, Tick
from edge.settings import Camera
from edge.sources.container import cut_off
from edge.sources.file_time import MAX_GAP_SECONDS
from edge.sources.open import open_source
from support.paths import CLIP, PICTURES, ROOT
from support.videos import shades, write_video

VIDEOS = ROOT / "tests" / "golden" / "video"
SOUND = [VIDEOS / f"sound-longer.{kind}" for kind in ("mkv", "ts", "flv")]


def read(path: Path, **settings: Any) -> tuple[list[Frame], Tick]:
    *frames, last = open_source(
        Camera(source=str(path), **{"analyse_per_second": 30.0, **settings})
    )
    assert isinstance(last, Tick)
    assert all(isinstance(frame, Frame) for frame in frames)
    return frames, last  # type: ignore[return-value]


@pytest.mark.parametrize("path", SOUND, ids=lambda path: path.name)
def test_a_video_whose_sound_is_longer_is_whole(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    capture = cv2.VideoCapture(str(path))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) > 50, "of which the container promises more"
    caplog.set_level(logging.INFO)
    frames, last = read(path)
    assert len(frames) == 20
    assert last.time == pytest.approx(2.0, abs=0.01)
    assert "the last picture is of 2.0 s, its container says" in caplog.text


def test_a_video_with_dropped_pictures_is_whole_and_keeps_its_time() -> None:
    frames, last = read(VIDEOS / "dropped.avi")
    assert len(frames) == 8
    assert last.time == pytest.approx(2.0, abs=0.01)


@pytest.mark.parametrize("kind", ["mkv", "flv", "avi", "mp4"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.97])
def test_a_video_that_lacks_its_end_is_told_by_its_container(
    tmp_path: Path, kind: str, share: float
) -> None:
    whole = {"avi": VIDEOS / "dropped.avi", "mp4": CLIP}.get(kind, VIDEOS / f"sound-longer.{kind}")
    assert not cut_off(whole)
    data = whole.read_bytes()
    path = tmp_path / f"cut.{kind}"
    path.write_bytes(data[: int(share * len(data))])
    assert cut_off(path)
    with pytest.raises(SourceError, match="it is cut off"):
        list(open_source(Camera(source=str(path))))


def test_containers_that_do_not_state_their_size_are_not_called_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "stream"
    mkv = (VIDEOS / "sound-longer.mkv").read_bytes()
    place = mkv.index(b"\x18\x53\x80\x67") + 4
    assert mkv[place] == 0x01, "eight bytes of size"
    avi = (VIDEOS / "dropped.avi").read_bytes()
    box = (8).to_bytes(4, "big") + b"ftyp" + (0).to_bytes(4, "big") + b"mdat"
    for data in (
        mkv[:place] + b"\x01" + b"\xff" * 7 + mkv[place + 8 :],
        avi[:4] + bytes(4) + avi[8:],
        avi[:4] + b"\xff" * 4 + avi[8:],
        avi + b"junk behind it",
        box + b"anything",
        (VIDEOS / "sound-longer.ts").read_bytes()[:9_000],
        b"RI",
        b"\x1a\x45\xdf\xa3",
    ):
        path.write_bytes(data)
        assert not cut_off(path)


def test_a_clock_that_is_set_in_a_video_is_a_cut_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    frames, last = read(VIDEOS / "clock-set.mkv")
    assert len(frames) == 20
    assert last.time == pytest.approx(2.0, abs=0.01)
    assert np.diff([frame.time for frame in frames]).max() == pytest.approx(0.1, abs=0.01)
    said = [record.getMessage() for record in caplog.records if "jump" in record.getMessage()]
    assert len(said) == 1
    assert f"the time stamps jump after 1.0 s, by more than {MAX_GAP_SECONDS:.0f} s" in said[0]


def test_two_joined_recordings_are_a_cut(tmp_path: Path) -> None:
    """MPEG-TS may be joined as it is; the second one's stamps are the first one's again."""
    one = VIDEOS / "sound-longer.ts"
    joined = tmp_path / "joined.ts"
    joined.write_bytes(one.read_bytes() * 3)
    frames, last = read(joined)
    assert 58 <= len(frames) <= 60
    assert last.time == pytest.approx(6.0, abs=0.5)
    times = [frame.time for frame in frames]
    assert all(a < b for a, b in itertools.pairwise(times))


def test_av1_is_named_where_this_opencv_cannot_decode_it() -> None:
    path = VIDEOS / "av1.mp4"
    if cv2.VideoCapture(str(path)).read()[0]:
        pytest.skip("this OpenCV decodes AV1")
    for source in (path, f"loop:{path}"):
        with pytest.raises(SourceError, match="it is AV1 video, which this OpenCV cannot decode"):
            list(open_source(Camera(source=str(source), give_up_after=1)))


def test_a_folder_of_all_that_cameras_and_systems_leave(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    photo = (PICTURES / "portrait-1.jpg").read_bytes()
    for name in (
        "IMG_1.jpg",
        "b.jfif",
        "Kl\udce4sse.jpg",
        "10:15:00.JPG",
        "no suffix",
        "c.heic.jpg",
    ):
        (tmp_path / name).write_bytes(photo)
    for name in ("._IMG_1.jpg", ".DS_Store", "d.HEIC", "notes.txt"):
        (tmp_path / name).write_bytes(b"\0\0\0\x18ftypheic nothing that OpenCV knows")
    (tmp_path / "more").mkdir()
    frames, last = read(tmp_path, pictures_per_second=10.0)
    assert len(frames) == 6
    assert [round(frame.time, 3) for frame in frames] == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    assert last.time == pytest.approx(0.6)
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("left out 5 of 11 files of ")
    for name in ("._IMG_1.jpg", ".DS_Store", "d.HEIC", "notes.txt", "more"):
        assert name in said


def test_many_files_that_are_left_out_are_counted_and_the_first_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copy(PICTURES / "portrait-1.jpg", tmp_path / "zz.jpg")
    for i in range(300):
        (tmp_path / f"{i:03}.heic").write_bytes(b"no")
    assert len(read(tmp_path)[0]) == 1
    assert "left out 300 of 301 files" in caplog.text
    assert "'004.heic' ..." in caplog.text
    assert "'005.heic'" not in caplog.text


def test_a_damaged_picture_among_many_is_an_error_after_all_others_were_given(
    tmp_path: Path,
) -> None:
    for i in range(5):
        shutil.copy(PICTURES / "portrait-1.jpg", tmp_path / f"{i}.jpg")
    (tmp_path / "1.jpg").write_bytes(b"\xff\xd8 nothing")
    (tmp_path / "2.png").symlink_to(tmp_path / "gone")
    seen: list[Frame | Tick] = []
    with pytest.raises(SourceError, match=r"1.jpg is not a picture .*the others were counted"):
        seen.extend(open_source(Camera(source=str(tmp_path))))
    assert [type(item) for item in seen] == [Frame] * 4 + [Tick]


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("kind", ["file", "folder", "loop"])
def test_every_source_is_turned_clockwise_as_set(tmp_path: Path, kind: str, degrees: int) -> None:
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:24, :32] = (0, 0, 250)  # red above on the left
    if kind == "folder":
        cv2.imwrite(str(tmp_path / "a.png"), picture)
        source = str(tmp_path)
    else:
        pictures = [picture.copy() for _ in range(3)]
        for i in range(3):
            pictures[i][40:, 60:] = 80 * i  # a decoder that is not proven wants changes
        path = write_video(tmp_path / "a.avi", pictures)
        source = f"loop:{path}" if kind == "loop" else str(path)
    found = open_source(Camera(source=source, rotate=degrees), max_seconds=0.3)
    frame = next(item for item in found if isinstance(item, Frame))
    found.close()
    turned = frame.pixels
    assert turned.shape == ((48, 64, 3) if degrees in (0, 180) else (64, 48, 3))
    height, width = turned.shape[:2]
    corners = [(4, 4), (4, width - 5), (height - 5, width - 5), (height - 5, 4)]  # clockwise
    red = [turned[y, x, 2] > 150 and turned[y, x, 0] < 100 for y, x in corners]
    assert red.index(True) == degrees // 90
    assert sum(red) == 1


def test_pictures_that_are_damaged_at_the_end_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No byte is missing, so that only the length tells."""
    caplog.set_level(logging.INFO)
    path = write_video(tmp_path / "zeroed.avi", shades(range(0, 240, 4)))
    data = path.read_bytes()
    third = len(data) // 3
    path.write_bytes(data[:third] + bytes(third) + data[2 * third :])
    frames, last = read(path)
    assert 0 < len(frames) < 40
    assert last.time < 4.0
    assert "or the end is damaged" in caplog.text


@pytest.mark.slow
def test_the_demo_clip_is_whole(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert not cut_off(CLIP)
    assert len(read(CLIP)[0]) == 750
    assert not caplog.records


def test_what_a_camera_writes_behind_the_last_box_is_no_cut(tmp_path: Path) -> None:
    path = tmp_path / "trailer.mp4"
    path.write_bytes(CLIP.read_bytes() + b"TAG: camera 12, firmware 3.2")
    assert not cut_off(path)
    flv = VIDEOS / "sound-longer.flv"
    for behind in (b"\0" * 100, b"\0", b"TAG"):
        path.write_bytes(flv.read_bytes() + behind)
        assert not cut_off(path)
    for missing in (1, 5, 1000):
        path.write_bytes(flv.read_bytes()[:-missing])
        assert cut_off(path)


@pytest.mark.parametrize(
    ("matrix", "corner"),
    [
        ((1, 0, 0, 1), "top left"),
        ((0, 1, -1, 0), "top right"),
        ((-1, 0, 0, -1), "bottom right"),
        ((0, -1, 1, 0), "bottom left"),
    ],
)
def test_a_video_is_turned_as_its_container_says(
    tmp_path: Path, matrix: tuple[int, int, int, int], corner: str
) -> None:
    """As a telephone's are: stored as the sensor lies, with a matrix that says how to show them."""
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[:32, :48] = 255
    path = write_video(tmp_path / "telephone.mp4", [picture] * 5, code="mp4v")
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 44
    a, b, c, d = (65536 * value for value in matrix)
    data[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    found = open_source(Camera(source=str(path), analyse_per_second=30.0))
    frames = [item for item in found if isinstance(item, Frame)]
    assert len(frames) == 5
    for frame in frames:
        height, width = frame.pixels.shape[:2]
        assert (width, height) == ((64, 96) if matrix[0] == 0 else (96, 64))
        y, x = (int(v.mean()) for v in np.nonzero(frame.pixels[..., 0] > 128))
        vertical = "top" if y < height / 2 else "bottom"
        assert f"{vertical} {'left' if x < width / 2 else 'right'}" == corner
