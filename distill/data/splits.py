"""Data sets -> one split's crops, votes and targets, row by row."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distill.data.crops import Crops, crop_detector, crops_key, make_crops
from distill.data.data_set import DataSet
from distill.data.labels import FERPLUS
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
        refuse_other_classes(self.labels, labels, whose)
        extra = range(len(labels), self.votes.shape[1])
        columns = [self.labels.index(label) for label in labels]
        return Split(self.crops, self.votes[:, [*columns, *extra]], labels)


def refuse_other_classes(own: tuple[str, ...], labels: tuple[str, ...], whose: str) -> None:
    """Raise DataError where data has other classes than a model. own: the data's."""
    if sorted(labels) != sorted(own):
        raise DataError(
            f"the data has the classes {', '.join(own)}, {whose} {', '.join(labels)}; use data with "
            f"its own classes"
        )


def majority(votes: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Label (N,) by protocol majority-8: the class with more votes than any other column, else -1."""
    top = votes.max(axis=1)
    unique = (votes == top[:, None]).sum(axis=1) == 1
    label = votes.argmax(axis=1)
    return np.where(unique & (label < classes) & (top > 0), label, -1)


def argmax(votes: NDArray[np.int64], labels: tuple[str, ...]) -> NDArray[np.int64]:
    """Label (N,) by protocol argmax-8: of the largest among the classes the first in FER+'s order, in
    whatever order the labels stand; -1 only where an extra column (unknown, not a face) has strictly
    more votes than every class, or nobody voted."""
    classes = len(labels)
    place = {label: k for k, label in enumerate(FERPLUS)}
    order = np.array(sorted(range(classes), key=lambda k: place.get(labels[k], len(FERPLUS))))
    inside = votes[:, order]
    extra = votes[:, classes:].max(axis=1) if votes.shape[1] > classes else np.zeros(len(votes))
    most = inside.max(axis=1)
    return np.where((extra > most) | (most == 0), -1, order[inside.argmax(axis=1)])


def crops_folder(data: DataSet, spec: CropSpec) -> Path:
    """Name the folder of a data set's crops in one form, `DATA.crops/KEY`."""
    key = crops_key(spec, locked()["yunet"]["sha256"])
    return data.crops / (f"{key}-all" if data.train_on_all else key)


def open_crops(
    data: DataSet,
    spec: CropSpec,
    weights: Path | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Crops]:
    """Open the crops of a data set, made on first use and cached in `crops_folder`. Raises DataError
    where they cannot be made or kept."""
    detector = crop_detector(weights)
    try:
        return make_crops(data, crops_folder(data, spec), detector, spec, progress)
    finally:
        detector.backend.close()


def join(data: DataSet, split: str, made: dict[str, Crops]) -> Split:
    """Join votes to crops; raises DataError as `DataSet.votes` does."""
    votes, labels = data.votes(split)
    return Split(made[split], votes, labels)
