"""Make `demo/classroom.mp4` from the public-domain portraits in `demo/pictures`.

    python demo/make_clip.py [OUT]

25 seconds, 640x480, 30 frames/s: seven people from the start, two more entering, two crossing, one
dark, one out of focus, large and small; from 17 s on people leave until three are left, so that a
subscriber sees both published and suppressed windows.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

HERE = Path(__file__).parent
WIDTH, HEIGHT, FPS, SECONDS = 640, 480, 30, 25
SLIDE_SECONDS = 1.5

# Face boxes in the pictures (left, top, width, height), read off once with the detector.
FACES = {
    "astronaut.png": (179, 63, 91, 111),
    "portrait-1.jpg": (371, 91, 241, 329),
    "portrait-2.jpg": (643, 273, 265, 345),
    "portrait-3.jpg": (427, 176, 287, 399),
}


@dataclass(frozen=True)
class Actor:
    """One person. x, y: centre of the face in pixels; size: height of the face; enter, leave:
    seconds at which the slide in or out begins (None: there from the start, or to the end)."""

    picture: str
    size: int
    x: float
    y: float
    enter: float | None = None
    leave: float | None = None
    side: int = 1
    mirror: bool = False
    gain: float = 1.0
    blur: float = 0.0
    walk_to: float | None = None

    def present(self, t: float) -> bool:
        """Any part of the person in the picture, or just outside."""
        here = self.enter is None or t >= self.enter
        return here and (self.leave is None or t < self.leave + SLIDE_SECONDS)

    def place(self, t: float) -> tuple[float, float]:
        x, y = self.x, self.y
        if self.walk_to is not None:  # crosses the room between 7 s and 12 s
            x += (self.walk_to - x) * min(max((t - 7) / 5, 0), 1)
        x += 5 * math.sin(1.1 * t + self.size)
        y += 3 * math.sin(1.7 * t + self.x)
        outside = WIDTH + 1.5 * self.size if self.side > 0 else -1.5 * self.size
        if self.enter is not None:
            x = outside + (x - outside) * min(max((t - self.enter) / SLIDE_SECONDS, 0), 1)
        if self.leave is not None:
            x += (outside - x) * min(max((t - self.leave) / SLIDE_SECONDS, 0), 1)
        return x, y


# Painted in this order: who stands later is nearer.
ACTORS = (
    Actor("portrait-1.jpg", 34, 250, 120),
    Actor("astronaut.png", 40, 500, 130, mirror=True, leave=19.0),
    Actor("portrait-2.jpg", 46, 110, 150, leave=17.5, side=-1),
    Actor("portrait-3.jpg", 60, 390, 215, enter=3.0, leave=18.0),
    Actor("astronaut.png", 66, 180, 260, walk_to=470.0),
    Actor("portrait-1.jpg", 72, 480, 285, mirror=True, walk_to=200.0, leave=17.0, side=-1),
    Actor("portrait-2.jpg", 84, 330, 360, mirror=True, gain=0.45),
    Actor("astronaut.png", 90, 545, 390, enter=6.0, leave=20.0, blur=1.6),
    Actor("portrait-3.jpg", 96, 95, 385, mirror=True, leave=18.5, side=-1),
)


def stamp(actor: Actor) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Head of an actor at its size (H, W, 3), and its soft oval mask (H, W, 1)."""
    picture = cv2.imread(str(HERE / "pictures" / actor.picture))
    if picture is None:
        sys.exit(f"make_clip: {HERE / 'pictures' / actor.picture} is missing")
    left, top, width, height = FACES[actor.picture]
    margin_x, margin_y = int(0.45 * height), int(0.4 * height)
    cut = picture[
        max(top - margin_y, 0) : top + height + margin_y,
        max(left - margin_x, 0) : left + width + margin_x,
    ]
    scale = actor.size / height
    head = cv2.resize(cut, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    head = head[:, ::-1] if actor.mirror else head
    if actor.blur:
        head = cv2.GaussianBlur(head, (0, 0), actor.blur)
    h, w = head.shape[:2]
    y, x = np.mgrid[0:h, 0:w].astype(np.float32)
    distance = np.sqrt(((x - w / 2) / (w / 2)) ** 2 + ((y - h / 2) / (h / 2)) ** 2)
    mask = np.clip((1.0 - distance) / 0.12, 0, 1)[:, :, None]
    return head.astype(np.float32) * actor.gain, mask.astype(np.float32)


def backdrop() -> NDArray[np.float32]:
    """A plain wall with a board and desks."""
    wall = np.linspace(176, 138, HEIGHT, dtype=np.float32)[:, None, None]
    room = np.repeat(np.repeat(wall, WIDTH, axis=1), 3, axis=2) * np.array([0.95, 0.98, 1.0])
    room = np.ascontiguousarray(room.astype(np.float32))
    cv2.rectangle(room, (170, 15), (470, 75), (78, 92, 70), -1)
    for y in (205, 320, 445):
        cv2.rectangle(room, (0, y), (WIDTH, y + 14), (96, 126, 158), -1)
    return np.asarray(cv2.GaussianBlur(room, (0, 0), 2), dtype=np.float32)


def paint(
    room: NDArray[np.float32],
    stamps: list[tuple[NDArray[np.float32], NDArray[np.float32]]],
    t: float,
) -> NDArray[np.uint8]:
    """The picture at t seconds, (480, 640, 3) uint8 BGR."""
    picture = room.copy()
    for actor, (head, mask) in zip(ACTORS, stamps, strict=True):
        if not actor.present(t):
            continue
        x, y = actor.place(t)
        h, w = head.shape[:2]
        left, top = round(x - w / 2), round(y - h / 2)
        x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + w, WIDTH), min(top + h, HEIGHT)
        if x0 >= x1 or y0 >= y1:
            continue
        part = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
        picture[y0:y1, x0:x1] += mask[part] * (head[part] - picture[y0:y1, x0:x1])
    return np.asarray(np.clip(picture, 0, 255), dtype=np.uint8)


def main() -> None:
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "classroom.mp4"
    code = {".mp4": "mp4v", ".webm": "VP90"}.get(out.suffix)
    if code is None:
        sys.exit(f"make_clip: {out}: give a name that ends in .mp4 or .webm")
    room, stamps = backdrop(), [stamp(actor) for actor in ACTORS]
    writer = cv2.VideoWriter(str(out), cv2.VideoWriter.fourcc(*code), FPS, (WIDTH, HEIGHT))
    for index in range(FPS * SECONDS):
        writer.write(paint(room, stamps, index / FPS))
    writer.release()
    print(f"{out}: {FPS * SECONDS} pictures, {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
