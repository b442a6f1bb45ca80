"""Choose the detector's size from the picture's shape, and from what the machine carries.

A face wants 14 pixels in the detector's input (edge/README.md has the table), so no picture is made
smaller than need be; none is made larger. A camera's size is the largest that this machine runs within
the detector's share of its cores. It is timed in processor time, so that what else runs at the start
does not choose. A file's size depends on its shape alone: its counts must not differ between machines.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from edge.settings import Settings

LONG_SIDES = (640, 960, 1280, 1920)
# A file's, and a TensorRT engine's, which is built before any picture comes.
LONGEST_BY_SHAPE = 1280
# The detector's share of the processor time of `runtime.threads` cores; the faces, the camera and the
# rest of the machine get the others. 1280x736 at the usual rate needs 0.13 of two cores of a server.
SHARE = 0.4
RUNS = 3

Size = tuple[int, int]


def fitted(shape: tuple[int, ...], longest: int) -> Size:
    """Return (width, height), multiples of 32, that hold a picture of `shape` (H, W, ...) whose long
    side is brought down to `longest` pixels; a smaller picture keeps its size."""
    scale = min(1.0, longest / max(shape[:2]))
    height, width = (max(32, math.ceil(round(side * scale) / 32) * 32) for side in shape[:2])
    return width, height


def candidates(shape: tuple[int, ...]) -> list[Size]:
    """Return the sizes worth trying for a picture of `shape` (H, W, ...), smallest first."""
    return sorted({fitted(shape, side) for side in LONG_SIDES}, key=lambda size: size[0] * size[1])


def by_shape(shape: tuple[int, ...]) -> Size:
    """Return the size for a picture of `shape` (H, W, ...) where no machine is asked."""
    return fitted(shape, LONGEST_BY_SHAPE)


class Carried:
    """Choose the largest size that this machine carries."""

    def __init__(self, run: Callable[[Size], object], per_second: float, cores: int) -> None:
        """run: the detector once at that size, on `cores`; per_second: pictures that are looked at."""
        self._run, self._budget = run, SHARE * cores / per_second
        self._seconds: dict[Size, float] = {}

    def __call__(self, shape: tuple[int, ...]) -> Size:
        """Return the size for a picture of `shape` (H, W, ...); each size is timed once."""
        smallest, *larger = candidates(shape)
        chosen = smallest
        for size in larger:
            if self._time(size) > self._budget:
                break
            chosen = size
        return chosen

    def _time(self, size: Size) -> float:
        if size not in self._seconds:
            self._run(size)  # the first allocates
            spent = []
            for _ in range(RUNS):
                began = time.process_time()
                self._run(size)
                spent.append(time.process_time() - began)
            self._seconds[size] = min(spent)
        return self._seconds[size]


def camera_shape(settings: Settings) -> tuple[int, int]:
    """Return (H, W) of the pictures that the settings ask of the camera, as they are turned."""
    c = settings.camera
    return (c.width, c.height) if c.rotate in (90, 270) else (c.height, c.width)


def expected(settings: Settings) -> Size:
    """Return the detector's size as set, or by the shape that is asked of the camera."""
    d = settings.detector
    return (d.width, d.height) if d.width and d.height else by_shape(camera_shape(settings))
