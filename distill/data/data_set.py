"""A data set that has been looked through: its images, labels and bad files, first of all.

`open_data` lists the images and says what is left out, checks the labels' rows, and opens every image
once. What it found is kept as `checked.json` with the crops, and read from there the next time.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distill.data.layouts import (
    LAYOUTS,
    NAMED,
    SPLITS,
    BadFile,
    Image,
    list_images,
    shown,
    some,
)
from distill.data.votes import label_file, read_votes
from distill.progress import Progress
from edge.base.errors import DataError
from edge.base.files import refuse_unwritable, write_atomically
from edge.sources.images import PictureError, read_picture

Say = Callable[[str], None]

CACHE_VARIABLE = "DISTILL_CACHE"
KEPT = "checked.json"
WORKERS = 2


def fingerprint(images: Collection[Image]) -> str:
    """Hash what changes when an image is added, removed, renamed or overwritten."""
    digest = hashlib.sha256()
    for name, path in images:
        status = path.stat()
        digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class DataSet:
    """images: by split ("train", "valid", "test"), sorted by name, all of them readable; crops:
    the folder under which its crops are kept; skipped: images by split that cannot be read."""

    root: Path
    layout: str
    images: dict[str, list[Image]]
    crops: Path
    skipped: dict[str, frozenset[str]]
    train_on_all: bool = False

    def __str__(self) -> str:
        return str(self.root)

    def demand(self, split: str) -> list[Image]:
        """Return a split's images; raises DataError where there are none."""
        if split not in self.images:
            hint = "add its folder"
            if split == "valid":
                hint = "add its folder (distill-train can also do without: --train-on-all)"
                if self.layout == "folders" and self._is_rafdb():
                    hint = "RAF-DB in Kaggle's form is read by --layout rafdb"
            have = ", ".join(self.images)
            raise DataError(f"{self} has no images of split '{split}', only of {have}; {hint}")
        return self.images[split]

    def _is_rafdb(self) -> bool:
        return {path.parent.name for _, path in self.images.get("train", [])} == set("1234567")

    def votes(self, split: str) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        """Return the votes (N, K + extra) for a split's images, in their order, and the K labels.

        Raises DataError for a split that is not there, an image without a row or a row without an
        image."""
        images = self.demand(split)
        table, labels = read_votes(self.root, self.layout, split, self.images, self.train_on_all)
        have = {name for name, _ in images} | self.skipped.get(split, frozenset())
        if missing := [name for name in table if name not in have]:
            raise DataError(
                f"{table[missing[0]].where} names a missing image of '{split}', {missing[0]} "
                f"({len(missing)} such rows); bring it back or take the row out"
            )
        if nameless := [name for name, _ in images if name not in table]:
            raise DataError(
                f"{label_file(self.root, self.layout, split)} has no row for {nameless[0]} of "
                f"'{split}' ({len(nameless)} such images)"
            )
        return np.array([table[name].votes for name, _ in images], dtype=np.int64), labels


def add_data_options(p: argparse.ArgumentParser, layout: str | None = None) -> None:
    """Add the options that name a data set and where its crops are kept. layout: the default; without
    one the option must be given."""
    p.add_argument("--data", type=Path, required=True, metavar="DIR", help="the raw data set")
    p.add_argument(
        "--layout",
        choices=LAYOUTS,
        default=layout,
        required=layout is None,
        help="how its folders lie",
    )
    p.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help=f"where crops and features are kept; default: ${CACHE_VARIABLE}, else beside the data",
    )
    add_skip_option(p)


def add_skip_option(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--skip-bad",
        action="store_true",
        help="leave out pictures that cannot be read, and list them",
    )


def crops_root(root: Path, cache: Path | None) -> Path:
    """Name the folder under which a data set's crops are kept: DATA.crops beside it, or in `cache`, by
    its name and place so that two sets of one name do not meet."""
    cache = cache or (Path(given) if (given := os.environ.get(CACHE_VARIABLE)) else None)
    root = root.resolve()
    if cache is None:
        return root.with_name(root.name + ".crops")
    place = hashlib.sha256(os.fsencode(root)).hexdigest()[:8]
    return cache / f"{root.name}-{place}.crops"


