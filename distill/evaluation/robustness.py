"""How accuracy falls as an image gets worse, by one change at a time, at stated strengths.

Changes are made to the aligned crop, so that the detector is not measured with them; sides and pixels
are the crop's. Turned heads, masks and sunglasses are made from where the crop's template puts the
five landmarks, so on images without a found face they cannot be made: those are left out of these rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from distill.data.augment import warp
from distill.data.changes import (
    gaussian_blur,
    jpeg,
    side_light,
    through_camera,
    turn,
    wear_mask,
    wear_sunglasses,
)
from distill.data.splits import Split, majority
from distill.progress import Progress

Pixels = NDArray[np.uint8]
Landmarks = Sequence[Sequence[float]]
BATCH = 512  # a multiple of what goes round by row below
# BGR; nothing in training has just these colours, or these forms.
MASKS = ((235, 235, 235), (215, 195, 140), (35, 35, 35), (120, 60, 40))
# Half a lens, width and height in distances between the eyes.
LENSES = ((0.42, 0.30), (0.38, 0.38), (0.45, 0.24), (0.40, 0.34))
FRAME = (25, 25, 25)
SENSOR_NOISE, CAMERA_QUALITY = 5.0, 60  # grey levels, JPEG


def _resized(faces: Tensor, side: float) -> Tensor:
    """Shrink with a filter as wide as the ratio, and enlarge as the node's warp does."""
    size = (int(side), int(side))
    small = functional.interpolate(faces, size=size, mode="bilinear", antialias=True)
    return functional.interpolate(small, size=faces.shape[-2:], mode="bilinear")


def _noisy(faces: Tensor, deviation: float) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return faces + deviation * torch.randn(faces.shape, generator=generator)


def _dark(faces: Tensor, gain: float) -> Tensor:
    """Dim the light; a sensor's read noise of two grey levels stays."""
    return _noisy(faces * gain, 2.0)


def _turned(faces: Tensor, degrees: float) -> Tensor:
    """Rotate half of the images to each side."""
    signs = 1 - 2 * (torch.arange(len(faces)) % 2).float()
    angle = signs * math.radians(degrees)
    zero = torch.zeros_like(angle)
    rows = [
        torch.stack([angle.cos(), -angle.sin(), zero], dim=1),
        torch.stack([angle.sin(), angle.cos(), zero], dim=1),
    ]
    return warp(faces, torch.stack(rows, dim=1))


def _covered(faces: Tensor, share: float) -> Tensor:
    """Lay a grey square over `share` of the image's area, at a random place wholly inside."""
    size = faces.shape[-1]
    side = round(size * share**0.5)
    corners = torch.randint(
        0, size - side + 1, (len(faces), 2, 1), generator=torch.Generator().manual_seed(0)
    )
    place = torch.arange(size)
    inside = (place >= corners) & (place < corners + side)  # (B, 2, S)
    return torch.where(inside[:, None, 0, :, None] & inside[:, None, 1, None, :], 128.0, faces)


def _round_and_round(values: Sequence[Sequence[float]], count: int) -> Tensor:
    """Repeat values by row, (count, len of one)."""
    return torch.tensor(values, dtype=torch.float32)[torch.arange(count) % len(values)]


def _yaw(faces: Tensor, degrees: float, landmarks: Tensor) -> Tensor:
    """Turn half of the heads to each side."""
    signs = 1 - 2 * (torch.arange(len(faces)) % 2).float()
    return turn(faces, landmarks, signs * degrees)


def _masked(faces: Tensor, covered: float, landmarks: Tensor) -> Tensor:
    count = len(faces)
    return wear_mask(
        faces, landmarks, _round_and_round(MASKS, count), torch.full((count,), covered)
    )


def _in_sunglasses(faces: Tensor, passes: float, landmarks: Tensor) -> Tensor:
    count = len(faces)
    width, height = _round_and_round(LENSES, count).unbind(dim=1)
    light = torch.full((count,), passes)
    return wear_sunglasses(faces, landmarks, _round_and_round([FRAME], count), light, width, height)


def _from_one_side(faces: Tensor, ratio: float) -> Tensor:
    """Put the light to the right of half of the faces, to the left of the others."""
    degrees = 180.0 * (torch.arange(len(faces)) % 2)
    return side_light(faces, torch.full((len(faces),), ratio), degrees)


def _camera(faces: Tensor, side: float) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return through_camera(faces, int(side), SENSOR_NOISE, CAMERA_QUALITY, generator)


@dataclass(frozen=True, slots=True)
class Change:
    """name; unit of its strengths, mildest first; apply: (B, C, S, S) of 0..255 and a strength, or
    by_landmarks: these and where the five landmarks lie, (5, 2)."""

    name: str
    unit: str
    strengths: tuple[float, ...]
    apply: Callable[[Tensor, float], Tensor] | None = None
    by_landmarks: Callable[[Tensor, float, Tensor], Tensor] | None = None


