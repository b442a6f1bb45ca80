"""List a data set's images as its layout has them, and name everything else that lies there.

Nothing is opened but files whose name tells nothing, and of those the first bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edge.base.errors import DataError
from edge.sources.recorded import PICTURES

LAYOUTS = ("ferplus", "fer2013", "rafdb", "folders")
SPLITS = ("train", "valid", "test")
NAMED = 20  # files named in a message; then a number

# Folders that notebooks (.ipynb_checkpoints), NAS (@eaDir, #recycle), Windows ($RECYCLE.BIN), macOS
# (__MACOSX) and Python leave; of files the first alone (._x, .DS_Store), since #1.jpg is a picture.
HIDDEN = (".", "@", "#", "$", "__")
# How pictures begin; those in formats that are not read are named too.
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"RIFF")

Image = tuple[str, Path]  # its name, and where it lies


@dataclass(frozen=True, slots=True)
class BadFile:
    """An image of a split that cannot be used. file: its name below the data set's root, in UTF-8."""

    split: str
    name: str
    file: str
    why: str


@dataclass(frozen=True, slots=True)
class Listing:
    """images: by split, sorted by name; left_out: names below the root by the reason; bad: images
    whose very name or link is at fault."""

    images: dict[str, list[Image]]
    left_out: dict[str, list[str]]
    bad: list[BadFile]


def normal(name: str) -> str:
    """Compose a name's letters (Unicode NFC): macOS decomposes them, label files seldom do."""
    return unicodedata.normalize("NFC", name)


def shown(path: Path, root: Path) -> str:
    """Name a file below `root` in UTF-8; bytes that are not stand as \\xNN."""
    return os.fsencode(path.relative_to(root)).decode("utf-8", "backslashreplace")


def some(names: Iterable[str]) -> str:
    """Join the first NAMED names, and say how many more there are."""
    listed = list(names)
    rest = f" and {len(listed) - NAMED} more" if len(listed) > NAMED else ""
    return ", ".join(listed[:NAMED]) + rest


def list_images(data: Path, layout: str, train_on_all: bool = False) -> Listing:
    """List the images by split ("train", "valid", "test").

    ferplus, fer2013: FER2013Train|Valid|Test/*.png. rafdb: the holders' Image/aligned/*_aligned.jpg,
    or Kaggle's train|test/1..7; a tenth of train is kept apart as valid unless `train_on_all`.
    folders: train|valid|test/CLASS/*, named CLASS/file. Raises DataError where the layout is not met.
    """
    if not data.is_dir():
        raise DataError(f"{data} is not a folder; give the root of the data set")
    walk = _walked(data, layout, train_on_all)
    images = {split: sorted(walk.images[split]) for split in SPLITS if walk.images[split]}
    if not images and not walk.bad:
        lies = f"; {walk.summary()}" if walk.left_out else ""
        others = (name for name in LAYOUTS if name != layout)
        met = [name for name in others if any(_walked(data, name).images.values())]
        wanted = f"give --layout {' or '.join(met)}, or " if met else ""
        raise DataError(
            f"{data} holds no images in the layout '{layout}'{lies}; {wanted}see 'Data layouts' in "
            f"distill/README.md"
        )
    return Listing(images, dict(walk.left_out), walk.bad)


def _walked(data: Path, layout: str, train_on_all: bool = False) -> _Walk:
    walk = _Walk(data)
    if layout in ("ferplus", "fer2013"):  # the same images under other labels
        for split in SPLITS:
            folder = data / f"FER2013{split.capitalize()}"
            for path in walk.pictures(folder, (".png",), ignore=("label.csv",)):
                walk.keep(split, path.name, path)
    elif layout == "rafdb":
        _list_rafdb(walk, data, train_on_all)
    else:
        _list_folders(walk, data)
    return walk


def pictures_below(folder: Path) -> Iterator[Path]:
    """Find the pictures in a folder and in those inside of it, without hidden ones."""
    for parent, below, files in os.walk(folder):
        below[:] = sorted(name for name in below if not name.startswith(HIDDEN))
        for name in sorted(files):
            if not name.startswith(".") and name.lower().endswith(PICTURES):
                yield Path(parent) / name


