"""Real crops -> the ranges of every tensor, once for all INT8 files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader

from distill.data.crops import crop_single
from distill.data.layouts import NAMED, pictures_below, shown, some
from distill.progress import Progress
from edge.base.errors import DataError
from edge.detect import Detector
from edge.inference.bundle import CropSpec
from edge.sources.images import PictureError, read_picture
from edge.sources.recorded import PICTURES
from export.to_onnx import INPUT

BATCH = 32


class Crops(CalibrationDataReader):  # type: ignore[misc]
    """Feeds the calibrator."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        """Take (N, C, S, S) uint8; raises DataError where N is 0."""
        if not len(pixels):
            raise DataError("no crop to calibrate on; give pictures of faces by --calibration DIR")
        self._batches: Iterator[NDArray[np.uint8]] = iter(
            [pixels[i : i + BATCH] for i in range(0, len(pixels), BATCH)]
        )

    def get_next(self) -> dict[str, Any] | None:
        """Return the next batch as the graph's input, or None at the end."""
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch.astype(np.float32)}


def balanced(
    labels: NDArray[np.int64], classes: int, wanted: int, seed: int = 0
) -> NDArray[np.int64]:
    """Choose about `wanted` images, equally many of each class as far as it has them; their indices.

    labels: (N,), -1 for none. Raises DataError where no image has a label.
    """
    rng = np.random.default_rng(seed)
    pools = [rng.permutation(np.flatnonzero(labels == k)) for k in range(classes)]
    chosen: list[int] = []
    # Round robin: a rare class gives all it has, the others share the rest.
    for turn in range(max((len(pool) for pool in pools), default=0)):
        for pool in pools:
            if turn < len(pool) and len(chosen) < wanted:
                chosen.append(int(pool[turn]))
    if not chosen:
        raise DataError(
            "no labelled training image to calibrate on; give pictures by --calibration DIR"
        )
    return np.array(sorted(chosen), dtype=np.int64)


def pictures_in(folder: Path) -> list[Path]:
    """List what `pictures_below` finds, sorted. Raises DataError where that is nothing."""
    found = sorted(pictures_below(folder))
    if not found:
        raise DataError(
            f"--calibration {folder} holds no picture ({' '.join(PICTURES)}); give a folder of faces"
        )
    return found


def crops_of(
    folder: Path,
    wanted: int,
    detector: Detector,
    spec: CropSpec,
    skip_bad: bool,
    say: Callable[[str], None],
) -> NDArray[np.uint8]:
    """Crop at most `wanted` pictures of a folder, evenly spaced, to (N, C, S, S) uint8; none needs a
    label. Of each the largest face is taken, the whole picture where none is found.

    Raises DataError, which names them, where pictures cannot be read and `skip_bad` is not given."""
    paths = pictures_in(folder)
    places = np.linspace(0, len(paths) - 1, min(wanted, len(paths))).astype(int)
    crops, bad, seen = [], [], 0
    with Progress("cropping for calibration", len(places), "pictures") as bar:
        for path in (paths[place] for place in places):
            bar.advance()
            try:
                crop, found = crop_single(read_picture(path), detector, spec)
            except PictureError as error:
                bad.append(f"{shown(path, folder)} {error.why}")
                continue
            crops.append(crop)
            seen += found
    if bad and not (skip_bad and crops):
        raise DataError(
            f"--calibration {folder}: {len(bad)} of {len(places)} pictures cannot be read; mend or "
            f"remove them, or leave them out by --skip-bad: {some(bad)}"
        )
    for line in bad[:NAMED]:
        say(f"skipped: {line}")
    say(f"calibration: {len(crops)} of {len(paths)} pictures, a face found in {seen}")
    return np.stack(crops)
