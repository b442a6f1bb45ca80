"""Name the faces that do not move while an installer looks, with the masks to copy into node.yaml."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edge.liveness import LifeSigns
from edge.records import Face, Life, Track
from edge.track import Tracker

LOOK_SECONDS = 0.2  # between two pictures that are looked at
# People who sit quietly were seen to move within ten seconds (docs/adr/0005-life.md): twice that.
LEAST_SECONDS = 20.0
MARGIN = 0.3  # of a face, left free around it by the mask


class StillFaces:
    """Follow the faces of a short look, and say which did not move."""

    def __init__(self) -> None:
        self._tracker, self._signs = Tracker(), LifeSigns()
        self._began: float | None = None
        self._time = 0.0
        self._tracks: list[Track] = []
        self._first: dict[int, float] = {}
        self._alive: set[int] = set()
        self._shape: tuple[int, ...] = (1, 1)

    def due(self, time: float) -> bool:
        """Tell whether the picture of this time is to be looked at."""
        return self._began is None or time - self._time >= LOOK_SECONDS - 1e-3

    def look(self, pixels: NDArray[np.uint8], faces: Sequence[Face], time: float) -> None:
        """Take note of one picture, (H, W, 3) uint8 BGR, and its faces."""
        self._began = time if self._began is None else self._began
        self._time, self._shape = time, pixels.shape
        tracks = self._tracker.update(faces, time, pixels.shape)
        self._tracks = self._signs.judge(pixels, tracks, time)
        for track in self._tracks:
            self._first.setdefault(track.id, time)
            if track.life is Life.ALIVE:
                self._alive.add(track.id)

    def lines(self, masks: Sequence[Sequence[float]]) -> list[str]:
        """Say what did not move, and what to mask. masks: those that are set already."""
        unseen = [t for t in self._tracks if t.id not in self._alive]
        if not unseen or self._began is None:
            return []
        looked = self._time - self._began
        if looked < LEAST_SECONDS:
            # Who moves is told after some seconds only: of less nothing is said of anybody.
            what = f"{len(unseen)} faces from pictures" if unseen[1:] else "1 face from a picture"
            return [
                f"{looked:.0f} s are too short to tell {what} on a wall: --max-seconds 60",
            ]
        still = [t for t in unseen if self._time - self._first[t.id] >= LEAST_SECONDS]
        new = [_mask(t.face, self._shape) for t in still]
        lines = [
            f"a face of {t.face.size:.0f} px never moved in {self._time - self._first[t.id]:.0f} s, "
            f"and counts for nobody until it does, at {mask}"
            for t, mask in zip(still, new, strict=True)
        ]
        if lines:
            every = [[float(side) for side in mask] for mask in [*masks, *new]]
            lines.append(
                f"where that is a picture, mask it, under `privacy:` in node.yaml: masks: {every}"
            )
        return lines


def _mask(face: Face, shape: tuple[int, ...]) -> list[float]:
    """Cover a face and what is near it: left, top, right, bottom, as shares of the picture."""
    left, top, width, height = (float(v) for v in face.box)
    down, across = shape[:2]
    low = (left - MARGIN * width) / across, (top - MARGIN * height) / down
    high = (left + (1 + MARGIN) * width) / across, (top + (1 + MARGIN) * height) / down
    return [max(0.0, math.floor(100 * v) / 100) for v in low] + [
        min(1.0, math.ceil(100 * v) / 100) for v in high
    ]
