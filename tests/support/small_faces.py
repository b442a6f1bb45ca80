"""Pictures of small upright faces, and how many of them a size of the detector finds at what cost.

PYTHONPATH=tests python -m support.small_faces
"""

from __future__ import annotations

import time
from collections.abc import Callable

import cv2
import numpy as np

from edge.detect import Detector
from edge.inference.loader import open_backend
from edge.inference.weights import resolve
from edge.records import Face
from support.paths import PICTURES

SIZES = ((640, 384), (960, 544), (1280, 736), (1920, 1088))
TILES = "4 tiles"
FACES_PX = (8, 10, 12, 14, 16, 20, 24)
SHAPE = (720, 1280)
# Of tiles, in pixels: wider than the faces that a coarse pass would lose.
SEAM = 64

People = list[tuple[np.ndarray, Face]]
Picture = tuple[np.ndarray, np.ndarray]
Find = Callable[[np.ndarray], list[Face]]


def portraits(detector: Detector) -> People:
    """Read the demo's portraits, each with its largest face."""
    found = []
    for path in sorted(PICTURES.iterdir()):
        picture = cv2.imread(str(path))
        found.append((picture, max(detector.find(picture), key=lambda face: face.size)))
    return found


def shrunk(people: People, px: float, rng: np.random.Generator) -> Picture:
    """Return a whole portrait, side and light varied, whose face has `px` pixels (root of the area),
    and the face's box. It is shrunk by area, as a lens does."""
    picture, face = people[int(rng.integers(len(people)))]
    scale = px * rng.uniform(1.0, 1.05) / face.size
    small = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    x, y, width, height = (float(v) * scale for v in face.box)
    if rng.random() < 0.5:
        small, x = small[:, ::-1], small.shape[1] - x - width
    light = np.clip(small * rng.uniform(0.7, 1.1), 0, 255).astype(np.uint8)
    return light, np.array([x, y, width, height])


def packed(people: People, px: float, rng: np.random.Generator) -> Picture:
    """Fill a picture of SHAPE with portraits side by side, each with its own background: as a room in
    which something is behind everybody. Returns (H, W, 3) uint8 and the faces' boxes (N, 4)."""
    canvas = np.full((*SHAPE, 3), rng.integers(60, 200, 3), np.uint8)
    boxes: list[np.ndarray] = []
    row = 0
    while True:
        left, tallest = int(rng.integers(0, 20)), 0
        while True:
            small, box = shrunk(people, px, rng)
            h, w = small.shape[:2]
            if left + w > SHAPE[1] or row + h > SHAPE[0]:
                break
            canvas[row : row + h, left : left + w] = small
            boxes.append(box + np.array([left, row, 0, 0]))
            left, tallest = left + w + int(rng.integers(2, 20)), max(tallest, h)
        if not tallest:
            return canvas, np.asarray(boxes)
        row += tallest + int(rng.integers(2, 12))


def alone(people: People, px: float, rng: np.random.Generator) -> Picture:
    """Lay one portrait somewhere into an empty picture of SHAPE; returns as `packed`."""
    canvas = np.full((*SHAPE, 3), rng.integers(60, 200, 3), np.uint8)
    small, box = shrunk(people, px, rng)
    h, w = small.shape[:2]
    left, top = int(rng.integers(0, SHAPE[1] - w)), int(rng.integers(0, SHAPE[0] - h))
    canvas[top : top + h, left : left + w] = small
    return canvas, (box + np.array([left, top, 0, 0]))[None]


def hits(found: list[Face], boxes: np.ndarray) -> int:
    """Count the boxes whose centre lies in a found face of like size that no other box took."""
    free, count = list(found), 0
    for left, top, w, h in boxes:
        for at, face in enumerate(free):
            x, y = left + w / 2 - face.box[0], top + h / 2 - face.box[1]
            like = 0.4 < face.size / np.sqrt(w * h) < 2.5
            if 0 <= x <= face.box[2] and 0 <= y <= face.box[3] and like:
                del free[at]
                count += 1
                break
    return count


def tiled(quarter: Detector, whole: Detector) -> Find:
    """Find small faces in four quarters that overlap, and large ones in a coarse pass."""

    def find(picture: np.ndarray) -> list[Face]:
        faces = whole.find(picture)
        height, width = SHAPE[0] // 2, SHAPE[1] // 2
        for y in (0, height - SEAM // 2):
            for x in (0, width - SEAM // 2):
                part = picture[y : y + height + SEAM // 2, x : x + width + SEAM // 2]
                for face in quarter.find(part):
                    box = face.box + np.array([x, y, 0, 0], np.float32)
                    if not hits(faces, box[None]):
                        faces.append(Face(box, face.landmarks, face.score))
        return faces

    return find


def recall(
    find: Find, people: People, make: Callable[..., Picture], px: float, pictures: int
) -> tuple[float, float, int]:
    """Return the share found of faces of `px`, CPU seconds a picture, and the faces' number."""
    rng = np.random.default_rng(round(px))
    seen = total = 0
    spent = 0.0
    for _ in range(pictures):
        picture, boxes = make(people, px, rng)
        began = time.process_time()
        found = find(picture)
        spent += time.process_time() - began
        seen, total = seen + hits(found, boxes), total + len(boxes)
    return seen / total, spent / pictures, total


def main() -> None:
    backend = open_backend("ort", resolve("yunet"), 1)
    people = portraits(Detector(backend, 640, 640, 0.6))
    ways: dict[str, Find] = {f"{w}x{h}": Detector(backend, w, h, 0.6).find for w, h in SIZES}
    ways[TILES] = tiled(Detector(backend, 672, 416, 0.6), Detector(backend, 640, 384, 0.6))
    for make, pictures in ((packed, 3), (alone, 60)):
        print(f"{make.__name__:<10}  CPU ms" + "".join(f"{px:>6} px" for px in FACES_PX))
        for name, find in ways.items():
            rows = [recall(find, people, make, px, pictures) for px in FACES_PX]
            shares = "".join(f"{100 * share:>7.1f} %" for share, _, _ in rows)
            milliseconds = 1000 * sum(spent for _, spent, _ in rows) / len(rows)
            print(f"{name:<10}{milliseconds:>8.1f}{shares}", flush=True)
        print("faces             " + "".join(f"{total:>9}" for _, _, total in rows))


if __name__ == "__main__":
    main()
