"""Stand in for a camera: the test pattern, a wall with moving portraits, and a video in a loop.

The portrait (`portrait.jpg`) is cut from NASA's public-domain picture of astronaut Eileen Collins.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.base.errors import SourceError
from edge.sources.decoder import Decoder, open_file, refuse_change_of_size

PORTRAIT = Path(__file__).with_name("portrait.jpg")


def portrait() -> NDArray[np.uint8]:
    """Return the face of the test pattern, (H, W, 3) uint8 BGR."""
    return np.asarray(cv2.imread(str(PORTRAIT), cv2.IMREAD_COLOR), dtype=np.uint8)


def scene(moment: float, faces: int = 6, width: int = 640, height: int = 480) -> NDArray[np.uint8]:
    """Draw the frame at `moment` seconds: `faces` portraits on a grid, each swaying in its cell.

    Returns (height, width, 3) uint8 BGR.
    """
    shade = np.linspace(90, 150, width, dtype=np.uint8)
    pixels = np.repeat(np.repeat(shade[None, :, None], height, axis=0), 3, axis=2)
    if faces == 0:
        return pixels
    columns = max(1, math.ceil(math.sqrt(faces * width / height)))
    rows = math.ceil(faces / columns)
    cell_w, cell_h = width // columns, height // rows
    stamp = portrait()
    scale = 0.86 * min(cell_w / stamp.shape[1], cell_h / stamp.shape[0])
    size = (max(1, int(stamp.shape[1] * scale)), max(1, int(stamp.shape[0] * scale)))
    stamp = np.asarray(cv2.resize(stamp, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    for index in range(faces):
        phase = moment + index
        x = (index % columns) * cell_w + (cell_w - size[0]) * (0.5 + 0.45 * math.sin(phase))
        y = (index // columns) * cell_h + (cell_h - size[1]) * (0.5 + 0.45 * math.cos(1.3 * phase))
        pixels[int(y) : int(y) + size[1], int(x) : int(x) + size[0]] = stamp
    return pixels


class _Paced:
    """Wait until the next frame is due, as a camera would."""

    def __init__(self, fps: float) -> None:
        self._step = 1.0 / fps
        self._began = self._next = time.monotonic()

    def wait(self) -> float:
        """Return the moment of the frame, seconds since the start."""
        self._next = max(self._next + self._step, time.monotonic())
        time.sleep(max(0.0, self._next - time.monotonic()))
        return self._next - self._began


class Pattern:
    """A capture that draws the scene at a steady pace."""

    def __init__(self, faces: int = 6, fps: float = 30.0) -> None:
        self._faces, self._pace = faces, _Paced(fps)
        self._moment = 0.0

    def read(self) -> tuple[bool, Any]:
        return self.retrieve() if self.grab() else (False, None)

    def grab(self) -> bool:
        self._moment = self._pace.wait()
        return True

    def retrieve(self) -> tuple[bool, Any]:
        return True, scene(self._moment, self._faces)

    def release(self) -> None:
        pass


class Loop:
    """A capture that plays a video file again and again, at the file's own pace."""

    def __init__(self, path: Path) -> None:
        """Open the file; raises SourceError where OpenCV reads no video from it, or a wrong one."""
        self._path = path
        self._capture = self._open()
        refuse_change_of_size(path)
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self._pace = _Paced(fps if 0 < fps < 1000 else 30.0)

    def read(self) -> tuple[bool, Any]:
        return self.retrieve() if self.grab() else (False, None)

    def grab(self) -> bool:
        ok = self._capture.grab()
        if not ok:
            # Opened again: seeking to the start is not exact in every container.
            self._capture.release()
            self._capture = self._open()
            ok = self._capture.grab()
        self._pace.wait()
        return ok

    def retrieve(self) -> tuple[bool, Any]:
        ok, frame = self._capture.retrieve()
        # The last frame may be one that its decoder only proves by the next.
        return (ok, frame) if ok or not self.grab() else self._capture.retrieve()

    def _open(self) -> Decoder:
        try:
            return open_file(self._path)
        except (SourceError, OSError) as error:
            raise SourceError(
                f"loop:{self._path} is not a video that OpenCV can read; give a video file"
            ) from error

    def release(self) -> None:
        self._capture.release()
