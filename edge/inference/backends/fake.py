"""A backend for people without the hardware, and for faults: answers without a network.

It needs no runtime library. For the student it answers logits that depend on the pixels alone, so
that a run repeats; it reads the number of classes from bundle.json, in the model's folder.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge.base.errors import BackendError
from edge.inference.backends import TensorSpec


class Fake:
    """Logits from the mean brightness: one class for dark crops, the next for lighter ones, ..."""

    name = "fake"

    def __init__(self, model: Path) -> None:
        try:
            description = json.loads((model.parent / "bundle.json").read_text(encoding="utf-8"))
            self._classes = len(description["labels"])
            size, channels = description["crop"]["size"], description["crop"]["channels"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BackendError(f"the fake backend found no usable bundle.json: {error}") from error
        self.input = TensorSpec("faces", (None, channels, size, size))

    def run(self, batch: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """See Backend.run."""
        brightness = batch.reshape(len(batch), -1).mean(axis=1) if len(batch) else np.empty(0)
        place = np.minimum(brightness / 256.0 * self._classes, self._classes - 1)
        distance = np.abs(place[:, None] - np.arange(self._classes)[None])
        return {"logits": (-4.0 * distance).astype(np.float32)}

    def close(self) -> None:
        pass
