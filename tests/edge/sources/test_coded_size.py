"""A video whose pictures change their size within is refused: OpenCV gives wrong ones from there on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge.base.errors import SourceError
from edge.records import Frame
from edge.settings import Camera
from edge.sources.coded_size import Size, coded_size
from edge.sources.open import open_source
from support.paths import CLIP
from support.videos import shades, write_video

# Heads of key pictures, as x264, x265, FFmpeg and libvpx wrote them.
HEADS: dict[str, tuple[str, str, Size]] = {
    "h264 baseline": (
        "h264",
        "0000016742c028d900780227e5ffc000c00104000003000400000300f03c60c92000000001",
        (1920, 1088),
    ),
    "h264 high": (
        "h264",
        "0000016764001facd9405005bbff0003000410000003001000000303c0f183196000000001",
        (1280, 720),
    ),
    "h264 4:4:4": (
        "h264",
        "00000167f4001e919b281407b60220000003002000000781e2c5b2c000000001",
        (640, 480),
    ),
    "h264 interlaced": (
        "h264",
        "0000016764001facd940b424dff80080007880000003008000001e0f8b16cb00000001",
        (720, 576),
    ),
    "h265": (
        "hevc",
        "00000142010101600000030090000003000003005aa0050201e165959a4932bc05a708000003000800000300f04000000001",
        (640, 480),
    ),
    "h265 4:4:4": (
        "hevc",
        "0000014201010408000003009e0800000300005a9000d6403c3bf2cacd24995ffe02800356d010000003001000000301e08000000001",
        (856, 480),
    ),
    "mpeg-2": ("mpg2", "000001b31400f025ffffe018000001b5", (320, 240)),
    "vp8": ("VP80", "10b1009d012a4001f000000708858588", (320, 240)),
    "vp9": ("VP90", "824983420027f01df60638241c184a10", (640, 480)),
}


def joined(path: Path, sizes: Sequence[tuple[int, int]], each: int = 5) -> Path:
    """Write a Motion JPEG stream with so many pictures of each size (width, height)."""
    pictures = []
    for width, height in sizes:
        for level in range(each):
            picture = np.full((height, width, 3), 40 * level, np.uint8)
            pictures.append(cv2.imencode(".jpg", picture)[1].tobytes())
    path.write_bytes(b"".join(pictures))
    return path


@pytest.mark.parametrize("second", [(32, 24), (128, 96), (48, 64)], ids=str)
@pytest.mark.parametrize("kind", ["", "loop:"])
def test_a_video_that_changes_its_size_is_refused(
    tmp_path: Path, kind: str, second: tuple[int, int]
) -> None:
    path = joined(tmp_path / "joined.mjpeg", [(64, 48), second])
    with pytest.raises(SourceError, match="the size of its pictures changes within"):
        open_source(Camera(source=f"{kind}{path}"))


def test_a_stream_of_one_size_is_read(tmp_path: Path) -> None:
    path = joined(tmp_path / "whole.mjpeg", [(64, 48), (64, 48)])
    source = open_source(Camera(source=str(path), analyse_per_second=240.0))
    assert sum(isinstance(item, Frame) for item in source) >= 8
    source.close()


@pytest.mark.parametrize("name", HEADS)
def test_the_size_is_read_as_each_codec_writes_it(name: str) -> None:
    codec, head, size = HEADS[name]
    data = bytes.fromhex(head)
    assert coded_size(codec, data) == size
    # A packet that ends anywhere says nothing, or the same.
    assert {coded_size(codec, data[:end]) for end in range(len(data))} <= {None, size}


def golomb(number: int) -> str:
    """Write ue(v) as bits; of se(v) below 0, twice its absolute value."""
    digits = f"{number + 1:b}"
    return "0" * (len(digits) - 1) + digits


def test_h264_with_scaling_lists_and_the_second_way_to_count_pictures() -> None:
    lists = "1" + golomb(1) + golomb(18) + "0" * 7  # a list of one number, 9: -9 ends it
    bits = f"{100:08b}{0:08b}{31:08b}" + golomb(0)
    bits += golomb(1) + golomb(0) * 2 + "0" + "1" + lists
    bits += golomb(0) + golomb(1) + "0" + golomb(3) * 2 + golomb(2) + golomb(5) * 2
    bits += golomb(1) + "0" + golomb(79) + golomb(44) + "1"
    bits += "1" + "0" * (-len(bits + "1") % 8)
    data = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\0\0\1", b"\0\0\3\1")
    assert coded_size("h264", b"\0\0\1\x67" + data) == (1280, 720)


def test_a_codec_that_is_not_known_says_nothing() -> None:
    assert coded_size("FFV1", bytes(64)) is None
    assert coded_size("", b"") is None


def test_the_demo_clip_and_what_opencv_writes_keep_their_size(tmp_path: Path) -> None:
    for path in (CLIP, write_video(tmp_path / "a.webm", shades(range(0, 200, 20)), code="VP80")):
        open_source(Camera(source=str(path))).close()
