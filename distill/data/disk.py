"""Large arrays on disk that never end the process: room is taken before the first row is written.

A write into a memory map whose file has no block on the disk is SIGBUS, which no program can catch in
a line.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from edge.base.errors import DataError

ADVICE = "make room, or name a folder on another disk by --cache DIR (edge-crops: --out)"


def refuse_full_disk(place: Path, needed: int, advice: str = ADVICE) -> None:
    """Raise DataError where fewer than `needed` bytes are free for a folder, which is made.

    advice: what to do then."""
    try:
        place.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(place).free
    except OSError as error:
        raise DataError(f"{place} cannot be written to: {error.strerror}; {advice}") from error
    if needed > free:
        raise DataError(
            f"{place} needs {needed / 1e6:,.1f} MB, {free / 1e6:,.1f} MB are free; {advice}"
        )


def create_map(path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> np.memmap[Any, Any]:
    """Create a .npy file of zeros with all its blocks taken, and open it as a memory map to write to.

    Raises DataError where the disk has no room, or cannot be written to; no file is left then."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    refuse_full_disk(path.parent, size)
    try:
        made = np.lib.format.open_memmap(path, "w+", np.dtype(dtype), shape)
        with path.open("r+b") as file:
            # Between the question above and now others may have filled the disk, or a quota.
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise DataError(f"{path} cannot be written: {error.strerror}; {ADVICE}") from error
    return made
