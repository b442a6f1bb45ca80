"""Tell people from pictures of people (Track -> Track): who has moved by himself.

A photograph on the wall, a bust and a printed shirt on a chair have faces too, and ten of them around
one pupil would make a group of eleven. So a face is a person only once it has moved against the room.

Twice a second the picture is compared with one up to two seconds older, by optical flow (Lucas and
Kanade, in pyramids; OpenCV's). What the camera did, a similarity, is fitted to the background; a face
that moved against that, by more than what noise, compression and light do to it, shows life. Who did so
against two references within LIFE_SECONDS is alive; who did not for STILL_SECONDS, in a room that did,
is still. Life belongs to a place: a track that a passer-by leaves behind on a photograph has to show it
there. Why so: docs/adr/0005-life.md.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.records import Face, Life, Track

CHECK_SECONDS, REFERENCE_SECONDS = 0.5, 2.0
# A person who reads moves by more than this share of a face, or these pixels, within seconds; a picture
# on the wall by less, whatever the light, the noise and the compression (measured: docs/adr/0005).
LEAST_SHARE, LEAST_PX = 0.008, 0.25
# Standard errors of the measured motion that are taken for noise.
SURE = 4.0
MARKS, LIFE_SECONDS = 2, 30.0
STILL_SECONDS, ROOM_MARKS = 180.0, 10
# Farther than this from where it came to, in faces, or larger or smaller by this factor, or unseen for
# so long, a face is elsewhere, and the track may follow another. On its way it lives ARRIVE_SECONDS.
ELSEWHERE, OTHER_SIZE, GAP_SECONDS = 0.5, 1.3, 0.5
ARRIVE_SECONDS = 1.5
LONGEST_SIDE = 1280  # larger pictures are scaled down: a person's motion is large in them, too
GRID = 5  # points across a face


@dataclass(slots=True)
class _History:
    """What is known of one track. since, room: when it last moved by itself, or was first seen, and how
    often others had by then; face, came, place: where it came to, when, and the how-manieth such place;
    seen: when it was last; marks: times at which it moved by itself, here: also at this place."""

    since: float
    room: int
    face: Face
    came: float
    seen: float
    place: int = 0
    here: bool = False
    marks: deque[float] = field(default_factory=lambda: deque(maxlen=MARKS))
    marked: bool = False  # against the present reference

    def follow(self, face: Face, time: float, before: float) -> None:
        """Take note where the face is. before: time of the picture before this one."""
        away = np.linalg.norm(_centre(face) - _centre(self.face)) > ELSEWHERE * self.face.size
        other = abs(np.log(face.size / self.face.size)) > np.log(OTHER_SIZE)
        lost = self.seen < before and time - self.seen > GAP_SECONDS
        self.seen = time
        if away or other or lost:
            self.face, self.came, self.here = face, time, False
            self.place += 1


def _centre(face: Face) -> NDArray[np.float64]:
    return np.asarray(face.box[:2] + face.box[2:] / 2, dtype=np.float64)


@dataclass(slots=True)
class _View:
    """A picture to compare with: its grey levels and its faces by track.

    corners: (N, 2), where it can be followed all over; found once, since that costs more than all else
    here, and only if somebody is compared."""

    time: float
    grey: NDArray[np.uint8]
    scale: float
    faces: dict[int, Face]
    corners: NDArray[np.float32] | None = None

    def background(self, other: _View) -> NDArray[np.float32]:
        """Return its corners that are on no head, of its own or of another view: (N, 2)."""
        if self.corners is None:
            self.corners = _corners(self.grey, _heads(self))
        x, y = self.corners.T[:, :, None]
        left, top, right, bottom = _heads(other).T[:, None]
        hidden = ((x >= left) & (x <= right) & (y >= top) & (y <= bottom)).any(axis=1)
        return np.asarray(self.corners[~hidden])


@dataclass(frozen=True, slots=True)
class _Camera:
    """How the camera moved: a similarity (2, 3), and how sure that is: the spread of the points that it
    was fitted to, their centre, number and moment."""

    matrix: NDArray[np.float64]
    spread: float
    centre: NDArray[np.float64]
    number: int
    moment: float

    def error(self, place: NDArray[np.float64]) -> float:
        """Standard error of the motion that it gives for a place, in pixels."""
        away = float(((place - self.centre) ** 2).sum())
        return self.spread * float(np.sqrt(1 / self.number + away / max(self.moment, 1.0)))


STANDS = _Camera(np.eye(2, 3), 0.0, np.zeros(2), 1, 1.0)


class LifeSigns:
    """Remembers which tracks moved by themselves; `judge` takes one frame's tracks."""

    def __init__(self) -> None:
        self._known: dict[int, _History] = {}
        self._reference: _View | None = None
        self._checked = self._before = float("-inf")
        self._room = 0  # marks of all tracks so far

    def judge(self, pixels: NDArray[np.uint8], tracks: Sequence[Track], time: float) -> list[Track]:
        """Return the tracks, each with its `life` and `place`.

        pixels: (H, W, 3) uint8 BGR at `time` seconds."""
        ids = {track.id for track in tracks}
        self._known = {n: h for n, h in self._known.items() if n in ids or time - h.since < 60.0}
        for track in tracks:
            new = _History(time, self._room, track.face, time, time)
            known = self._known.setdefault(track.id, new)
            if track.seen:
                known.follow(track.face, time, self._before)
        self._before = time
        if time - self._checked >= CHECK_SECONDS - 1e-3:
            self._checked = time
            self._check(pixels, tracks, time)
        return [
            dataclasses.replace(
                track, life=self._life(track.id, time), place=self._known[track.id].place
            )
            for track in tracks
        ]

    def _life(self, number: int, time: float) -> Life:
        known = self._known[number]
        lately = len(known.marks) == MARKS and time - known.marks[0] <= LIFE_SECONDS
        if lately and (known.here or time - known.came <= ARRIVE_SECONDS):
            return Life.ALIVE
        others = self._room - known.room
        if time - known.since >= STILL_SECONDS and others >= ROOM_MARKS:
            return Life.STILL
        return Life.UNPROVEN

    def _check(self, pixels: NDArray[np.uint8], tracks: Sequence[Track], time: float) -> None:
        now = _view(pixels, tracks, time)
        old = self._reference
        if old is not None and old.grey.shape == now.grey.shape:
            for number in _moved(old, now):
                known = self._known[number]
                known.since = time
                known.here |= old.time >= known.came
                if not known.marked:
                    known.marked = True
                    known.marks.append(time)
                    self._room += 1
                known.room = self._room
        if old is None or old.grey.shape != now.grey.shape or time - old.time >= REFERENCE_SECONDS:
            self._reference = now
            for known in self._known.values():
                known.marked = False


