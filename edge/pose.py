"""Tell from five landmarks whether a face shows its front: from the side it shows no expression.

The nose stands out of the plane of eyes and mouth, so turning the head moves it aside: by the tangent
of the yaw, measured in widths between the eyes, which themselves shrink by its cosine. Roll is not
counted, since the crop turns the face upright.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edge.records import Face

# `classifier.max_turn` is 70 by distill/README.md, "Turned faces"; YuNet's own bias is some 5 degrees.
# How far the nose's tip stands out, in distances between the pupils: 32 of 63 mm on a mean face.
NOSE_DEPTH = 0.5
# Eyes are at most so far apart, in sides of the face's box: of 3,540 faces of FER+ PublicTest 0.08 to
# 0.49. Lamps, handles and pairs of knobs that the detector takes for a face have them anywhere.
EYES_APART = 0.5


def yaw(landmarks: NDArray[np.float32]) -> float:
    """Estimate how far a face is turned aside, in degrees: -90 to 90, positive towards the picture's
    right, 0 from the front; 90 where the eyes lie on each other or stand below the mouth.

    landmarks: (5, 2) of `Face`. The nose's place is taken across the line from the eyes' middle to
    the mouth's, so that neither roll nor a tilt of the head moves it.
    """
    left, right, nose, *mouth = np.asarray(landmarks, dtype=np.float64)
    middle = (left + right) / 2
    down = (mouth[0] + mouth[1]) / 2 - middle
    length = math.hypot(*down)
    if length == 0:
        return 90.0
    across = np.array([down[1], -down[0]]) / length
    width = float(across @ (right - left))
    if width <= 0:
        return 90.0
    return math.degrees(math.atan2(float(across @ (nose - middle)), NOSE_DEPTH * width))


def shows_front(face: Face, max_turn: float) -> bool:
    """Return whether a face is turned aside by at most `max_turn` degrees, and has its eyes where a
    face has them."""
    left, right = np.asarray(face.landmarks[:2], dtype=np.float64)
    apart = math.hypot(*(right - left))
    return abs(yaw(face.landmarks)) <= max_turn and apart <= EYES_APART * face.size
