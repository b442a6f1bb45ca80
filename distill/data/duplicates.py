"""Near-duplicates: images that are in two splits leave the one that is learned from.

Exact: sha256 of the pixels. Near: 64-bit DCT perceptual hash, Hamming distance 4 or less. The
list is written into the crops' folder, so that what was left out can be read.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from distill.data.data_set import DataSet, fingerprint
from distill.data.splits import Split, crops_folder
from distill.progress import Progress
from edge.base.errors import DataError
from edge.base.files import write_atomically
from edge.inference.bundle import CropSpec
from edge.sources.images import read_picture

DISTANCE = 4
BITS = np.array([bin(byte).count("1") for byte in range(256)], dtype=np.uint8)
BLOCK = 512  # images compared at once
# Which splits keep an image that another one shares.
YIELDS_TO = {"train": ("valid", "test"), "valid": ("test",)}


class NearDuplicate(NamedTuple):
    """An image that leaves its split. twin: the "split/name" that it resembles; kind: exact or near."""

    name: str
    twin: str
    kind: str


@dataclass(frozen=True, slots=True)
class _Hashes:
    """One split's images: names, sha256 of the pixels, and (N,) uint64 perceptual hashes."""

    names: list[str]
    exact: list[str]
    near: NDArray[np.uint64]


def perceptual_hash(image: NDArray[np.uint8]) -> int:
    """Compute a 64-bit DCT hash: the signs, against their median, of the 8x8 lowest frequencies of the
    image in grey at 32x32 (Zauner, "Implementation and Benchmarking of Perceptual Image Hash
    Functions", 2010)."""
    grey = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    small = cv2.resize(grey, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
    low = cv2.dct(small)[:8, :8].ravel()
    bits = low > np.median(low[1:])
    return int(np.packbits(bits).view(">u8")[0])


def find_near_duplicates(
    data: DataSet,
    keep_in: Path,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, list[NearDuplicate]]:
    """Find near-duplicates by the split they leave: train yields to valid and test, valid to test.

    The result is kept as `twins-SPLIT.csv` in `keep_in`, and read from there the next time. Raises
    SourceError for an image that cannot be read.
    """
    key = " ".join(f"{split}={fingerprint(images)}" for split, images in data.images.items())
    key_file = keep_in / "twins.key"
    files = {split: keep_in / f"twins-{split}.csv" for split in YIELDS_TO}
    if key_file.is_file() and key_file.read_text() == key:
        return {split: _read(path) for split, path in files.items()}
    hashes = {}
    for split, images in data.images.items():
        hashes[split] = _hash_images(split, images)
        progress(f"{split}: {len(images)} images hashed")
    found = {}
    for split, kept in YIELDS_TO.items():
        others = {name: hashes[name] for name in kept if name in hashes}
        found[split] = list(_compare(hashes[split], others)) if split in hashes else []
        text = io.StringIO()
        rows = [NearDuplicate._fields, *found[split]]
        csv.writer(text, lineterminator="\n").writerows(rows)
        write_atomically(files[split], text.getvalue().encode())
        progress(f"{split}: {len(found[split])} near-duplicates of {' and '.join(others)} left out")
    write_atomically(key_file, key.encode())
    return found


def names_of(duplicates: Iterable[NearDuplicate]) -> set[str]:
    return {duplicate.name for duplicate in duplicates}


def without_near_duplicates(
    split: Split,
    name: str,
    data: DataSet,
    spec: CropSpec,
    progress: Callable[[str], None] = lambda line: None,
) -> Split:
    """Leave the validation split's near-duplicates of test images out; other splits stay whole. name:
    of the split; spec: of its crops, with which the list is kept. Raises DataError as `chosen_on`."""
    if name != "valid":
        return split
    found = find_near_duplicates(data, crops_folder(data, spec), progress)["valid"]
    progress(f"left out: {len(found)} images of valid with a near-duplicate in the test split")
    return chosen_on(split, names_of(found))


def chosen_on(valid: Split, near_duplicates: set[str]) -> Split:
    """Leave near-duplicates of test images out of the validation split. Raises DataError where nothing
    is left."""
    kept = valid.without(near_duplicates)
    if valid.crops.names and not kept.crops.names:
        raise DataError(
            f"all {len(valid.crops.names)} images of valid have a near-duplicate in the test split; "
            f"split by person or by recording, not by picture"
        )
    return kept


def _read(path: Path) -> list[NearDuplicate]:
    with path.open(newline="", encoding="utf-8") as rows:
        return [NearDuplicate(r["name"], r["twin"], r["kind"]) for r in csv.DictReader(rows)]


def _hash_images(split: str, images: Sequence[tuple[str, Path]]) -> _Hashes:
    exact, near = [], []
    with Progress(f"hashing {split}", len(images), "images") as bar:
        for _, path in images:
            image = read_picture(path)
            exact.append(hashlib.sha256(image.tobytes()).hexdigest())
            near.append(perceptual_hash(image))
            bar.advance()
    return _Hashes([name for name, _ in images], exact, np.array(near, dtype=np.uint64))


def _compare(own: _Hashes, others: dict[str, _Hashes]) -> Iterable[NearDuplicate]:
    """Yield each image of `own` that one of the other splits has too, an exact match first."""
    names = [f"{split}/{name}" for split, other in others.items() for name in other.names]
    if not names:
        return
    exact = dict(zip((h for other in others.values() for h in other.exact), names, strict=True))
    near = np.concatenate([other.near for other in others.values()])
    for start in range(0, len(own.names), BLOCK):
        distance = _distances(own.near[start : start + BLOCK], near)
        for i, closest in enumerate(distance.argmin(axis=1), start):
            if own.exact[i] in exact:
                yield NearDuplicate(own.names[i], exact[own.exact[i]], "exact")
            elif distance[i - start, closest] <= DISTANCE:
                yield NearDuplicate(own.names[i], names[closest], "near")


def _distances(one: NDArray[np.uint64], many: NDArray[np.uint64]) -> NDArray[np.uint8]:
    # NumPy 1.x, which Python 3.10 may carry, has no bitwise_count.
    different = (one[:, None] ^ many[None]).view(np.uint8).reshape(len(one), len(many), 8)
    return np.asarray(BITS[different].sum(axis=2, dtype=np.uint8))
