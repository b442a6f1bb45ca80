"""Data sets -> one split's crops, votes and targets, row by row."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distill.data.crops import Crops, crop_detector, crops_key, make_crops
from distill.data.votes import READERS, label_file
from edge.base.errors import DataError
from edge.inference.bundle import CropSpec
from edge.inference.weights import locked


@dataclass(frozen=True, slots=True)
class Split:
    """crops: N of them; votes: (N, K + extra) int, extra columns are votes for none of the K labels."""

    crops: Crops
    votes: NDArray[np.int64]
    labels: tuple[str, ...]

    @property
    def targets(self) -> NDArray[np.float32]:
        """The votes for the K labels divided by their sum, (N, K) float32; zeros where none."""
        votes = self.votes[:, : len(self.labels)].astype(np.float32)
        total = votes.sum(axis=1, keepdims=True)
        return np.asarray(votes / np.maximum(total, 1), dtype=np.float32)

    def without(self, names: Collection[str]) -> Split:
        """Leave these images out; returns itself where none of them is in it."""
        if not set(names) & set(self.crops.names):
            return self
        rows = np.flatnonzero([name not in names for name in self.crops.names])
        crops = self.crops
        kept = Crops(crops.pixels[rows], [crops.names[row] for row in rows], crops.found[rows])
        return Split(kept, self.votes[rows], self.labels)

    def ordered(self, labels: tuple[str, ...], whose: str) -> Split:
        """Put the votes into the order of a model's labels; raises DataError where those are others."""
        if sorted(labels) != sorted(self.labels):
            raise DataError(
                f"the data has the classes {', '.join(self.labels)}, {whose} {', '.join(labels)}; "
                f"use data with its own classes"
            )
        extra = range(len(labels), self.votes.shape[1])
        columns = [self.labels.index(label) for label in labels]
        return Split(self.crops, self.votes[:, [*columns, *extra]], labels)


def majority(votes: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Label (N,) by protocol majority-8: the class with more votes than any other column, else -1."""
    top = votes.max(axis=1)
    unique = (votes == top[:, None]).sum(axis=1) == 1
    label = votes.argmax(axis=1)
    return np.where(unique & (label < classes) & (top > 0), label, -1)


def argmax(votes: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Label (N,) by protocol argmax-8: the first of the largest among the classes; -1 only where an
    extra column (unknown, not a face) has strictly more votes than every class."""
    inside = votes[:, :classes]
    extra = votes[:, classes:].max(axis=1) if votes.shape[1] > classes else np.zeros(len(votes))
    return np.where(extra > inside.max(axis=1), -1, inside.argmax(axis=1))


def crops_folder(data: Path, spec: CropSpec) -> Path:
    """Name the folder of a raw data set's crops, `DATA.crops/KEY` next to it."""
    data = data.resolve()
    return data.with_name(data.name + ".crops") / crops_key(spec, locked()["yunet"]["sha256"])


def open_crops(
    data: Path,
    layout: str,
    spec: CropSpec,
    weights: Path | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Crops]:
    """Open the crops of a raw data set, made on first use and cached in `crops_folder`. Raises
    DataError where they cannot be made or kept."""
    out = crops_folder(data, spec)
    detector = crop_detector(weights)
    try:
        return make_crops(data, layout, out, detector, spec, progress)
    except OSError as error:
        raise DataError(f"cannot keep the crops in {out}: {error.strerror}") from error
    finally:
        detector.backend.close()


def join(data: Path, layout: str, split: str, made: dict[str, Crops]) -> Split:
    """Join votes to crops by name; raises DataError for a split that is not there, an image without a
    row or a row without an image."""
    if split not in made:
        raise DataError(f"{data} has no split '{split}', only {', '.join(made)}; add its folder")
    crops = made[split]
    voted, labels = READERS[layout](data, split)
    have = set(crops.names)
    if missing := [name for name in voted if name not in have]:
        raise DataError(
            f"{voted[missing[0]].where} names a missing image of '{split}', {missing[0]} "
            f"({len(missing)} such rows); bring it back or take the row out"
        )
    if nameless := [name for name in crops.names if name not in voted]:
        raise DataError(
            f"{label_file(data, layout, split)} has no row for {nameless[0]} of '{split}' "
            f"({len(nameless)} such images)"
        )
    table = np.array([voted[name].votes for name in crops.names], dtype=np.int64)
    return Split(crops=crops, votes=table, labels=labels)