CHANGES = (
    Change("face size", "px a side", (48, 32, 24, 16), _resized),
    Change("camera", "px a side", (32, 24, 16, 12), _camera),
    Change("blur", "px deviation", (1, 2, 3), gaussian_blur),
    Change("noise", "grey levels deviation", (10, 20, 40), _noisy),
    Change("darkness", "of the light", (0.5, 0.25, 0.1), _dark),
    Change("side light", "times the dark side", (4, 16, 64), _from_one_side),
    Change("JPEG", "quality", (50, 20, 10), lambda faces, q: jpeg(faces, int(q))),
    Change("rotation", "degrees", (10, 20, 30), _turned),
    Change("yaw", "degrees", (15, 30, 45), by_landmarks=_yaw),
    Change("occlusion", "of the area", (0.1, 0.2, 0.3), _covered),
    Change("mask", "of mouth to eyes", (0.35, 0.5, 0.65), by_landmarks=_masked),
    Change("sunglasses", "of the light passes", (0.4, 0.15, 0.05), by_landmarks=_in_sunglasses),
)


def corrupted(pixels: Pixels, change: Change, strength: float, landmarks: Landmarks) -> Pixels:
    """Change (N, C, S, S) uint8. landmarks: of the crop's template, five pairs x, y in pixels."""
    parts = []
    points = torch.tensor(landmarks, dtype=torch.float32)
    for start in range(0, len(pixels), BATCH):
        faces = torch.from_numpy(np.array(pixels[start : start + BATCH])).float()
        if change.by_landmarks:
            worse = change.by_landmarks(faces, strength, points)
        else:
            assert change.apply
            worse = change.apply(faces, strength)
        parts.append(worse.round().clamp(0, 255).to(torch.uint8).numpy())
    return np.concatenate(parts)


def _harder(change: Change, side: int) -> list[float]:
    """Leave out face sizes that are no smaller than crops of that side: those rows would be the plain
    images once more, and lift the mean."""
    return [s for s in change.strengths if change.apply is not _resized or s < side]


def measure(
    split: Split,
    landmarks: Landmarks,
    predict: Callable[[Pixels], NDArray[np.float64]],
    progress: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Measure accuracy by the majority's label for every change and strength, the plain images first.

    landmarks: as for `corrupted`; predict: crops (N, C, S, S) uint8 to probabilities (N, K). Each row
    has, of the n images on which its change can be made, `accuracy` and `plain`, without the change.
    Where no image has a found face, what needs one has no row, and progress says so."""
    truth = majority(split.votes, len(split.labels))
    labelled, found = np.flatnonzero(truth >= 0), split.crops.found[truth >= 0]
    pixels: Pixels = split.crops.pixels[labelled]
    truth = truth[labelled]

    hit = predict(pixels).argmax(axis=1) == truth
    plain = round(float(hit.mean()), 5)
    rows: list[dict[str, Any]] = [
        {"change": "none", "strength": None, "unit": "", "accuracy": plain, "n": len(truth)}
    ]
    if unfound := int((~found).sum()):
        names = ", ".join(change.name for change in CHANGES if change.by_landmarks)
        progress(
            f"robustness: {unfound} of {len(truth)} images have no found face: without {names}"
        )
    every = np.ones(len(truth), dtype=bool)
    possible = [
        (change, _harder(change, pixels.shape[-1]))
        for change in CHANGES
        if found.any() or not change.by_landmarks
    ]
    total = sum(len(strengths) for _, strengths in possible)
    with Progress("robustness", total, "changes") as bar:
        for change, strengths in possible:
            able = found if change.by_landmarks else every
            for strength in strengths:
                answers = predict(corrupted(pixels[able], change, strength, landmarks))
                rows.append(
                    {
                        "change": change.name,
                        "strength": strength,
                        "unit": change.unit,
                        "accuracy": round(float((answers.argmax(axis=1) == truth[able]).mean()), 5),
                        "plain": round(float(hit[able].mean()), 5),
                        "n": int(able.sum()),
                    }
                )
                bar.advance(note=change.name)
    return rows


def mean_accuracy(rows: Sequence[dict[str, Any]]) -> float:
    """Return the mean accuracy over all changes and strengths, each of which weighs the same."""
    return float(np.mean([row["accuracy"] for row in rows[1:]]))


def worst(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the row that loses most against the plain images."""
    return max(rows[1:], key=lambda row: lost(row, rows))


def lost(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> float:
    """Return by how much a row lies below the same images without the change; rows of older bundles
    are all of all images."""
    return float(row.get("plain", rows[0]["accuracy"]) - row["accuracy"])


def describe(row: dict[str, Any]) -> str:
    return f"{row['change']} at {row['strength']:g} {row['unit']}"


def table(rows: list[dict[str, Any]]) -> str:
    """Format a line a change, for a terminal of 80 columns."""
    lines = [f"robustness, accuracy   plain {100 * rows[0]['accuracy']:.2f} %"]
    for change in CHANGES:
        own = [row for row in rows if row["change"] == change.name]
        cells = [f"{row['strength']:g}: {100 * row['accuracy']:.1f}" for row in own]
        lines.append(
            f"  {change.name:10} {change.unit:22} " + "  ".join(cells or ["no face found"])
        )
    bad = worst(rows)
    lines.append(
        f"  mean of {len(rows) - 1} rows {100 * mean_accuracy(rows):.2f} %; most is lost to\n"
        f"  {describe(bad)}: {100 * lost(bad, rows):.1f} points"
    )
    return "\n".join(lines)
