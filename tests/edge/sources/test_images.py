from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge.sources.images import PictureError, is_cut_jpeg, read_picture
from support.examples import examples
from support.paths import PICTURES


def encoded(ending: str, *options: int) -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (9, 9, 3), dtype=np.uint8)
    return bytes(cv2.imencode(ending, cv2.resize(noise, (64, 64)), options)[1])


BASELINE = encoded(".jpg")
PROGRESSIVE = encoded(".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
RESTARTS = encoded(".jpg", cv2.IMWRITE_JPEG_RST_INTERVAL, 2)
# As telephones write it: a whole JPEG as a thumbnail inside of a segment, with its own end marker.
EXIF = b"\xff\xe1" + (len(BASELINE) + 2).to_bytes(2, "big") + BASELINE
THUMBNAIL = BASELINE[:2] + EXIF + PROGRESSIVE[2:]
WHOLE = {"baseline": BASELINE, "progressive": PROGRESSIVE, "restarts": RESTARTS, "exif": THUMBNAIL}


@settings(max_examples=examples(200))
@given(kind=st.sampled_from(sorted(WHOLE)), share=st.floats(0, 1, exclude_max=True))
def test_a_jpeg_cut_anywhere_is_cut(kind: str, share: float) -> None:
    data = WHOLE[kind]
    cut = data[: max(2, int(len(data) * share))]
    assert is_cut_jpeg(cut)
    # A download that took its room beforehand; one that has not even its headers is no picture at all.
    filled = cut + bytes(500)
    assert is_cut_jpeg(filled) or cv2.imdecode(np.frombuffer(filled, np.uint8), 1) is None


@pytest.mark.parametrize("kind", WHOLE)
def test_a_whole_jpeg_is_not_cut_whatever_follows_it(kind: str) -> None:
    data = WHOLE[kind]
    assert not is_cut_jpeg(data)
    assert not is_cut_jpeg(data + b"\n"), "a telephone's video or depth behind the picture"
    assert not is_cut_jpeg(data + BASELINE[:99])


def test_every_shipped_picture_is_whole() -> None:
    paths = [path for path in PICTURES.iterdir() if path.suffix in (".jpg", ".png")]
    assert paths
    assert not any(is_cut_jpeg(path.read_bytes()) for path in paths)
    assert all(read_picture(path).ndim == 3 for path in paths)


@pytest.mark.parametrize("ending", [".jpg", ".png", ".webp", ".bmp", ".tif"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.99])
def test_a_picture_of_any_format_that_is_cut_is_an_error(
    tmp_path: Path, ending: str, share: float
) -> None:
    data = encoded(ending)
    path = tmp_path / f"a{ending}"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(PictureError, match=r"a\.[a-z]+ is .*; .*remove it"):
        read_picture(path)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is empty"),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "is a pointer of Git LFS, not the picture",
        ),
        (b"GIF89a\1\0\1\0", "is a GIF, which is not read"),
        (b"\0\5\x16\7\0\2\0\0Mac OS X", "is a resource fork that macOS left behind"),
        (b"\xff\xd8 text", "is not a picture that OpenCV can read"),
        (BASELINE[:300], "is a JPEG that is cut short"),
    ],
)
def test_what_lies_among_pictures_by_mistake_is_named(
    tmp_path: Path, content: bytes, why: str
) -> None:
    path = tmp_path / "0.jpg"
    path.write_bytes(content)
    with pytest.raises(PictureError) as caught:
        read_picture(path)
    assert caught.value.why == why
    assert str(caught.value).startswith(f"{path} {why}; ")


def test_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    (tmp_path / "0.jpg").symlink_to(tmp_path / "gone")
    with pytest.raises(PictureError, match="is a link to a file that is not there; fetch or"):
        read_picture(tmp_path / "0.jpg")


# How a picture is stored under each of EXIF's orientations.
STORED: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    0: lambda x: x,
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x, 1),
    7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
    8: lambda x: np.rot90(x, -1),
}


def webp(picture: NDArray[np.uint8], exif: bytes) -> bytes:
    """Return a lossless WebP file with EXIF, as telephones and editors write it."""
    lossless = [cv2.IMWRITE_WEBP_QUALITY, 101]
    image = bytes(cv2.imencode(".webp", np.ascontiguousarray(picture), lossless)[1])[12:]
    height, width = picture.shape[:2]
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    extended = b"VP8X" + (10).to_bytes(4, "little") + bytes([8, 0, 0, 0]) + size
    chunk = b"EXIF" + len(exif).to_bytes(4, "little") + exif + bytes(len(exif) % 2)
    body = b"WEBP" + extended + image + chunk
    return b"RIFF" + len(body).to_bytes(4, "little") + body


@pytest.mark.parametrize("order", ["little", "big"])
@pytest.mark.parametrize("orientation", STORED)
def test_a_webp_is_turned_as_its_exif_says(
    tmp_path: Path, orientation: int, order: Literal["little", "big"]
) -> None:
    picture = np.random.default_rng(3).integers(0, 255, (24, 40, 3), dtype=np.uint8)

    def number(value: int, size: int) -> bytes:
        return value.to_bytes(size, order)

    tag = number(0x0112, 2) + number(3, 2) + number(1, 4) + number(orientation, 2) + bytes(2)
    mark = b"II" if order == "little" else b"MM"
    exif = mark + number(42, 2) + number(8, 4) + number(1, 2) + tag + bytes(4)
    path = tmp_path / "a.webp"
    path.write_bytes(webp(STORED[orientation](picture), exif))
    assert np.array_equal(read_picture(path), picture)
    for end in range(len(exif)):  # a damaged EXIF is as none, or says the same
        path.write_bytes(webp(STORED[orientation](picture), exif[:end]))
        assert read_picture(path).size == picture.size


def test_a_webp_without_exif_is_read_as_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "a.webp"
    path.write_bytes(encoded(".webp"))
    assert read_picture(path).shape == (64, 64, 3)
