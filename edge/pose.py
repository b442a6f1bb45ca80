"""Tell from five landmarks how far a face is turned: one that shows its side shows no expression.

The nose stands out of the plane of eyes and mouth, so turning the head moves it aside: by the tangent
of the yaw, measured in widths between the eyes, which themselves shrink by its cosine. Roll is not
counted, since the crop turns the face upright.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

# `classifier.max_turn` is 70 by distill/README.md, "Turned faces"; YuNet's own bias is some 5 degrees.
# How far the nose's tip stands out, in distances between the pupils: 32 of 63 mm on a mean face.
NOSE_DEPTH = 0.5


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
