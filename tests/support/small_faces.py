"""Pictures of small upright faces, and how many of them a size of the detector finds at what cost.

PYTHONPATH=tests python -m support.small_faces
"""

from __future__ import annotations

import time

import cv2
import numpy as np

from edge.detect import Detector
from edge.inference.loader import open_backend
from edge.inference.weights import resolve
from edge.records import Face
from support.paths import PICTURES

SIZES = ((640, 384), (640, 480), (960, 544), (1280, 736), (1920, 1088))
FACES_PX = (8, 10, 12, 14, 16, 20, 24, 32)
SHAPE = (720, 1280)


def portraits(detector: Detector) -> list[tuple[np.ndarray, Face]]:
    """Read the demo's portraits, each with its largest face."""
    found = []
    for path in sorted(PICTURES.iterdir()):
        picture = cv2.imread(str(path))
        found.append((picture, max(detector.find(picture), key=lambda face: face.size)))
    return found


def crowd(
    people: list[tuple[np.ndarray, Face]], px: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Fill a picture of SHAPE with whole portraits whose faces have `px` pixels (root of the area).

    They are shrunk by area, as a lens does; side, light and place vary. Returns (H, W, 3) uint8 and
    the faces' boxes (N, 4): left, top, width, height."""
    canvas = np.full((*SHAPE, 3), rng.integers(60, 200, 3), np.uint8)
    boxes: list[list[float]] = []
    row = 0
    while True:
        left, tallest = int(rng.integers(0, 20)), 0
        while True:
            picture, face = people[int(rng.integers(len(people)))]
            scale = px * rng.uniform(1.0, 1.05) / face.size
            small = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            h, w = small.shape[:2]
            if left + w > SHAPE[1] or row + h > SHAPE[0]:
                break
            x, y, width, height = (float(v) * scale for v in face.box)
            if rng.random() < 0.5:
                small, x = small[:, ::-1], w - x - width
            light = np.clip(small * rng.uniform(0.7, 1.1), 0, 255).astype(np.uint8)
            canvas[row : row + h, left : left + w] = light
            boxes.append([left + x, row + y, width, height])
            left, tallest = left + w + int(rng.integers(2, 20)), max(tallest, h)
        if not tallest:
            return canvas, np.asarray(boxes)
        row += tallest + int(rng.integers(2, 12))


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


def recall(detector: Detector, px: float, pictures: int = 3) -> tuple[float, float, int]:
    """Return the share found of faces of `px`, CPU seconds a picture, and the faces' number."""
    width, height = detector.width, detector.height
    detector.width, detector.height = 640, 640
    people, rng = portraits(detector), np.random.default_rng(round(px))
    detector.width, detector.height = width, height
    seen = total = 0
    spent = 0.0
    for _ in range(pictures):
        picture, boxes = crowd(people, px, rng)
        began = time.process_time()
        found = detector.find(picture)
        spent += time.process_time() - began
        seen, total = seen + hits(found, boxes), total + len(boxes)
    return seen / total, spent / pictures, total


def main() -> None:
    backend = open_backend("ort", resolve("yunet"), 1)
    print("detector   CPU ms" + "".join(f"{px:>6} px" for px in FACES_PX))
    for size in SIZES:
        rows = [recall(Detector(backend, *size, 0.6), px) for px in FACES_PX]
        shares = "".join(f"{100 * share:>7.1f} %" for share, _, _ in rows)
        milliseconds = 1000 * sum(spent for _, spent, _ in rows) / len(rows)
        print(f"{size[0]}x{size[1]:<6}{milliseconds:>7.1f}{shares}", flush=True)
    print("faces            " + "".join(f"{total:>9}" for _, _, total in rows))


if __name__ == "__main__":
    main()
