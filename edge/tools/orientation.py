"""Tell whether a picture is upside down or on its side: faces are found best where they stand up."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edge.detect import Detector
from edge.records import Face
from edge.sources.images import rotated

# The detector finds some faces upside down too, and draws their landmarks as if they stood upright. Its
# scores tell: 0.93 and more a face of the demo pictures upright, 0.87 at most, and fewer faces, turned.
CLEARLY = 1.05
SAID = {90: "on its side", 180: "upside down", 270: "on its side"}


class Orientation:
    """Weigh the faces found in pictures, as they come and turned."""

    def __init__(self, detector: Detector, rotate: int) -> None:
        """rotate: the present setting of camera.rotate, degrees."""
        self._detector, self._rotate = detector, rotate
        self._scores = dict.fromkeys((0, 90, 180, 270), 0.0)

    def look(self, pixels: NDArray[np.uint8], upright: Sequence[Face]) -> str:
        """Return what to set where the pictures so far are turned, else "".

        pixels: (H, W, 3) uint8 BGR; upright: the faces that were found in them as they are."""
        for degrees in self._scores:
            faces = self._detector.find(rotated(pixels, degrees)) if degrees else upright
            self._scores[degrees] += sum(f.score for f in faces if f.score >= self._detector.score)
        best = max(self._scores, key=lambda degrees: self._scores[degrees])
        if not best or self._scores[best] <= CLEARLY * self._scores[0]:
            return ""
        return f"the picture is {SAID[best]}: set camera.rotate to {(self._rotate + best) % 360}"
