"""Draw people who do not exist, with an expression between any two.

Lengths are in half heads: the head of a person is two high, its middle is at (0, 0), y goes down.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

SIDE = 400  # of the canvas, in pixels; the head is half as high
UNIT = SIDE / 4
HEAD = 2 * UNIT

Canvas = NDArray[np.float32]
Colour = tuple[float, float, float]  # BGR, 0 to 255


@dataclass(frozen=True)
class Person:
    """Somebody's colours, and how far the fringe comes down."""

    skin: Colour
    hair: Colour
    shirt: Colour
    fringe: float = 0.5


@dataclass(frozen=True)
class Expression:
    """Where brows, eyes and mouth are. brow_in, brow_out: how far its ends are raised; eye: height of
    the opening, 1 as usual; bend: how far the corners of the mouth hang (negative: rise); up, down:
    how far its lips are apart from their middle; teeth: how much of the mouth they fill."""

    brow_in: float
    brow_out: float
    brow_thick: float
    eye: float
    mouth_width: float
    bend: float
    up: float
    down: float
    teeth: float

    def towards(self, other: Expression, part: float) -> Expression:
        """Return the one between: this at part 0, the other at 1."""
        pairs = zip(astuple(self), astuple(other), strict=True)
        return Expression(*(a + (b - a) * part for a, b in pairs))

    def blinking(self) -> Expression:
        return replace(self, eye=0.08)


NEUTRAL = Expression(-0.06, -0.06, 0.035, 0.62, 0.25, -0.02, 0.0, 0.0, 0.0)
HAPPY = Expression(-0.01, 0.00, 0.030, 0.62, 0.34, -0.16, 0.0, 0.15, 1.0)
SURPRISED = Expression(0.16, 0.14, 0.035, 1.55, 0.16, 0.0, 0.20, 0.22, 0.15)
SAD = Expression(0.12, -0.10, 0.030, 0.55, 0.26, 0.12, 0.0, 0.0, 0.0)
ANGRY = Expression(-0.18, 0.08, 0.055, 0.60, 0.23, 0.12, 0.06, 0.07, 1.0)

MOUTH_Y, EYE_X, EYE_Y, EYE_WIDTH = 0.58, 0.30, -0.06, 0.145


def _pixels(points: NDArray[np.float64]) -> NDArray[np.int32]:
    """Canvas positions, in sixteenths of a pixel."""
    return np.asarray(np.round((points * UNIT + SIDE / 2) * 16), dtype=np.int32)


def _paint(
    canvas: Canvas, draw: Callable[[NDArray[np.uint8]], object], colour: Colour | NDArray[np.float32],
    soft: float = 0.012, strength: float = 1.0,
) -> None:  # fmt: skip
    """Lay a colour over what `draw` fills with 255, with an edge so soft (half heads)."""
    stencil = np.zeros((SIDE, SIDE), np.uint8)
    draw(stencil)
    mask = cv2.GaussianBlur(stencil, (0, 0), soft * UNIT).astype(np.float32)[:, :, None]
    mask *= strength / 255
    canvas += mask * (np.asarray(colour, np.float32) - canvas)


def _oval(x: float, y: float, rx: float, ry: float) -> Callable[[NDArray[np.uint8]], object]:
    turn = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    return _area(np.stack([x + rx * np.cos(turn), y + ry * np.sin(turn)], 1))


def _area(points: NDArray[np.float64]) -> Callable[[NDArray[np.uint8]], object]:
    return lambda stencil: cv2.fillPoly(stencil, [_pixels(points)], (255,), cv2.LINE_AA, 4)


def _stroke(points: NDArray[np.float64], thick: float) -> Callable[[NDArray[np.uint8]], object]:
    width = max(1, round(2 * thick * UNIT))
    return lambda stencil: cv2.polylines(
        stencil, [_pixels(points)], False, (255,), width, cv2.LINE_AA, 4
    )


def _times(colour: Colour, factor: float) -> Colour:
    blue, green, red = colour
    return (
        min(blue * factor, 255.0),
        min(green * factor, 255.0),
        min(red * factor, 255.0),
    )


def draw(person: Person, expression: Expression) -> tuple[Canvas, Canvas]:
    """Return head and shoulders (SIDE, SIDE, 3) float32 BGR, 0 to 255, and what of it is the person
    (SIDE, SIDE, 1), 0 to 1."""
    canvas = np.zeros((SIDE, SIDE, 3), np.float32)
    whole = np.zeros((SIDE, SIDE, 3), np.float32)
    for shape, colour, soft in (
        (_oval(0, -0.12, 0.86, 1.02), person.hair, 0.03),
        (_oval(0, 1.0, 0.34, 0.5), _times(person.skin, 0.78), 0.02),
        (_oval(0, 1.95, 1.1, 0.85), person.shirt, 0.02),
    ):
        _paint(canvas, shape, colour, soft)
        _paint(whole, shape, (1.0, 1.0, 1.0), soft)
    for side in (-1, 1):
        _paint(canvas, _oval(side * 0.70, 0.05, 0.07, 0.17), _times(person.skin, 0.85))
    _draw_head(canvas, person)
    for side in (-1, 1):
        _draw_eye(canvas, person, expression, side)
    _draw_nose(canvas, person.skin)
    _draw_mouth(canvas, person.skin, expression)
    return canvas, whole[:, :, :1]


