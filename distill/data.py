"""Data sets > targets beside their crops.

Every reader gives, for each picture by name, how the annotators voted over the label names; hard
labels are one vote. A malformed row or an unknown class is a DataError naming file and line.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distill.labels import FER2013, FERPLUS, FERPLUS_EXTRA, RAFDB, canonical
from edge.crop import CropSpec
from edge.crops import (
    Crops,
    crop_detector,
    crops_key,
    list_pictures,
    make_crops,
    rafdb_split,
)
from edge.errors import DataError
from edge.weights import locked


@dataclass(frozen=True, slots=True)
class Split:
    """One split. votes: (N, K + extra) int, extra columns are votes for none of the K labels."""

    crops: Crops
    votes: NDArray[np.int64]
    labels: tuple[str, ...]

    @property
    def targets(self) -> NDArray[np.float32]:
        """(N, K) float32: the votes for the K labels divided by their sum; zeros where none."""
        votes = self.votes[:, : len(self.labels)].astype(np.float32)
        total = votes.sum(axis=1, keepdims=True)
        return np.asarray(votes / np.maximum(total, 1), dtype=np.float32)


def majority(votes: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Protocol majority-8: the class whose vote is the largest of all columns and alone so, else -1."""
    top = votes.max(axis=1)
    unique = (votes == top[:, None]).sum(axis=1) == 1
    label = votes.argmax(axis=1)
    return np.where(unique & (label < classes) & (top > 0), label, -1)


def argmax(votes: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Protocol argmax-8: the first of the largest among the classes; -1 only where an extra column
    (unknown, not a face) has strictly more votes than every class."""
    inside = votes[:, :classes]
    extra = votes[:, classes:].max(axis=1) if votes.shape[1] > classes else np.zeros(len(votes))
    return np.where(extra > inside.max(axis=1), -1, inside.argmax(axis=1))


def _whole(cell: str) -> bool:
    cell = cell.strip()
    return cell.isascii() and cell.isdecimal()


def _read_ferplus(data: Path, split: str) -> tuple[dict[str, list[int]], tuple[str, ...]]:
    path = data / f"FER2013{split.capitalize()}" / "label.csv"
    columns = len(FERPLUS) + len(FERPLUS_EXTRA)
    votes: dict[str, list[int]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as rows:
            for line, row in enumerate(csv.reader(rows), 1):
                if not row:
                    continue
                if len(row) != 2 + columns or not all(_whole(cell) for cell in row[2:]):
                    raise DataError(
                        f"{path} line {line}: expected a name, a box and {columns} whole votes"
                    )
                if row[0] in votes:
                    raise DataError(f"{path} line {line}: '{row[0]}' stands twice")
                votes[row[0]] = [int(cell) for cell in row[2:]]
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is no CSV in UTF-8: {error}") from error
    return votes, FERPLUS


def _read_fer2013(data: Path, split: str) -> tuple[dict[str, list[int]], tuple[str, ...]]:
    path = data / "fer2013_original_labels.csv"
    votes: dict[str, list[int]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as rows:
            for line, row in enumerate(csv.reader(rows), 1):
                if not row or row == ["name", "split", "label"]:
                    continue
                if len(row) != 3 or canonical(row[2]) not in FER2013:
                    raise DataError(
                        f"{path} line {line}: expected name, split and one of {', '.join(FER2013)}"
                    )
                if row[1].strip().lower() == split:
                    votes[row[0]] = [int(canonical(row[2]) == label) for label in FER2013]
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is no CSV in UTF-8: {error}") from error
    return votes, FER2013


def _read_rafdb(data: Path, split: str) -> tuple[dict[str, list[int]], tuple[str, ...]]:
    # The holders' own spelling: "patition".
    candidates = [data / "list_patition_label.txt", data / "EmoLabel" / "list_patition_label.txt"]
    path = next((p for p in candidates if p.is_file()), candidates[0])
    votes: dict[str, list[int]] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no text in UTF-8") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        parts = line.split()
        if len(parts) != 2 or not _whole(parts[1]) or not 1 <= int(parts[1]) <= len(RAFDB):
            raise DataError(f"{path} line {number}: expected 'NAME.jpg 1..{len(RAFDB)}'")
        if rafdb_split(parts[0]) == split:
            votes[parts[0]] = [int(i == int(parts[1]) - 1) for i in range(len(RAFDB))]
    return votes, RAFDB


def _read_folders(data: Path, split: str) -> tuple[dict[str, list[int]], tuple[str, ...]]:
    classes = sorted(p.name for p in (data / "train").iterdir() if p.is_dir())
    labels = tuple(canonical(name) for name in classes)
    if len(set(labels)) != len(labels):
        raise DataError(f"{data / 'train'}: two class folders mean the same class: {classes}")
    votes = {}
    for name, path in list_pictures(data, "folders").get(split, []):
        label = canonical(path.parent.name)
        if label not in labels:
            raise DataError(f"{path}: class '{path.parent.name}' is not among train's {classes}")
        votes[name] = [int(label == other) for other in labels]
    return votes, labels


READERS = {
    "ferplus": _read_ferplus,
    "fer2013": _read_fer2013,
    "rafdb": _read_rafdb,
    "folders": _read_folders,
}


def crops_folder(data: Path, spec: CropSpec) -> Path:
    """Where a raw data set's crops are cached: beside it, by everything that changes a crop."""
    data = data.resolve()
    return data.with_name(data.name + ".crops") / crops_key(spec, locked()["yunet"]["sha256"])


def open_crops(
    data: Path,
    layout: str,
    spec: CropSpec,
    weights: Path | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Crops]:
    """Crops of a raw data set, made on first use and cached in `DATA.crops/KEY` beside it."""
    out = crops_folder(data, spec)
    detector = crop_detector(weights)
    try:
        return make_crops(data, layout, out, detector, spec, progress)
    except OSError as error:
        raise DataError(f"cannot keep the crops in {out}: {error.strerror}") from error
    finally:
        detector.backend.close()


def join(data: Path, layout: str, split: str, made: dict[str, Crops]) -> Split:
    """Votes beside crops; raises DataError for a split that is not there, a picture without a row
    or a row without a picture."""
    if split not in made:
        raise DataError(f"{data} has no split '{split}', only {', '.join(made)}; add its folder")
    crops = made[split]
    votes, labels = READERS[layout](data, split)
    have = set(crops.names)
    if missing := [name for name in votes if name not in have]:
        raise DataError(
            f"{data}: {len(missing)} rows of '{split}' name a missing picture: {missing[0]}"
        )
    if nameless := [name for name in crops.names if name not in votes]:
        raise DataError(f"{data}: {len(nameless)} pictures of '{split}' have no row: {nameless[0]}")
    table = np.array([votes[name] for name in crops.names], dtype=np.int64)
    return Split(crops=crops, votes=table, labels=labels)
