"""Label files -> how the annotators voted on each image, and in which line they did.

Every reader gives, for one split, votes over the label names by the image's name; a hard label is
one vote. A malformed row, an unknown class or a repeated name is a DataError naming file and line.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from distill.data.labels import FER2013, FERPLUS, FERPLUS_EXTRA, RAFDB, canonical
from distill.data.layouts import SPLITS, Image, normal, rafdb_holders, rafdb_split
from edge.base.errors import DataError
from edge.inference.bundle import RESERVED

LONGEST_LABEL = 64  # letters that a bundle takes


@dataclass(frozen=True, slots=True)
class Voted:
    """votes: one count a label name, then one for each of the extra columns; where: "FILE line N",
    or the image itself where its folder is the label."""

    votes: list[int]
    where: str


Table = dict[str, Voted]


def _add(table: Table, name: str, votes: list[int], where: str) -> None:
    name = normal(name)
    if name in table:
        raise DataError(f"{where}: '{name}' is repeated")
    table[name] = Voted(votes, where)


def _rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield "FILE line N" and the row, blank ones left out."""
    try:
        # Excel, for one, begins a file with a byte-order mark.
        with path.open(newline="", encoding="utf-8-sig") as lines:
            for number, row in enumerate(csv.reader(lines), 1):
                if row:
                    yield f"{path} line {number}", row
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not CSV in UTF-8: {error}") from error


def _whole(cell: str) -> bool:
    cell = cell.strip()
    return cell.isascii() and cell.isdecimal()


def label_file(data: Path, layout: str, split: str) -> Path:
    """Find the file of a layout's labels; the split's folder where folders are the labels."""
    if layout == "ferplus":
        return data / f"FER2013{split.capitalize()}" / "label.csv"
    if layout == "fer2013":
        return data / "fer2013_original_labels.csv"
    if layout == "rafdb":
        base = rafdb_holders(data)
        if base is None:
            return data  # Kaggle's: the folders are the labels
        # The holders' own spelling: "patition".
        name = "list_patition_label.txt"
        places = (base / "EmoLabel" / name, base / name)
        return next((p for p in places if p.is_file()), places[0])
    return data / split


def read_ferplus(data: Path, split: str) -> tuple[Table, tuple[str, ...]]:
    """Read FER+'s ten votes an image (Barsoum et al. 2016)."""
    columns = len(FERPLUS) + len(FERPLUS_EXTRA)
    table: Table = {}
    for where, row in _rows(label_file(data, "ferplus", split)):
        if len(row) != 2 + columns or not all(_whole(cell) for cell in row[2:]):
            raise DataError(f"{where}: expected a name, a box and {columns} whole votes")
        _add(table, row[0], [int(cell) for cell in row[2:]], where)
    return table, FERPLUS


def read_fer2013(data: Path, split: str) -> tuple[Table, tuple[str, ...]]:
    """Read the challenge's own labels of the same images (Goodfellow et al. 2013)."""
    table: Table = {}
    for where, row in _rows(label_file(data, "fer2013", split)):
        if row == ["name", "split", "label"]:
            continue
        own = row[1].strip().lower() if len(row) == 3 else ""
        if own not in SPLITS or canonical(row[2]) not in FER2013:
            raise DataError(
                f"{where}: expected a name, one of {', '.join(SPLITS)} and one of {', '.join(FER2013)}"
            )
        if own == split:
            _add(table, row[0], [int(canonical(row[2]) == label) for label in FER2013], where)
    return table, FER2013


def read_rafdb(
    data: Path, split: str, images: Sequence[Image], train_on_all: bool = False
) -> tuple[Table, tuple[str, ...]]:
    """Read RAF-DB's seven basic classes (Li, Deng and Du 2017), from the holders' list or, of `images`,
    from Kaggle's folders."""
    path = label_file(data, "rafdb", split)
    table: Table = {}

    def add(name: str, number: int, where: str) -> None:
        _add(table, name, [int(i == number - 1) for i in range(len(RAFDB))], where)

    if path == data:
        for name, image in images:
            add(name, int(image.parent.name), str(image))
        return table, RAFDB
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not text in UTF-8") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        parts, where = line.split(), f"{path} line {number}"
        if len(parts) != 2 or not _whole(parts[1]) or not 1 <= int(parts[1]) <= len(RAFDB):
            raise DataError(f"{where}: expected 'NAME.jpg 1..{len(RAFDB)}'")
        if rafdb_split(parts[0], train_on_all) == split:
            add(parts[0], int(parts[1]), where)
    return table, RAFDB


def read_folders(
    data: Path, split: str, images: Mapping[str, Sequence[Image]]
) -> tuple[Table, tuple[str, ...]]:
    """Read the labels from the folders' names. train's are the classes; without train, those of all
    splits together."""
    whose = ["train"] if "train" in images else list(images)
    classes = sorted({path.parent.name for own in whose for _, path in images[own]})
    by_label: dict[str, str] = {}
    for name in classes:
        label = canonical(name)
        if len(label) > LONGEST_LABEL:
            raise DataError(
                f"{data}: the class name '{label}' has {len(label)} letters, a bundle takes "
                f"{LONGEST_LABEL}; shorten it"
            )
        if label in RESERVED:
            raise DataError(f"{data}: '{label}' is reserved; rename that class")
        if len(whose) == 1 and label in by_label:
            raise DataError(
                f"{data / whose[0]}: two class folders mean the same class '{label}': "
                f"{by_label[label]!r} and {name!r}; merge them"
            )
        by_label[label] = name
    labels = tuple(by_label)
    table: Table = {}
    for name, path in images.get(split, []):
        label = canonical(path.parent.name)
        if label not in by_label:
            raise DataError(
                f"{path}: class '{path.parent.name}' is not among train's {', '.join(labels)}"
            )
        _add(table, name, [int(label == other) for other in labels], str(path))
    return table, labels


def read_votes(
    data: Path,
    layout: str,
    split: str,
    images: Mapping[str, Sequence[Image]],
    train_on_all: bool = False,
) -> tuple[Table, tuple[str, ...]]:
    """Read a split's votes in a data set's layout; images: by split, as listed."""
    if layout == "ferplus":
        return read_ferplus(data, split)
    if layout == "fer2013":
        return read_fer2013(data, split)
    if layout == "rafdb":
        return read_rafdb(data, split, images.get(split, []), train_on_all)
    return read_folders(data, split, images)