def _draw_head(canvas: Canvas, person: Person) -> None:
    y, x = (np.mgrid[0:SIDE, 0:SIDE].astype(np.float32) - SIDE / 2) / UNIT
    shade = 1.08 - 0.3 * (x / 0.7) ** 2 - 0.1 * np.clip(y, 0, 1) ** 2 - 0.12 * np.maximum(x, 0)
    skin = np.asarray(person.skin, np.float32) * np.clip(shade, 0.4, 1.2)[:, :, None]
    turn = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    height = 0.02 + 0.93 * np.sin(turn)
    width = 0.70 - 0.16 * np.clip(height, 0, 1) ** 2  # the chin is narrower
    _paint(canvas, _area(np.stack([width * np.cos(turn), height], 1)), skin, 0.025)
    across = np.linspace(-0.72, 0.72, 30)
    fringe = np.stack([across, -person.fringe - 0.10 * np.cos(3 * across)], 1)
    over = np.stack([across[::-1], -1.02 * np.sqrt(1 - (across[::-1] / 0.80) ** 2)], 1)
    _paint(canvas, _area(np.concatenate([fringe, over])), _times(person.hair, 0.95), 0.03)


def _draw_eye(canvas: Canvas, person: Person, expression: Expression, side: int) -> None:
    x, height = side * EYE_X, 0.085 * expression.eye
    _paint(canvas, _oval(x, EYE_Y - 0.02, 0.20, 0.14), _times(person.skin, 0.5), 0.08, 0.25)
    white = _oval(x, EYE_Y, EYE_WIDTH, height)
    _paint(canvas, white, (232, 236, 238), 0.008)
    opening = np.zeros((SIDE, SIDE), np.uint8)
    white(opening)
    for radius, colour in ((0.075, (50.0, 60.0, 80.0)), (0.035, (10.0, 10.0, 12.0))):

        def iris(stencil: NDArray[np.uint8], radius: float = radius) -> None:
            _oval(x, EYE_Y, radius, radius)(stencil)
            np.minimum(stencil, opening, out=stencil)

        _paint(canvas, iris, colour, 0.008)
    if expression.eye > 0.3:
        _paint(canvas, _oval(x - 0.02, EYE_Y - 0.025, 0.014, 0.014), (250, 250, 250), 0.005)
    turn = np.linspace(np.pi, 2 * np.pi, 30)
    lid = np.stack([x + EYE_WIDTH * np.cos(turn), EYE_Y + height * np.sin(turn)], 1)
    _paint(canvas, _stroke(lid, 0.016), _times(person.skin, 0.28))
    lid[:, 1] = 2 * EYE_Y - lid[:, 1]
    _paint(canvas, _stroke(lid, 0.008), _times(person.skin, 0.5), strength=0.5)

    along = np.linspace(0, 1, 30)  # from the nose outwards
    raised = expression.brow_in + (expression.brow_out - expression.brow_in) * along
    height_of_brow = -0.27 - raised - 0.045 * np.sin(np.pi * along)
    brow = np.stack([side * (0.12 + 0.36 * along), height_of_brow], 1)
    _paint(canvas, _stroke(brow, expression.brow_thick), _times(person.hair, 0.8), strength=0.9)


def _draw_nose(canvas: Canvas, skin: Colour) -> None:
    _paint(canvas, _oval(0.07, 0.14, 0.05, 0.22), _times(skin, 0.6), 0.05, 0.35)
    _paint(canvas, _oval(-0.02, 0.10, 0.04, 0.20), _times(skin, 1.25), 0.05, 0.30)
    _paint(canvas, _oval(0, 0.31, 0.13, 0.05), _times(skin, 0.62), 0.04, 0.30)
    for side in (-1, 1):
        _paint(canvas, _oval(side * 0.065, 0.30, 0.034, 0.02), _times(skin, 0.35), 0.015, 0.8)


def _draw_mouth(canvas: Canvas, skin: Colour, expression: Expression) -> None:
    across = np.linspace(-1, 1, 41)
    x, arch = expression.mouth_width * across, np.sqrt(1 - across**2)
    middle = MOUTH_Y + expression.bend * (across**2 - 0.5)
    upper = np.stack([x, middle - expression.up * arch], 1)
    lower = np.stack([x, middle + expression.down * arch], 1)
    lips = (skin[0] * 0.68, skin[1] * 0.60, skin[2] * 0.88)
    inside = np.concatenate([upper, lower[::-1]])
    _paint(canvas, _area(inside), lips)
    for edge in (upper, lower):
        _paint(canvas, _stroke(edge, 0.045), lips, 0.02)
    gap = min((expression.up + expression.down) / 0.08, 1.0)
    _paint(canvas, _area(inside), (30, 18, 45), strength=gap)
    below = np.stack([x, upper[:, 1] + expression.teeth * (lower[:, 1] - upper[:, 1])], 1)
    _paint(canvas, _area(np.concatenate([upper, below[::-1]])), (228, 232, 234), strength=gap)
    _paint(canvas, _stroke((upper + lower) / 2, 0.014), _times(skin, 0.28), strength=1 - gap)
    if abs(expression.bend) > 0.05:  # the folds beside it
        slope = 1.25 if expression.bend < 0 else 1.5
        for side in (-1, 1):
            out = np.linspace(0.18, 0.37, 20)
            fold = np.stack([side * out, 0.29 + (out - 0.17) * slope], 1)
            _paint(canvas, _stroke(fold, 0.012), _times(skin, 0.5), 0.02, 0.45)
