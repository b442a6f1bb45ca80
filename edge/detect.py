"""Find faces (Frame -> Face) by YuNet behind the backend protocol, with our own vectorised decoding.

Model: Wu, Peng and Yu, "YuNet: A Tiny Millisecond-level Face Detector", 2023 (OpenCV Zoo,
`face_detection_yunet_2023mar.onnx`). It answers at strides 8, 16 and 32 with class and object
scores, a box and five landmarks a cell.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.base.errors import BackendError, UsageError
from edge.inference.backends import Backend
from edge.inference.loader import (
    Opened,
    detector_profile,
    engines_folder,
    open_backend,
    open_engine,
)
from edge.inference.weights import resolve
from edge.records import Face
from edge.settings import Settings
from edge.sizes import Carried, Size, by_shape, expected

STRIDES = (8, 16, 32)


def letterbox_scale(shape: tuple[int, ...], width: int, height: int) -> float:
    """Return the factor that fits a frame of `shape` (H, W, ...) into width x height."""
    return min(width / shape[1], height / shape[0])


def decode(
    outputs: dict[str, NDArray[np.float32]], width: int, height: int, threshold: float
) -> NDArray[np.float32]:
    """Decode YuNet's raw maps to candidates.

    outputs: `cls_s`, `obj_s` (1, n, 1), `bbox_s` (1, n, 4), `kps_s` (1, n, 10) for s in 8, 16, 32,
    where n = (height / s) * (width / s), row by row.
    Returns (M, 15) float32: left, top, width, height, five landmarks x y, score, for the cells
    whose score is at least `threshold`.
    """
    found: list[NDArray[np.float32]] = []
    for stride in STRIDES:
        columns, rows = width // stride, height // stride
        score = np.sqrt(
            np.clip(outputs[f"cls_{stride}"][0, :, 0], 0, 1)
            * np.clip(outputs[f"obj_{stride}"][0, :, 0], 0, 1)
        )
        if len(score) != columns * rows:
            raise UsageError(
                f"the detector answered {len(score)} cells at stride {stride} for "
                f"{width}x{height}; give sizes that are multiples of 32"
            )
        keep = np.flatnonzero(score >= threshold)
        cell = np.stack([keep % columns, keep // columns], axis=1).astype(np.float32)
        box = outputs[f"bbox_{stride}"][0, keep]
        centre = (cell + box[:, :2]) * stride
        size = np.exp(box[:, 2:]) * stride
        points = (outputs[f"kps_{stride}"][0, keep].reshape(-1, 5, 2) + cell[:, None]) * stride
        found.append(
            np.concatenate(
                [centre - size / 2, size, points.reshape(-1, 10), score[keep, None]], axis=1
            ).astype(np.float32)
        )
    return np.concatenate(found)


def suppress(candidates: NDArray[np.float32], overlap: float) -> NDArray[np.float32]:
    """Keep the best of each overlapping group (greedy non-maximum suppression); candidates: (M, 15)."""
    if len(candidates) < 2:
        return candidates
    kept = cv2.dnn.NMSBoxes(
        candidates[:, :4].astype(float).tolist(), candidates[:, 14].tolist(), 0.0, overlap
    )
    return candidates[np.asarray(kept, dtype=np.int64).reshape(-1)]


class Detector:
    """Finds faces; every frame is scaled to fit width x height and padded right and below.

    choose: gives the size anew for each new shape (H, W) of the pictures; None keeps the size. After
    `halve` both sides are about half of it.
    """

    def __init__(
        self,
        backend: Backend,
        width: int = 640,
        height: int = 480,
        score: float = 0.6,
        overlap: float = 0.3,
    ) -> None:
        """score: least sqrt(class x object); overlap: IoU above which the weaker box goes.

        Raises UsageError where a side is not a positive multiple of 32 (the model's coarsest stride).
        """
        if width < 32 or height < 32 or width % 32 or height % 32:
            raise UsageError(f"detector size {width}x{height}: both sides must be multiples of 32")
        self.backend = backend
        self.width, self.height = width, height
        self.score, self.overlap = score, overlap
        self.choose: Callable[[tuple[int, ...]], Size] | None = None
        self._full, self._half = (width, height), False
        self._shape: tuple[int, ...] | None = None

    @property
    def size(self) -> str:
        """The input's size as people write it: WIDTHxHEIGHT."""
        return f"{self.width}x{self.height}"

    def fit(self, shape: tuple[int, ...]) -> None:
        """Take the size that `choose` has for pictures of `shape` (H, W, ...)."""
        if self.choose is not None and shape[:2] != self._shape:
            self._shape = shape[:2]
            self._full = self.choose(shape[:2])
            self.halve(self._half)

    def halve(self, half: bool) -> None:
        """Work at about half of the sides' length, or at the whole of it again."""
        self._half = half
        self.width, self.height = (
            max(32, side // (2 if half else 1) // 32 * 32) for side in self._full
        )

    def carry(self, per_second: float, cores: int, shape: tuple[int, int]) -> None:
        """Choose by what this machine carries, where the size is not set; times it for (H, W) now.

        per_second: pictures that are looked at; cores: of the detector."""
        if self.choose is not None:
            self.choose = Carried(self._blank, per_second, cores)
            self._shape = None
            self.fit(shape)

    def _blank(self, size: Size) -> None:
        self.backend.run(np.zeros((1, 3, size[1], size[0]), dtype=np.float32))

    def find(self, pixels: NDArray[np.uint8]) -> list[Face]:
        """Find faces in pixels, (H, W, 3) uint8 BGR; in pixels of that frame, best score first."""
        self.fit(pixels.shape)
        scale = letterbox_scale(pixels.shape, self.width, self.height)
        w = max(1, min(self.width, round(pixels.shape[1] * scale)))
        h = max(1, min(self.height, round(pixels.shape[0] * scale)))
        if (w, h) != (pixels.shape[1], pixels.shape[0]):
            method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
            pixels = np.asarray(cv2.resize(pixels, (w, h), interpolation=method), dtype=np.uint8)
        batch = np.zeros((1, 3, self.height, self.width), dtype=np.float32)
        batch[0, :, :h, :w] = pixels.transpose(2, 0, 1)
        found = suppress(
            decode(self.backend.run(batch), self.width, self.height, self.score), self.overlap
        )
        found = found[np.argsort(-found[:, 14], kind="stable")]
        found[:, :14] /= scale
        return [
            Face(box=row[:4], landmarks=row[4:14].reshape(5, 2), score=float(row[14]))
            for row in found
        ]


def open_detector(settings: Settings) -> tuple[Detector, Opened]:
    """Open the detector. With the fake backend too: faces are found by ONNX Runtime then.

    Raises WeightsError or BackendError."""
    d, choice = settings.detector, settings.runtime.backend
    model = resolve("yunet", d.weights)
    opened, fallback = None, None
    width, height = expected(settings)
    if choice in ("auto", "trt"):
        models = {"fp16": model, "fp32": model}
        try:
            opened = open_engine(
                models,
                detector_profile(width, height),
                engines_folder(settings),
                lambda backend, precision: None,  # verified on the portrait when it was built
            )
        except BackendError as error:
            if choice == "trt":
                raise
            fallback = str(error)
    if opened is None:
        backend = open_backend("ort", model, settings.runtime.threads)
        opened = Opened(backend, "fp32", fallback=fallback)
    detector = Detector(opened.backend, width, height, d.weak_score, d.overlap)
    if d.width is None and opened.engine is None:  # an engine takes the one size it was built for
        detector.choose = by_shape
    return detector, opened
