"""Pixels as the stages want them, whatever a device or a picture file gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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


def read_picture(path: Path) -> NDArray[np.uint8]:
    """Read a picture file as (H, W, 3) uint8 BGR, by its content; raises SourceError naming it."""
    if not path.is_file():
        raise SourceError(f"{path} is not a picture that OpenCV can read; remove it")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise SourceError(f"{path} is above {MAX_BYTES >> 20} MiB; remove or shrink it")
        data = path.read_bytes()
        # Not by name: OpenCV crashes on one that is not UTF-8.
        found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from error
    except cv2.error as error:
        raise SourceError(
            f"{path} cannot be read as a picture ({error.err or 'too large'}); remove or shrink it"
        ) from error
    picture = as_bgr(found)
    if picture is None:
        raise SourceError(f"{path} is not a picture that OpenCV can read; remove it")
    if max(picture.shape[:2]) > MAX_SIDE:
        raise SourceError(
            f"{path} is {picture.shape[1]}x{picture.shape[0]} pixels, at most {MAX_SIDE} a side are "
            f"read; shrink it"
        )
    return picture
