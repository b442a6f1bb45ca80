"""Pixels as the stages want them, whatever a device or a picture file gives."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.base.errors import SourceError

# A board of 4 GB has no room left with a picture of 20,000 pixels a side.
MAX_SIDE = 8192
MAX_BYTES = 256 * 2**20
TURNS = {
    90: cv2.ROTATE_90_CLOCKWISE,
    180: cv2.ROTATE_180,
    270: cv2.ROTATE_90_COUNTERCLOCKWISE,
}


def rotated(pixels: NDArray[np.uint8], degrees: int) -> NDArray[np.uint8]:
    """Turn (H, W, 3) uint8 clockwise by 0, 90, 180 or 270 degrees."""
    if not degrees:
        return pixels
    return np.asarray(cv2.rotate(pixels, TURNS[degrees]), dtype=np.uint8)


def as_bgr(picture: Any) -> NDArray[np.uint8] | None:
    """Convert what a capture gives to (H, W, 3) uint8 BGR; None where it is an empty frame.

    Grey becomes three equal channels, a fourth channel goes, 16 bits become 8 by their high byte.
    """
    if not isinstance(picture, np.ndarray) or picture.size == 0 or picture.ndim not in (2, 3):
        return None
    if picture.dtype == np.uint16:
        picture = (picture >> 8).astype(np.uint8)
    if picture.dtype != np.uint8:
        return None
    if picture.ndim == 2 or picture.shape[2] == 1:
        return np.asarray(cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR), dtype=np.uint8)
    if picture.shape[2] == 4:
        return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGRA2BGR), dtype=np.uint8)
    return picture if picture.shape[2] == 3 else None


# How EXIF's orientation is undone, behind an exchange of the axes from 5 on: cv2.flip's code.
_FLIPS = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}


def upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Turn (H, W, 3) uint8 as EXIF's orientation says (1 to 8); anything else is as it stands."""
    if 5 <= orientation <= 8:
        pixels = np.asarray(cv2.transpose(pixels), dtype=np.uint8)
    flip = _FLIPS.get(orientation)
    return pixels if flip is None else np.asarray(cv2.flip(pixels, flip), dtype=np.uint8)


def webp_orientation(data: bytes) -> int:
    """Return the orientation in a WebP file's EXIF chunk, 1 where it has none."""
    at = 12
    while at + 8 <= len(data):
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        if data[at : at + 4] == b"EXIF":
            return _orientation(data[at + 8 : at + 8 + length].removeprefix(b"Exif\0\0"))
        at += 8 + length + length % 2
    return 1


def _orientation(exif: bytes) -> int:
    """Read tag 0x0112 of the first folder of a TIFF header; 1 where it is not there."""
    order: Literal["little", "big"] = "little" if exif[:2] == b"II" else "big"

    def number(at: int, size: int) -> int:
        return int.from_bytes(exif[at : at + size], order)

    first = number(4, 4)
    for entry in range(first + 2, min(first + 2 + 12 * number(first, 2), len(exif)), 12):
        if number(entry, 2) == 0x0112:
            return number(entry + 8, 2)
    return 1


# What ends a JPEG's entropy-coded data: any marker but a stuffed zero, a fill byte or a restart.
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
# Files that lie among pictures by mistake, by how they begin, and what to do about them.
_KNOWN = {
    b"version https://git-lfs": ("is a pointer of Git LFS, not the picture", "run git lfs pull"),
    b"GIF8": ("is a GIF, which is not read", "save it as PNG"),
    b"\x00\x05\x16\x07": ("is a resource fork that macOS left behind", "remove it"),
}


class PictureError(SourceError):
    """A picture file that cannot be read. why: the reason, without the file's name."""

    def __init__(self, path: Path, why: str, advice: str) -> None:
        super().__init__(f"{path} {why}; {advice}")
        self.why = why


def is_cut_jpeg(data: bytes) -> bool:
    """Tell whether a JPEG ends before its end marker (ITU-T T.81, annex B), as a download or a copy
    does that was broken off. Markers inside a segment, such as a thumbnail's, do not count."""
    if not data.startswith(b"\xff\xd8"):
        return False
    at = 2
    while at + 2 <= len(data):
        if data[at] != 0xFF:
            return False  # not as a JPEG is built: for the decoder to judge
        marker = data[at + 1]
        if marker == 0xD9:
            return False
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xDA:  # start of scan: its data has no length
            following = _MARKER.search(data, at)
            at = following.start() if following else len(data)
    return True


def _decode(data: bytes) -> Any:
    content = np.frombuffer(data, np.uint8)
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return cv2.imdecode(content, cv2.IMREAD_COLOR)
    # OpenCV 4.11 turns JPEG, PNG and TIFF, and not WebP: without its own turn it never is turned twice.
    found = cv2.imdecode(content, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    return found if found is None else upright(np.asarray(found), webp_orientation(data))


def read_picture(path: Path) -> NDArray[np.uint8]:
    """Read a picture file as (H, W, 3) uint8 BGR, by its content; raises PictureError."""
    if path.is_symlink() and not path.exists():
        raise PictureError(path, "is a link to a file that is not there", "fetch or remove it")
    if not path.is_file():
        raise PictureError(path, "is not a picture that OpenCV can read", "remove it")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise PictureError(path, f"is above {MAX_BYTES >> 20} MiB", "remove or shrink it")
        data = path.read_bytes()
        if is_cut_jpeg(data):  # some versions of OpenCV fill the rest with grey
            raise PictureError(path, "is a JPEG that is cut short", "fetch it again or remove it")
        # Not by name: OpenCV crashes on one that is not UTF-8.
        found = _decode(data) if data else None
    except OSError as error:
        raise PictureError(
            path, f"cannot be read: {error.strerror}", "mend or remove it"
        ) from error
    except cv2.error as error:
        why = f"cannot be read as a picture ({error.err or 'too large'})"
        raise PictureError(path, why, "remove or shrink it") from error
    picture = as_bgr(found)
    if picture is None:
        why, advice = next(
            (known for start, known in _KNOWN.items() if data.startswith(start)),
            ("is not a picture that OpenCV can read" if data else "is empty", "remove it"),
        )
        raise PictureError(path, why, advice)
    if max(picture.shape[:2]) > MAX_SIDE:
        why = f"is {picture.shape[1]}x{picture.shape[0]} pixels, at most {MAX_SIDE} a side are read"
        raise PictureError(path, why, "shrink it")
    return picture