def data_of(
    args: argparse.Namespace, say: Say, needs: Collection[str], train_on_all: bool = False
) -> DataSet:
    """Open the data set that the options of `add_data_options` name; see `open_data`."""
    crops = crops_root(args.data, args.cache)
    if args.cache and not crops.exists():  # finished crops may lie on a disk that is read-only
        refuse_unwritable("--cache", args.cache, folder=True)
    return open_data(args.data, args.layout, crops, say, args.skip_bad, train_on_all, needs)


def open_data(
    root: Path,
    layout: str,
    crops: Path,
    say: Say,
    skip_bad: bool = False,
    train_on_all: bool = False,
    needs: Collection[str] = (),
) -> DataSet:
    """Look a data set through. crops: see `DataSet`; needs: the splits whose labels are wanted.

    Raises DataError for missing splits, labels that do not fit, and, unless `skip_bad`, for images that
    cannot be read: all of them in one line."""
    listing = list_images(root, layout, train_on_all)
    for why, names in listing.left_out.items():
        say(f"left out, {why}: {len(names)} ({some(names)})")
    listed = DataSet(root, layout, listing.images, crops, {}, train_on_all)
    if train_on_all and "valid" in listing.images:
        raise DataError(
            f"{root} has a validation split of its own; --train-on-all is for data without one"
        )
    bad = listing.bad
    if not bad:  # else rows may name those images: these come first
        _check_labels(listed, needs, say)
    bad = bad + _unreadable(listed, say)
    if not bad:
        return listed
    lines = [f"{one.file} {one.why}" for one in bad]
    total = len(listing.bad) + sum(len(images) for images in listing.images.values())
    if not skip_bad:
        more = f"; all are listed in {crops / KEPT}" if len(bad) > NAMED else ""
        raise DataError(
            f"{root}: {len(bad)} of {total} pictures cannot be read; mend or remove them, or leave "
            f"them out by --skip-bad: {some(lines)}{more}"
        )
    for line in lines:
        say(f"skipped: {line}")
    say(f"skipped: {len(bad)} of {total} pictures, which cannot be read")
    out = {split: frozenset(one.name for one in bad if one.split == split) for split in SPLITS}
    kept = {
        split: [image for image in images if image[0] not in out[split]]
        for split, images in listing.images.items()
    }
    data = replace(listed, images={s: images for s, images in kept.items() if images}, skipped=out)
    _check_labels(data, needs, say)
    return data


def _check_labels(data: DataSet, needs: Collection[str], say: Say) -> None:
    """Read the labels of the splits that are needed. Raises DataError where a training split has one
    class or no label, or the validation split none to choose by."""
    for split in needs:
        votes, labels = data.votes(split)
        counts = votes[:, : len(labels)].sum(axis=0)
        # A split that is scored alone may be bare.
        if "train" in needs and not counts.any():
            raise DataError(f"no image of {data}'s '{split}' has a label; give data with labels")
        if split == "train" and len(labels) < 2:
            raise DataError(f"{data} has one class, '{labels[0]}'; give two or more")
        if split == "train" and (
            empty := [k for k, n in zip(labels, counts, strict=True) if not n]
        ):
            say(f"no picture of train is labelled {', '.join(empty)}: that cannot be learned")


def _unreadable(data: DataSet, say: Say) -> list[BadFile]:
    """Open every image; return those that cannot be read."""
    images = [(split, *image) for split, rows in data.images.items() for image in rows]
    key = {split: fingerprint(rows) for split, rows in data.images.items()}
    kept = data.crops / KEPT
    try:
        known = json.loads(kept.read_text(encoding="utf-8"))
        if known["images"] == key:
            return [BadFile(**entry) for entry in known["bad"]]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not looked through yet
    say(f"looking through {len(images)} pictures")

    def fault(image: tuple[str, str, Path]) -> str | None:
        try:
            read_picture(image[2])
        except PictureError as error:
            return error.why
        return None

    bad = []
    with (
        ThreadPoolExecutor(WORKERS) as pool,
        Progress("looking through", len(images), "pictures") as bar,
    ):
        for (split, name, path), why in zip(images, pool.map(fault, images), strict=True):
            bar.advance()
            if why:
                bad.append(BadFile(split, name, shown(path, data.root), why))
    text = json.dumps(
        {"images": key, "bad": [asdict(one) for one in bad]}, indent=1, ensure_ascii=False
    )
    # A place that cannot be written to is no fault where its crops are there already.
    with contextlib.suppress(OSError):
        write_atomically(kept, text.encode())
    return bad