class _Walk:
    """Goes through a data set's folders; keeps images and notes what is left out."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.images: dict[str, list[Image]] = {split: [] for split in SPLITS}
        self.left_out: dict[str, list[str]] = defaultdict(list)
        self.bad: list[BadFile] = []

    def leave_out(self, why: str, path: Path) -> None:
        self.left_out[why].append(shown(path, self.root))

    def summary(self) -> str:
        return "; ".join(
            f"{len(names)} {why}: {some(names)}" for why, names in self.left_out.items()
        )

    def keep(self, split: str, name: str, path: Path) -> None:
        """Take an image into a split, unless its name cannot be written or it is a link to nothing."""
        why = ""
        try:
            name.encode()
        except UnicodeEncodeError:
            why = "has a name that is not UTF-8"
        else:
            if not path.exists():
                why = f"is a link to a file that is not there, {os.readlink(path)}"
        if why:
            self.bad.append(BadFile(split, normal(name), shown(path, self.root), why))
            return
        self.images[split].append((normal(name), path))

    def folders(self, parent: Path) -> list[Path]:
        """Return the folders in one, sorted, without the hidden ones; files in it are noted."""
        found = []
        for path in sorted(parent.iterdir()) if parent.is_dir() else []:
            if path.name.startswith(HIDDEN if path.is_dir() else "."):
                self.leave_out("hidden", path)
            elif path.is_dir():
                found.append(path)
            elif path.suffix.lower() in PICTURES:
                self.leave_out("outside a class folder", path)
        return found

    def pictures(
        self, folder: Path, endings: tuple[str, ...] = PICTURES, ignore: Iterable[str] = ()
    ) -> list[Path]:
        """Return a folder's own pictures, sorted; all else in it is noted."""
        kept = []
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            if path.name in ignore:
                continue
            if path.name.startswith("."):
                self.leave_out("hidden", path)
            elif path.is_dir():
                for picture in pictures_below(path):
                    self.leave_out("in deeper folders", picture)
            elif path.suffix.lower() in endings:
                kept.append(path)
            else:
                self._other(path, endings)
        return kept

    def _other(self, path: Path, endings: tuple[str, ...]) -> None:
        start = b""
        if path.is_file():  # of a pipe nothing would ever come
            with contextlib.suppress(OSError), path.open("rb") as content:
                start = content.read(12)
        if start.startswith(_MAGIC) or start[4:8] == b"ftyp":
            # .gif, .heic and the like are not read; one without an ending is renamed.
            why = f"pictures without an ending that is read here ({' '.join(endings)})"
            self.leave_out(why, path)
        else:
            self.leave_out("no pictures", path)


def _list_folders(walk: _Walk, data: Path) -> None:
    for folder in walk.folders(data):
        if folder.name not in SPLITS:
            walk.leave_out("folders that are no split (train, valid, test)", folder)
    for split in SPLITS:
        for folder in walk.folders(data / split):
            label = shown(folder, data / split)
            if label != folder.name:
                raise DataError(f"{data / split}: class folder '{label}' is not UTF-8; rename it")
            pictures = walk.pictures(folder)
            if not pictures:
                walk.leave_out("class folders without a picture, which are no classes", folder)
            for path in pictures:
                walk.keep(split, f"{folder.name}/{path.name}", path)


def rafdb_split(name: str, train_on_all: bool = False) -> str:
    """Name the split of an image of RAF-DB, which has none for validation: a tenth of its training
    images, by the hash of their names, is kept apart to choose on, never the test split."""
    if name.startswith("test"):
        return "test"
    apart = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[0] < 26
    return "valid" if apart and not train_on_all else "train"


def rafdb_holders(data: Path) -> Path | None:
    """Find the folder with `Image` and `EmoLabel` as RAF-DB's holders publish them; None elsewhere."""
    return next((b for b in (data, data / "basic") if (b / "Image" / "aligned").is_dir()), None)


def _list_rafdb(walk: _Walk, data: Path, train_on_all: bool) -> None:
    if base := rafdb_holders(data):
        folder = base / "Image" / "aligned"
        inner = folder / "aligned"  # where the archive was unpacked into a folder of its own name
        for path in walk.pictures(inner if inner.is_dir() else folder):
            name = path.name.replace("_aligned", "")
            if name == path.name or not name.startswith(("train_", "test_")):
                walk.leave_out("not named train_N_aligned.jpg or test_N_aligned.jpg", path)
                continue
            walk.keep(rafdb_split(name, train_on_all), name, path)
        return
    for base in (data, data / "basic"):
        if (archive := base / "Image" / "aligned.zip").is_file():
            raise DataError(f"{archive} is packed; unpack it there, into {archive.with_suffix('')}")
    base = next((b for b in (data, data / "DATASET") if (b / "train" / "1").is_dir()), data)
    for given in ("train", "test"):
        for folder in walk.folders(base / given):
            if folder.name not in set("1234567"):
                walk.leave_out("folders that are none of RAF-DB's classes 1 to 7", folder)
                continue
            for path in walk.pictures(folder):
                name = path.name.replace("_aligned", "")
                split = rafdb_split(name if given == "train" else "test", train_on_all)
                walk.keep(split, name, path)
