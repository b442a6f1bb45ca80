"""Make `demo/classroom.mp4`: a class of drawn people whose expressions change.

    python demo/make_clip.py [OUT]

25 seconds, 640x480, 30 frames/s: seven people from the start, two more entering, two crossing, one
dark, one out of focus, large and small. They look on, are surprised at 6 s, laugh from 9 s and divide
at 14 s; from 17 s on people leave until three are left, so that a subscriber sees both published and
suppressed windows.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import faces
import numpy as np
from faces import ANGRY, HAPPY, NEUTRAL, SAD, SURPRISED, Expression, Person
from numpy.typing import NDArray

HERE = Path(__file__).parent
WIDTH, HEIGHT, FPS, SECONDS = 640, 480, 30, 25
SLIDE_SECONDS = 1.5
CHANGE_SECONDS, CHANGE_STEPS = 0.6, 8
BLINK_SECONDS = 0.13
FACE = 0.8 * faces.HEAD  # the detector's box ends at the brow

PEOPLE = (
    Person((150, 180, 222), (30, 40, 55), (160, 70, 30)),
    Person((95, 125, 175), (15, 18, 22), (130, 130, 40), 0.45),
    Person((170, 195, 235), (60, 110, 150), (110, 70, 100), 0.6),
    Person((60, 85, 130), (12, 12, 15), (70, 60, 130), 0.55),
    Person((125, 160, 205), (18, 22, 30), (60, 110, 60), 0.62),
    Person((160, 185, 228), (40, 60, 120), (80, 80, 80), 0.5),
    Person((80, 108, 155), (20, 18, 20), (150, 150, 160), 0.6),
    Person((140, 172, 215), (90, 95, 100), (40, 60, 150), 0.45),
    Person((165, 190, 230), (25, 50, 85), (120, 60, 60), 0.55),
)

Moods = tuple[tuple[float, Expression], ...]


@dataclass(frozen=True)
class Actor:
    """One person. x, y: centre of the face in pixels; size: height of the face; moods: from which
    second on which expression; enter, leave: seconds at which the slide in or out begins (None: there
    from the start, or to the end)."""

    person: Person
    size: int
    x: float
    y: float
    moods: Moods
    enter: float | None = None
    leave: float | None = None
    side: int = 1
    gain: float = 1.0
    blur: float = 0.0
    walk_to: float | None = None

    def present(self, t: float) -> bool:
        """Any part of the person in the picture, or just outside."""
        here = self.enter is None or t >= self.enter
        return here and (self.leave is None or t < self.leave + SLIDE_SECONDS)

    def expression(self, t: float) -> Expression:
        """The one of the moment, between two in steps; the eyes close for a moment, too."""
        now = self.moods[0][1]
        for since, mood in self.moods[1:]:
            part = min(max((t - since) / CHANGE_SECONDS, 0), 1)
            now = now.towards(mood, round(part * CHANGE_STEPS) / CHANGE_STEPS)
        return now.blinking() if (t + self.x) % (3 + self.size / 50) < BLINK_SECONDS else now

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
    Actor(PEOPLE[0], 34, 250, 120, ((0, NEUTRAL), (6.2, SURPRISED), (9, HAPPY), (14, NEUTRAL))),
    Actor(PEOPLE[1], 40, 500, 130, ((0, HAPPY), (6, SURPRISED), (9.5, HAPPY)), leave=19.0),
    Actor(PEOPLE[6], 46, 110, 150, ((0, NEUTRAL), (10, HAPPY), (14.5, SAD)), leave=17.5, side=-1),
    Actor(PEOPLE[3], 60, 390, 215, ((0, NEUTRAL), (6.4, SURPRISED), (9.2, HAPPY)), 3.0, 18.0),
    Actor(
        PEOPLE[4], 66, 180, 260, ((0, HAPPY), (6, SURPRISED), (9, HAPPY), (15, ANGRY), (20, NEUTRAL)),
        walk_to=470.0,
    ),
    Actor(
        PEOPLE[5], 72, 480, 285, ((0, NEUTRAL), (6.3, SURPRISED), (10, NEUTRAL), (14, SAD)),
        leave=17.0, side=-1, walk_to=200.0,
    ),
    Actor(
        PEOPLE[2], 84, 330, 360, ((0, NEUTRAL), (6.1, SURPRISED), (9.3, HAPPY), (21, SURPRISED)),
        gain=0.45,
    ),
    Actor(PEOPLE[7], 90, 545, 390, ((0, HAPPY), (8, NEUTRAL), (14.2, ANGRY)), 6.0, 20.0, blur=1.6),
    Actor(PEOPLE[8], 96, 95, 385, ((0, SAD), (7, SURPRISED), (9.6, HAPPY)), leave=18.5, side=-1),
)  # fmt: skip


@cache
def stamp(actor: Actor, expression: Expression) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Head and shoulders of an actor at its size (H, W, 3), and what of it is the actor (H, W, 1)."""
    scale = actor.size / FACE
    head, mask = (
        cv2.resize(part, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        for part in faces.draw(actor.person, expression)
    )
    if actor.blur:
        head = cv2.GaussianBlur(head, (0, 0), actor.blur)
    return np.asarray(head * actor.gain, np.float32), mask.astype(np.float32)[:, :, None]


def backdrop() -> NDArray[np.float32]:
    """A wall with a board, a window, a map, a clock, a shelf, and desks. What stands tells the node who
    moves: it needs marks."""
    wall = np.linspace(176, 138, HEIGHT, dtype=np.float32)[:, None, None]
    room = np.repeat(np.repeat(wall, WIDTH, axis=1), 3, axis=2) * np.array([0.95, 0.98, 1.0])
    room = np.ascontiguousarray(room.astype(np.float32))
    random = np.random.default_rng(0)
    cv2.rectangle(room, (170, 15), (470, 75), (78, 92, 70), -1)
    for row in range(3):  # words on the board
        x = 185
        while x < 430:
            width = int(random.integers(10, 34))
            cv2.line(room, (x, 28 + 16 * row), (x + width, 28 + 16 * row), (190, 200, 190), 2)
            x += width + 9
    cv2.rectangle(room, (20, 10), (120, 100), (235, 225, 205), -1)
    for x in (20, 70, 120):
        cv2.line(room, (x, 10), (x, 100), (120, 130, 140), 4)
    for y in (10, 55, 100):
        cv2.line(room, (20, y), (120, y), (120, 130, 140), 4)
    cv2.circle(room, (145, 28), 13, (235, 235, 235), -1)
    cv2.line(room, (145, 28), (145, 19), (30, 30, 30), 2)
    cv2.line(room, (145, 28), (152, 31), (30, 30, 30), 2)
    cv2.rectangle(room, (500, 15), (545, 70), (190, 160, 110), -1)
    for x, y, rx, ry in ((512, 30, 8, 9), (530, 38, 9, 12), (518, 55, 7, 6)):
        cv2.ellipse(room, (x, y), (rx, ry), 20, 0, 360, (90, 140, 100), -1)
    for x in range(562, 632, 7):
        height = int(random.integers(24, 40))
        colour = tuple(float(v) for v in random.integers(50, 190, 3))
        cv2.rectangle(room, (x, 62 - height), (x + 5, 62), colour, -1)
    cv2.rectangle(room, (556, 62), (636, 67), (70, 95, 125), -1)
    for y in (205, 320, 445):
        cv2.rectangle(room, (0, y), (WIDTH, y + 14), (96, 126, 158), -1)
        for x in range(25, WIDTH, 107):
            cv2.rectangle(
                room, (x, y - 7), (x + 22, y - 1), (225, 228, 232), -1
            )  # a sheet of paper
            cv2.rectangle(room, (x + 60, y + 14), (x + 68, y + 60), (80, 100, 124), -1)
    return np.asarray(cv2.GaussianBlur(room, (0, 0), 1.2), dtype=np.float32)


def paint(room: NDArray[np.float32], t: float) -> NDArray[np.uint8]:
    """The picture at t seconds, (480, 640, 3) uint8 BGR."""
    picture = room.copy()
    for actor in ACTORS:
        if not actor.present(t):
            continue
        head, mask = stamp(actor, actor.expression(t))
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
    room = backdrop()
    writer = cv2.VideoWriter(str(out), cv2.VideoWriter.fourcc(*code), FPS, (WIDTH, HEIGHT))
    for index in range(FPS * SECONDS):
        writer.write(paint(room, index / FPS))
    writer.release()
    print(f"{out}: {FPS * SECONDS} pictures, {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
