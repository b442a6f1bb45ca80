"""Pictures that stand in two splits, exactly or nearly: they leave the one that is learned from.

Exact: sha256 of the pixels. Near: 64-bit DCT perceptual hash, Hamming distance 4 or less. The
list is written beside the crops, so that what was left out can be read.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from distill.data.crops import fingerprint, list_images, read_image
from edge.base.files import write_atomically

DISTANCE = 4
BITS = np.array([bin(byte).count("1") for byte in range(256)], dtype=np.uint8)


def perceptual_hash(picture: NDArray[np.uint8]) -> int:
    """64-bit DCT hash: the signs, against their median, of the 8x8 lowest frequencies of the
    picture in grey at 32x32 (Zauner, "Implementation and Benchmarking of Perceptual Image Hash
    Functions", 2010)."""
    grey = picture if picture.ndim == 2 else cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)
    small = cv2.resize(grey, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
    low = cv2.dct(small)[:8, :8].ravel()
    bits = low > np.median(low[1:])
    return int(np.packbits(bits).view(">u8")[0])


def _distances(one: NDArray[np.uint64], many: NDArray[np.uint64]) -> NDArray[np.uint8]:
    # NumPy 1.x, which Python 3.10 may carry, has no bitwise_count.
    different = (one[:, None] ^ many[None]).view(np.uint8).reshape(len(one), len(many), 8)
    return np.asarray(BITS[different].sum(axis=2, dtype=np.uint8))


def find_near_duplicates(
    data: Path,
    layout: str,
    keep_in: Path,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, list[tuple[str, str, str]]]:
    """Twins by the split they leave ("train", "valid"): (name, twin's "split/name", "exact"|"near").

    train yields to valid and test, valid to test; test keeps everything. The result is kept as
    `twins-SPLIT.csv` in `keep_in`, and read from there the next time.
    """
    files = {split: keep_in / f"twins-{split}.csv" for split in ("train", "valid")}
    listed = list_images(data, layout)
    key = " ".join(f"{split}={fingerprint(pictures)}" for split, pictures in listed.items())
    key_file = keep_in / "twins.key"
    if key_file.is_file() and key_file.read_text() == key:
        found = {}
        for split, path in files.items():
            with path.open(newline="", encoding="utf-8") as kept:
                found[split] = [(r["name"], r["twin"], r["kind"]) for r in csv.DictReader(kept)]
        return found
    exact: dict[str, list[str]] = {}
    near: dict[str, NDArray[np.uint64]] = {}
    names: dict[str, list[str]] = {}
    for split, pictures in listed.items():
        names[split] = [name for name, _ in pictures]
        exact[split], hashes = [], []
        for _, path in pictures:
            picture = read_image(path)
            exact[split].append(hashlib.sha256(picture.tobytes()).hexdigest())
            hashes.append(perceptual_hash(picture))
        near[split] = np.array(hashes, dtype=np.uint64)
        progress(f"{split}: {len(pictures)} pictures hashed")
    found = {}
    for split, above in (("train", ("valid", "test")), ("valid", ("test",))):
        rows: list[tuple[str, str, str]] = []
        others = [o for o in above if o in names]
        same = {h: f"{o}/{n}" for o in others for h, n in zip(exact[o], names[o], strict=True)}
        pool = np.concatenate([near[o] for o in others]) if others else np.empty(0, np.uint64)
        pool_names = [f"{o}/{n}" for o in others for n in names[o]]
        for start in range(0, len(names.get(split, [])), 512):
            block = near[split][start : start + 512]
            distance = _distances(block, pool) if len(pool) else np.full((len(block), 1), 64)
            closest = distance.argmin(axis=1)
            for i, place in enumerate(closest):
                name = names[split][start + i]
                if exact[split][start + i] in same:
                    rows.append((name, same[exact[split][start + i]], "exact"))
                elif distance[i, place] <= DISTANCE:
                    rows.append((name, pool_names[place], "near"))
        found[split] = rows
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([("name", "twin", "kind"), *rows])
        write_atomically(files[split], text.getvalue().encode())
        progress(f"{split}: {len(rows)} twins of {' and '.join(others)} left out")
    write_atomically(key_file, key.encode())
    return found


def names_of(twins: list[tuple[str, str, str]]) -> set[str]:
    return {name for name, _, _ in twins}
