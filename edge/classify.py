"""Read expressions (Track -> Expression): crops, one batch a frame, softmax, smoothing by track."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from edge.crop import crop_faces
from edge.inference.backends import Backend
from edge.inference.bundle import Bundle
from edge.pose import shows_front
from edge.records import Counting, Expression, Track

# A face that cannot be read keeps its last answer for so long: a look aside is no other expression,
# and after it nobody knows. Longer than a glance, a fifth of a window.
KEPT_SECONDS = 2.0

F = TypeVar("F", np.float32, np.float64)


def softmax(logits: NDArray[F]) -> NDArray[F]:
    """Turn logits (N, K) into probabilities, in their own precision. The node's graph has divided by
    its temperature already."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True), dtype=logits.dtype)


class Classifier:
    """Reads every face of a frame that is large enough and shows its front, and remembers each track's
    smoothed answer: for KEPT_SECONDS where it cannot be read."""

    def __init__(
        self,
        backend: Backend,
        bundle: Bundle,
        min_face_px: float = 16.0,
        smooth_seconds: float = 0.5,
        counting: Counting = "expected",
        max_turn: float = 70.0,
    ) -> None:
        """min_face_px: side below which a face is not read; smooth_seconds: time constant of the
        exponential average over a track's probabilities, 0 for none; counting: whose constants are
        added to the logits; max_turn: degrees of yaw (`edge.pose`) above which a face is not read,
        90 for none."""
        self.backend, self.crop = backend, bundle.crop
        self.min_face_px, self.smooth_seconds = min_face_px, smooth_seconds
        self._offsets = bundle.offsets(counting)
        self.max_turn = max_turn
        self._memory: dict[int, tuple[NDArray[np.float32], float]] = {}

    def read(
        self, pixels: NDArray[np.uint8], tracks: Sequence[Track], time: float
    ) -> list[Expression]:
        """One Expression a track, in the tracks' order. pixels: (H, W, 3) uint8 BGR."""
        readable = [t for t in tracks if t.seen and self._shows_its_front(t)]
        crops = crop_faces(pixels, [t.face for t in readable], self.crop)
        fresh = softmax(self.backend.run(crops.astype(np.float32))["logits"] + self._offsets)
        for track, probabilities in zip(readable, fresh, strict=True):
            self._remember(track.id, probabilities, time)
        alive = {t.id for t in tracks}
        # A hidden person may come back under the same id: keep what is at most a minute old.
        self._memory = {
            number: value
            for number, value in self._memory.items()
            if number in alive or time - value[1] < 60.0
        }
        return [Expression(t.id, self._known(t.id, time), t.life, t.place) for t in tracks]

    def _shows_its_front(self, track: Track) -> bool:
        face = track.face
        return face.size >= self.min_face_px and shows_front(face, self.max_turn)

    def _known(self, number: int, time: float) -> NDArray[np.float32] | None:
        probabilities, when = self._memory.get(number, (None, time))
        return probabilities if time - when <= KEPT_SECONDS else None

    def _remember(self, number: int, fresh: NDArray[np.float32], time: float) -> None:
        if number in self._memory and self.smooth_seconds > 0:
            old, when = self._memory[number]
            gain = 1.0 - np.exp(-(time - when) / self.smooth_seconds)
            fresh = np.asarray(old + gain * (fresh - old), dtype=np.float32)
        self._memory[number] = (fresh, time)
