"""Follow faces as people (Face -> Track): who is in view, through short gaps and crossings.

A constant-velocity alpha-beta filter forecasts each face's centre and size; the assignment is
optimal (Hungarian) over distance and size. Weak detections may keep a person but never start one
(ByteTrack, Zhang et al. 2022). All durations come from the frames' own times, so that five pictures a
second and thirty give the same people.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edge.base.assignment import assign
from edge.records import Face, Track

# Alpha-beta gains: how far a new sight moves the position, and the velocity. Boxes of YuNet shake
# by about 3 % of a face, people move smoothly: trust the sight, learn the speed slowly. BETA is that of
# a thirtieth of a second, and as much again of what is left for each that passes, up to what is still
# damped critically (ALPHA^2 / (2 - ALPHA), Kalata 1984).
ALPHA, BETA, BETA_SECONDS, MOST_BETA = 0.7, 0.15, 1 / 30, 0.377
# A match may lie this many face sizes from the forecast, more with every second unseen, up to REACH.
GATE, GATE_A_SECOND, REACH = 0.7, 1.5, 1.6
# Sizes may differ by this factor between two sights: a hand in front of half a face still passes.
SIZE_RATIO = 1.8
IMPOSSIBLE = 1e6


class _Person:
    """One tracked face: centre, velocity, size."""

    __slots__ = ("born", "centre", "confirmed", "face", "id", "size", "time", "velocity")

    def __init__(self, number: int, face: Face, time: float, confirmed: bool) -> None:
        self.id = number
        self.centre = _centre(face)
        self.velocity = np.zeros(2)
        self.size = face.size
        self.face, self.time, self.born, self.confirmed = face, time, time, confirmed

    def forecast(self, time: float) -> NDArray[np.float64]:
        # A hidden person is not followed for ever: after half a second they are taken to stand still.
        return np.asarray(self.centre + self.velocity * min(time - self.time, 0.5))

    def see(self, face: Face, time: float) -> None:
        span = time - self.time
        forecast = self.forecast(time)
        residual = _centre(face) - forecast
        self.centre = forecast + ALPHA * residual
        if span > 0:
            beta = min(MOST_BETA, 1 - (1 - BETA) ** (span / BETA_SECONDS))
            self.velocity = self.velocity + beta * residual / max(span, 1 / 60)
        self.size += ALPHA * (face.size - self.size)
        self.face, self.time = face, time

    def moved(self, time: float) -> Face:
        """Return the last face, moved to where it should be by now."""
        shift = (self.forecast(time) - _centre(self.face)).astype(np.float32)
        box = self.face.box + np.array([shift[0], shift[1], 0, 0], dtype=np.float32)
        return Face(box=box, landmarks=self.face.landmarks + shift, score=self.face.score)


def _centre(face: Face) -> NDArray[np.float64]:
    return np.asarray(face.box[:2] + face.box[2:] / 2, dtype=np.float64)


class Tracker:
    """Keeps one id a person. `update` takes one frame's faces and gives the people in view."""

    def __init__(
        self,
        strong_score: float = 0.6,
        confirm_seconds: float = 0.1,
        hold_seconds: float = 0.5,
        forget_seconds: float = 1.5,
    ) -> None:
        """strong_score: what starts a person; confirm_seconds: seen for so long, in every frame,
        before one counts (at once in the first frame, and in frames farther apart than
        hold_seconds); hold_seconds: unseen but still counted; forget_seconds: unseen and then
        forgotten."""
        self.strong_score = strong_score
        self.confirm = confirm_seconds
        self.hold, self.forget = hold_seconds, forget_seconds
        self._people: list[_Person] = []
        self._next = 1
        self._previous: float | None = None

    def update(self, faces: Sequence[Face], time: float, shape: tuple[int, ...]) -> list[Track]:
        """Follow the faces of one frame of `shape` (H, W, ...) at `time` seconds.

        Returns confirmed people in view, by id: seen now, or unseen for at most hold_seconds and not
        gone over the edge."""
        # In the first frame nobody has just walked in, and where frames are far apart none can
        # be confirmed by a next one: whoever is there counts at once.
        at_once = self._previous is None or time - self._previous > self.hold
        self._people = [p for p in self._people if time - p.time <= self.forget]
        strong = [f for f in faces if f.score >= self.strong_score]
        weak = [f for f in faces if f.score < self.strong_score]
        known = [p for p in self._people if p.confirmed]
        new = [p for p in self._people if not p.confirmed]
        known, strong = self._match(known, strong, time)
        new, strong = self._match(new, strong, time)
        self._match([p for p in known if time - p.time <= self.hold], weak, time)
        for face in strong:
            confirmed = at_once or self.confirm <= 0
            self._people.append(_Person(self._next, face, time, confirmed))
            self._next += 1
        self._previous = time
        # A face that vanished before it was confirmed was no face.
        self._people = [p for p in self._people if p.confirmed or p.time == time]
        return [
            Track(id=p.id, face=p.face if p.time == time else p.moved(time), seen=p.time == time)
            for p in self._people
            if p.confirmed and (p.time == time or self._in_view(p, time, shape))
        ]

    def _in_view(self, person: _Person, time: float, shape: tuple[int, ...]) -> bool:
        x, y = person.forecast(time)
        margin = person.size * 0.4
        inside = margin < x < shape[1] - margin and margin < y < shape[0] - margin
        return inside and time - person.time <= self.hold

    def _match(
        self, people: list[_Person], faces: list[Face], time: float
    ) -> tuple[list[_Person], list[Face]]:
        """Give faces to people; return who and what is left over."""
        if not people or not faces:
            return people, faces
        where = np.array([p.forecast(time) for p in people])
        size = np.array([p.size for p in people])
        unseen = np.array([time - p.time for p in people])
        there = np.array([_centre(f) for f in faces])
        other = np.array([f.size for f in faces])
        distance = np.linalg.norm(where[:, None] - there[None], axis=2)
        distance /= np.sqrt(size[:, None] * other[None])
        ratio = np.abs(np.log(size[:, None] / other[None]))
        gate = np.minimum(GATE + GATE_A_SECOND * unseen, REACH)[:, None]
        allowed = (distance <= gate) & (ratio <= np.log(SIZE_RATIO))
        # Near and alike in size; of two people at one place, the one seen last.
        cost = np.where(allowed, distance + ratio + 0.1 * unseen[:, None], IMPOSSIBLE)
        left_people, left_faces = set(range(len(people))), set(range(len(faces)))
        for i, j in assign(cost):
            if cost[i, j] < IMPOSSIBLE:
                people[i].see(faces[j], time)
                # A millisecond less, as sums of a file's time steps are.
                people[i].confirmed |= time - people[i].born >= self.confirm - 1e-3
                left_people.discard(i)
                left_faces.discard(j)
        return [people[i] for i in sorted(left_people)], [faces[j] for j in sorted(left_faces)]
