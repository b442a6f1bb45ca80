"""Small videos, written by the OpenCV that reads them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray


def write_video(
    path: Path, pictures: Iterable[NDArray[np.uint8]], fps: float = 10, code: str = "MJPG"
) -> Path:
    """Write pictures (H, W, 3) uint8 BGR of one size; code: of the codec, four letters."""
    writer = None
    for picture in pictures:
        if writer is None:
            size = (picture.shape[1], picture.shape[0])
            writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*code), fps, size)
        writer.write(picture)
    assert writer is not None, "a video has pictures"
    writer.release()
    return path


def shades(levels: Iterable[int]) -> Iterator[NDArray[np.uint8]]:
    """Plain grey pictures of 64x48."""
    return (np.full((48, 64, 3), level, np.uint8) for level in levels)
