"""Everything that travels down the pipe, in the order it travels.

Frame or Tick -> Face -> Track -> Expression -> Reading. Only a Frame holds pixels, so no stage
after the classifier could publish an image by accident.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

# Keys of Reading.counts that are not classes: faces that cannot be read
# (too small, turned too far), and classes of few merged.
UNCLASSIFIED, OTHER = "unclassified", "other"
# How people are counted: by the sum of their probabilities, or each for the most probable class.
Counting = Literal["expected", "dominant"]
COUNTINGS: tuple[Counting, ...] = get_args(Counting)


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One frame of a source.

    pixels: (H, W, 3) uint8, BGR.
    time: seconds on a clock that never steps back (monotonic for a camera, file time for a file).
    utc: seconds since the Unix epoch by the system's clock, which may step.
    dropped: frames the source had to skip just before this one.
    """

    pixels: NDArray[np.uint8]
    time: float
    utc: float
    dropped: int = 0


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed and no frame came; windows still close. camera: why, as in Reading."""

    time: float
    utc: float
    camera: str = "away"


@dataclass(frozen=True, slots=True, eq=False)
class Face:
    """One detected face, in pixels of the Frame.

    box: (4,) float32: left, top, width, height.
    landmarks: (5, 2) float32, in the frame's own left-to-right order: left eye, right eye,
    nose tip, left mouth corner, right mouth corner.
    score: 0..1.
    """

    box: NDArray[np.float32]
    landmarks: NDArray[np.float32]
    score: float

    @property
    def size(self) -> float:
        """Side of the square with the box's area, in pixels."""
        return float(np.sqrt(self.box[2] * self.box[3]))


class Life(Enum):
    """Whether a face is a person's or a picture's."""

    UNPROVEN = "unproven"  # has not moved by itself, or not lately
    ALIVE = "alive"
    STILL = "still"  # has not moved for minutes, in a room that did

    def counts(self, min_group: int) -> bool:
        """Tell whether such a face is one of the people in view: with a minimum group only who has
        moved, or pictures would fill it; without one whoever is not still."""
        return self is Life.ALIVE or (min_group == 1 and self is not Life.STILL)


@dataclass(frozen=True, slots=True, eq=False)
class Track:
    """One face in view. `seen` is False while a short gap is bridged; then `face` is a forecast.

    place counts up where the face went elsewhere: from there on the track may follow another."""

    id: int
    face: Face
    seen: bool = True
    life: Life = Life.UNPROVEN
    place: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Expression:
    """What one tracked face shows. probabilities: (K,) float32 in the bundle's label order, or
    None while the face cannot be read (too small, turned away). life, place: as in Track."""

    track_id: int
    probabilities: NDArray[np.float32] | None
    life: Life = Life.UNPROVEN
    place: int = 0


@dataclass(frozen=True, slots=True)
class Reading:
    """Counts of one window. No pixels, no ids.

    start, end: seconds since the Unix epoch (file time plus the run's start for a file).
    faces_mean, faces_max: people in view at once; None when nothing was seen.
    counts: people by label; None when suppressed or nothing was seen.
    person_seconds: by label; None likewise.
    suppressed: fewer people than the minimum group were in view at some moment.
    seen: share of the window covered by frames, 0..1.
    frames, dropped: frames read and skipped; None when suppressed, since a node that cannot keep
    up skips more with every person.
    low_confidence: share of person-time whose best probability was low; None when suppressed.
    camera: "live", "file" or the reason why nothing came.
    """

    start: float
    end: float
    faces_mean: float | None
    faces_max: int | None
    counts: dict[str, int] | None
    person_seconds: dict[str, int] | None
    suppressed: bool
    seen: float
    frames: int | None
    dropped: int | None
    low_confidence: float | None
    camera: str