def _view(pixels: NDArray[np.uint8], tracks: Sequence[Track], time: float) -> _View:
    scale = min(1.0, LONGEST_SIDE / max(pixels.shape[:2]))
    grey = cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY)
    if scale < 1:
        grey = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    # Without the slow part of the picture, so that light which comes and goes moves nothing.
    grey = cv2.addWeighted(grey, 1.0, cv2.blur(grey, (31, 31)), -1.0, 128.0)
    faces = {track.id: track.face for track in tracks if track.seen}
    return _View(time, np.asarray(grey, dtype=np.uint8), scale, faces)


def _flow(
    old: _View, now: _View, points: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Follow points (N, 2); returns where they went, and which of them can be believed: those that are
    followed back to where they came from."""
    if not len(points):
        return np.zeros((0, 2)), np.zeros(0, dtype=bool)
    there, found = _follow(old, now, points)
    back, again = _follow(now, old, there)
    near = np.abs(back - points).max(axis=1) < 0.3
    return there.astype(np.float64), near & found & again


def _follow(
    old: _View, now: _View, points: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    there, found, _ = cv2.calcOpticalFlowPyrLK(
        old.grey,
        now.grey,
        points,
        np.zeros_like(points),
        winSize=(15, 15),
        maxLevel=3,
        minEigThreshold=1e-3,
    )
    return np.asarray(there, dtype=np.float32), np.asarray(found)[:, 0] == 1


def _heads(view: _View) -> NDArray[np.float64]:
    """Return where its heads are, with what moves around them: (N, 4), left, top, right, bottom."""
    boxes = np.array([face.box for face in view.faces.values()]).reshape(-1, 4) * view.scale
    return np.concatenate(
        [boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + 1.5 * boxes[:, 2:]], axis=1
    )


def _corners(grey: NDArray[np.uint8], heads: NDArray[np.float64]) -> NDArray[np.float32]:
    """Find points that can be followed, all over the picture but for heads: (N, 2)."""
    height, width = grey.shape
    mask = np.full((height, width), 255, dtype=np.uint8)
    for left, top, right, bottom in heads.astype(int):
        mask[max(0, top) : max(0, bottom + 1), max(0, left) : max(0, right + 1)] = 0
    apart = max(width, height) / 40  # so that a busy corner, or a screen, is not the whole picture
    found = cv2.goodFeaturesToTrack(grey, 200, 0.01, apart, mask=mask)
    points = np.zeros((0, 2)) if found is None else found.reshape(-1, 2)
    return np.asarray(points, dtype=np.float32)


def _fit(old: NDArray[np.float64], new: NDArray[np.float64]) -> tuple[_Camera, int] | None:
    """Fit a similarity to what most points did; returns it and how many did so."""
    if len(old) < 6:
        return None
    fitted, chosen = cv2.estimateAffinePartial2D(old, new, ransacReprojThreshold=0.8)
    if fitted is None:
        return None
    matrix = np.asarray(fitted, dtype=np.float64)
    inside = chosen[:, 0] == 1
    if inside.sum() < 6:
        return None
    points = old[inside]
    left = new[inside] - _apply(matrix, points)
    spread = 1.48 * float(np.median(np.abs(left)))
    centre = points.mean(axis=0)
    moment = float(((points - centre) ** 2).sum())
    return _Camera(matrix, spread, centre, len(points), moment), len(points)


def _apply(matrix: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(points @ matrix[:, :2].T + matrix[:, 2], dtype=np.float64)


def _camera(
    old: NDArray[np.float64],
    new: NDArray[np.float64],
    faces: NDArray[np.float64],
    faces_new: NDArray[np.float64],
) -> _Camera | None:
    """How the camera moved; None where that cannot be told."""
    # What hardly moved is the room, even where a screen or a crowd moves more points together.
    calm = np.linalg.norm(new - old, axis=1) < 1.5
    if calm.sum() >= max(6, 0.3 * len(old)) and (found := _fit(old[calm], new[calm])):
        return found[0]
    if len(old) >= 8:
        found = _fit(old, new)
        return found[0] if found and found[1] >= 0.4 * len(old) else None
    # A wall without a mark: what most faces did together, the camera did.
    every, every_new = np.concatenate([old, faces]), np.concatenate([new, faces_new])
    found = _fit(every, every_new)
    return found[0] if found and found[1] >= 0.4 * len(every) else STANDS


def _moved(old: _View, now: _View) -> list[int]:
    """Name the tracks that moved against the room between two pictures."""
    both = [number for number in now.faces if number in old.faces]
    if not both:
        return []
    grid = (np.stack(np.meshgrid(*[np.linspace(0.15, 0.85, GRID)] * 2), axis=-1)).reshape(-1, 2)
    boxes = [old.faces[number].box.astype(np.float64) * old.scale for number in both]
    faces = np.concatenate([box[:2] + grid * box[2:] for box in boxes])
    background = old.background(now)
    points = np.concatenate([background, faces]).astype(np.float32)
    there, good = _flow(old, now, points)
    count, start = len(background), points.astype(np.float64)
    is_wall = good & (np.arange(len(points)) < count)
    is_face = good & (np.arange(len(points)) >= count)
    camera = _camera(start[is_wall], there[is_wall], start[is_face], there[is_face])
    if camera is None:
        return []
    own = there - _apply(camera.matrix, start)
    moved = []
    for index, number in enumerate(both):
        part = slice(count + index * GRID**2, count + (index + 1) * GRID**2)
        if _moved_by_itself(
            own[part][good[part]], old.faces[number], now.faces[number], camera, old.scale
        ):
            moved.append(number)
    return moved


def _moved_by_itself(
    own: NDArray[np.float64], old: Face, now: Face, camera: _Camera, scale: float
) -> bool:
    """own: (n, 2), motion of the face's points against the room; old, now: the face as detected."""
    place = old.landmarks.mean(axis=0).astype(np.float64) * scale
    found = now.landmarks.mean(axis=0).astype(np.float64) * scale
    size = old.size * scale
    step = found - _apply(camera.matrix, place[None])[0]
    if np.linalg.norm(step) > 0.5 * size:
        return True  # farther than flow follows, and than a detection errs
    if len(own) < GRID**2 // 2:
        return False  # hidden in part, or without features
    middle = np.median(own, axis=0)
    if np.linalg.norm(middle - step) > max(1.5, 0.15 * size):
        return False  # something else passed: the detector saw the face stay
    noise = 1.25 * 1.48 * float(np.median(np.abs(own - middle))) / np.sqrt(len(own) / 4)
    error = float(np.hypot(noise, camera.error(place)))
    least = max(LEAST_PX, LEAST_SHARE * size, SURE * error)
    return float(np.linalg.norm(middle)) > least
