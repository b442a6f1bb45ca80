"""A classroom's wall with photographs of faces on it, and people in front of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from edge.records import Face
from support.paths import PICTURES

HEIGHT, WIDTH = 480, 640
# Face boxes in the pictures (left, top, width, height), read off once with the detector.
FACES = {
    "astronaut.png": (179, 63, 91, 111),
    "portrait-1.jpg": (371, 91, 241, 329),
    "portrait-2.jpg": (643, 273, 265, 345),
    "portrait-3.jpg": (427, 176, 287, 399),
}


def head(number: int, size: int) -> np.ndarray:
    """A portrait, its face `size` pixels high: four, then the same mirrored; (H, W, 3) float32."""
    name = sorted(FACES)[number % 4]
    left, top, width, height = FACES[name]
    picture = cv2.imread(str(PICTURES / name))
    x, y = int(0.45 * height), int(0.4 * height)
    cut = picture[max(top - y, 0) : top + height + y, max(left - x, 0) : left + width + x]
    scale = size / height
    small = cv2.resize(cut, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return np.asarray(small[:, ::-1] if number // 4 % 2 else small, np.float32)


@dataclass(frozen=True)
class Portrait:
    """A face at a place; sway: pixels by which a person moves, 0 for a photograph."""

    number: int
    size: int
    x: float
    y: float
    sway: float = 0.0

    def at(self, moment: float) -> tuple[float, float]:
        """Centre at a moment in seconds: slow, and never the same path twice."""
        turn = self.number + self.size
        across = np.sin(1.3 * moment + turn) + 0.5 * np.sin(3.1 * moment)
        along = np.cos(0.9 * moment + turn) + 0.5 * np.sin(2.3 * moment)
        return float(self.x + self.sway * across), float(self.y + self.sway * along)

    def face(self, moment: float, rng: np.random.Generator) -> Face:
        """As a detector finds it: 2 % of a face beside the truth."""
        x, y = self.at(moment) + rng.normal(0, 0.02 * self.size, 2)
        w, h = 0.78 * self.size, float(self.size)
        shape = np.array([[0.3, 0.4], [0.7, 0.4], [0.5, 0.6], [0.35, 0.8], [0.65, 0.8]])
        box = np.array([x - w / 2, y - h / 2, w, h], np.float32)
        return Face(box, (box[:2] + shape * (w, h)).astype(np.float32), 0.9)


# Ten on the wall, of many sizes; five who sit before it.
POSTERS = [
    Portrait(n, size, x, y)
    for n, (size, x, y) in enumerate(
        [(40, 50, 60), (44, 140, 60), (56, 240, 70), (70, 350, 75), (40, 450, 60), (48, 540, 70),
         (38, 605, 60), (80, 65, 190), (50, 170, 180), (60, 590, 190)]
    )
]  # fmt: skip
PEOPLE = [
    Portrait(3, 60, 270, 260, 2.0),
    Portrait(1, 50, 390, 230, 1.5),
    Portrait(2, 90, 470, 360, 3.0),
    Portrait(4, 80, 330, 390, 2.5),
    Portrait(5, 100, 130, 380, 3.0),
]


def room(seed: int = 0) -> np.ndarray:
    """An empty room with shelves, boards and windows; (H, W, 3) float32."""
    rng = np.random.default_rng(seed)
    wall = np.full((HEIGHT, WIDTH, 3), 150, np.float32)
    for _ in range(60):
        x, y = rng.integers(0, WIDTH), rng.integers(0, HEIGHT)
        w, h = rng.integers(10, 120), rng.integers(10, 90)
        wall[y : y + h, x : x + w] = rng.integers(60, 220, 3)
    return np.asarray(cv2.GaussianBlur(wall, (0, 0), 1.0), np.float32)


def hang(picture: np.ndarray, stamp: np.ndarray, x: float, y: float, oval: bool) -> None:
    """Put a stamp into the picture, its centre at (x, y), parts of a pixel included."""
    h, w = stamp.shape[:2]
    left, top = x - w / 2, y - h / 2
    x0, y0 = max(int(left) - 1, 0), max(int(top) - 1, 0)
    x1, y1 = min(int(left) + w + 2, WIDTH), min(int(top) + h + 2, HEIGHT)
    if x1 <= x0 or y1 <= y0:
        return
    shift = np.array([[1, 0, left - x0], [0, 1, top - y0]], np.float32)
    mask = np.ones((h, w), np.float32)
    if oval:
        down, across = np.mgrid[0:h, 0:w].astype(np.float32)
        far = np.hypot((across - w / 2) / (w / 2), (down - h / 2) / (h / 2))
        mask = np.clip((1 - far) / 0.12, 0, 1).astype(np.float32)
    size = (x1 - x0, y1 - y0)
    moved = cv2.warpAffine(
        stamp, shift, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
    )
    share = cv2.warpAffine(mask, shift, size)[..., None]
    picture[y0:y1, x0:x1] += share * (moved - picture[y0:y1, x0:x1])


def draw(
    portraits: Sequence[Portrait],
    moment: float,
    wall: np.ndarray,
    faces: dict[Portrait, np.ndarray],
) -> np.ndarray:
    """The picture at a moment, (H, W, 3) float32. faces: kept between calls."""
    picture = wall.copy()
    for one in portraits:
        if one not in faces:
            faces[one] = head(one.number, one.size)
        hang(picture, faces[one], *one.at(moment), oval=one.sway > 0)
    return picture
