"""Cut faces from five landmarks to the student's input: the one crop that training and node share.

Alignment decides more accuracy than architecture does, so laboratory and node call this very
function; the template and the size come from the bundle.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.inference.bundle import CropSpec
from edge.records import Face


def similarity(points: NDArray[np.float32], template: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the least-squares similarity (rotation, one scale, shift) that takes points to template.

    points, template: (P, 2). Returns (2, 3) float64. Umeyama 1991, which has a closed form
    in the plane: with complex z (points) and w (template), both centred, the rotation and
    scale are sum(conj(z) w) / sum(|z|^2).
    """
    z = points[:, 0].astype(np.float64) + 1j * points[:, 1].astype(np.float64)
    w = template[:, 0] + 1j * template[:, 1]
    z_mean, w_mean = z.mean(), w.mean()
    spread = float(np.sum(np.abs(z - z_mean) ** 2))
    # Five equal points have no size or angle: keep the scale finite, the crop will be one colour.
    a = np.sum(np.conj(z - z_mean) * (w - w_mean)) / max(spread, 1e-6)
    b = w_mean - a * z_mean
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def _to_channels(pixels: NDArray[np.uint8], channels: int) -> NDArray[np.uint8]:
    if channels == 1 and pixels.ndim == 3:
        return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY), dtype=np.uint8)
    if channels == 3 and pixels.ndim == 2:
        return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR), dtype=np.uint8)
    return pixels


def _warp(
    pixels: NDArray[np.uint8], landmarks: NDArray[np.float32], spec: CropSpec
) -> NDArray[np.uint8]:
    matrix = similarity(landmarks, np.asarray(spec.template, dtype=np.float64))
    scale = float(np.hypot(matrix[0, 0], matrix[1, 0]))
    factor = int(1.0 / scale) if scale > 0 else 1
    if factor >= 2:
        # warpAffine looks at four pixels only: a large face must be averaged down first, or the
        # student sees aliasing that it never saw in training.
        inverse = cv2.invertAffineTransform(matrix)
        corners = np.array([[0, 0], [spec.size, 0], [0, spec.size], [spec.size, spec.size]])
        reach = corners @ inverse[:, :2].T + inverse[:, 2]
        height, width = pixels.shape[:2]
        x0, y0 = np.clip(np.floor(reach.min(axis=0)).astype(int) - factor, 0, (width, height))
        x1, y1 = np.clip(np.ceil(reach.max(axis=0)).astype(int) + factor, 0, (width, height))
        if x1 - x0 >= factor and y1 - y0 >= factor:
            w, h = (x1 - x0) // factor, (y1 - y0) // factor
            region = pixels[y0 : y0 + h * factor, x0 : x0 + w * factor]
            pixels = np.asarray(
                cv2.resize(region, (w, h), interpolation=cv2.INTER_AREA), dtype=np.uint8
            )
            # Pixel centres: x_old = (x_new + 0.5) * factor - 0.5 + x0.
            shift = np.array([x0, y0]) + 0.5 * factor - 0.5
            matrix = np.column_stack([matrix[:, :2] * factor, matrix[:, :2] @ shift + matrix[:, 2]])
    warped = cv2.warpAffine(
        pixels,
        matrix,
        (spec.size, spec.size),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return np.asarray(warped, dtype=np.uint8)


def _batch(crops: list[NDArray[np.uint8]], spec: CropSpec) -> NDArray[np.uint8]:
    if not crops:
        return np.empty((0, spec.channels, spec.size, spec.size), dtype=np.uint8)
    stacked = np.stack(crops)
    return stacked[:, None] if stacked.ndim == 3 else stacked.transpose(0, 3, 1, 2)


def crop_faces(
    pixels: NDArray[np.uint8], faces: Sequence[Face], spec: CropSpec
) -> NDArray[np.uint8]:
    """Cut an aligned crop of each face of one image.

    pixels: (H, W) or (H, W, 3) uint8. Returns (N, C, S, S) uint8, N = len(faces).
    """
    if not faces:
        return _batch([], spec)
    source = _to_channels(pixels, spec.channels)
    return _batch([_warp(source, face.landmarks, spec) for face in faces], spec)


def crop_whole(pixels: NDArray[np.uint8], spec: CropSpec) -> NDArray[np.uint8]:
    """Return the whole image as (1, C, S, S): the laboratory's fallback where no face was found."""
    source = _to_channels(pixels, spec.channels)
    shrinks = min(source.shape[:2]) > spec.size
    whole = cv2.resize(
        source,
        (spec.size, spec.size),
        interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR,
    )
    return _batch([np.asarray(whole, dtype=np.uint8)], spec)
