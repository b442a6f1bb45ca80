"""`edge-crops`, a laboratory tool: a data set of single faces -> crops, as the node would make them.

For each split two files are written: `SPLIT.npy`, (N, C, S, S) uint8, readable by memory map, and
`SPLIT.csv` with a row a crop: the image's name and whether a face was found. Where none was
found the whole image is used; nothing is ever dropped.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from distill.data.data_set import DataSet, add_skip_option, fingerprint, open_data
from distill.data.disk import create_map, refuse_full_disk
from distill.data.layouts import LAYOUTS, Image
from distill.progress import Progress
from edge.base import cli
from edge.base.errors import DataError, EdgeError, UsageError
from edge.base.files import file_lock, refuse_unwritable, write_atomically
from edge.crop import crop_faces, crop_whole
from edge.detect import Detector
from edge.inference.bundle import CropSpec, load_bundle
from edge.inference.loader import open_backend
from edge.inference.weights import locked, resolve
from edge.records import Face
from edge.sources.images import read_picture

SAVE_EVERY = 256  # crops after which a killed run has them

# Data sets hold faces that fill the image; YuNet wants some room around one. On the first 600
# training images of FER2013 (score 0.5 or more): 97.3 % found at 160+48 px, 98.7 % at 224+80.
FACE_SIDE = 224
MARGIN = 80
DETECT_SIDE = FACE_SIDE + 2 * MARGIN
DETECT_SCORE = 0.5


@dataclass(frozen=True, slots=True)
class Crops:
    """One split's crops. pixels: (N, C, S, S) uint8 memory map; names: N; found: (N,) bool."""

    pixels: NDArray[np.uint8]
    names: list[str]
    found: NDArray[np.bool_]


def crop_detector(weights: Path | None = None, threads: int = 1) -> Detector:
    """Open the deployed detector at the size that crops are made with; `weights` as in `resolve`."""
    backend = open_backend("ort", resolve("yunet", weights), threads)
    return Detector(backend, DETECT_SIDE, DETECT_SIDE, DETECT_SCORE)


def require_detector(weights: Path | None) -> None:
    """Look whether crops can be made, before images are read. Raises UsageError where `--weights` is no
    folder, WeightsError where the detector's file cannot be had."""
    if weights and not weights.is_dir():
        raise UsageError(f"--weights {weights} is not a folder; give one with the detector's file")
    resolve("yunet", weights)


def find_single(image: NDArray[np.uint8], detector: Detector) -> Face | None:
    """Find the largest face of an (H, W, 3) image of one face; None where there is none.

    The landmarks are in pixels of the image, the box in those of the enlarged one."""
    height, width = image.shape[:2]
    scale = FACE_SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    method = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
    room = cv2.copyMakeBorder(
        cv2.resize(image, size, interpolation=method),
        MARGIN,
        MARGIN,
        MARGIN,
        MARGIN,
        cv2.BORDER_CONSTANT,
    )
    faces = detector.find(np.asarray(room, dtype=np.uint8))
    if not faces:
        return None
    face = max(faces, key=lambda found: found.size)
    # Back to the original's pixels, whose centres resize keeps at (x + 0.5) * scale - 0.5.
    landmarks = ((face.landmarks - MARGIN + 0.5) / scale - 0.5).astype(np.float32)
    return Face(box=face.box, landmarks=landmarks, score=face.score)


def crop_single(
    image: NDArray[np.uint8], detector: Detector, spec: CropSpec
) -> tuple[NDArray[np.uint8], bool]:
    """Crop an (H, W, 3) image of one face to (C, S, S) uint8; also, whether the face was found."""
    face = find_single(image, detector)
    if face is None:
        return crop_whole(image, spec)[0], False
    return crop_faces(image, [face], spec)[0], True


def crops_key(spec: CropSpec, detector_sha256: str) -> str:
    """Hash everything that changes a crop, twelve digits."""
    parts = [spec.as_dict(), detector_sha256, FACE_SIDE, MARGIN, DETECT_SCORE, "v1"]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def make_crops(
    data: DataSet,
    out: Path,
    detector: Detector,
    spec: CropSpec,
    progress: Callable[[str], None] = lambda line: None,
    workers: int = 2,
) -> dict[str, Crops]:
    """Crop every split of `data` into `out`; a split that is complete there is kept, and one that was
    cut off by a kill is resumed.

    detector: of DETECT_SIDE x DETECT_SIDE and DETECT_SCORE. Raises DataError where the crops cannot be
    kept, SourceError for an image that has become unreadable.
    """
    form = crops_key(spec, locked()["yunet"]["sha256"])
    keys = {split: f"{form} {fingerprint(images)}" for split, images in data.images.items()}
    missing = [split for split in keys if _complete(data, out, split, keys[split]) is None]
    try:
        if missing:
            side = spec.channels * spec.size * spec.size
            refuse_full_disk(out, side * sum(len(data.images[s]) for s in missing) - _taken(out))
            with file_lock(out / ".lock"):  # of two runs, the second finds them done
                for split in missing:
                    if _complete(data, out, split, keys[split]) is None:
                        part = _Part(out, split, keys[split])
                        part.crop(data.images[split], detector, spec, progress, workers)
    except OSError as error:
        raise DataError(
            f"cannot keep the crops in {out}: {error.strerror}; name another folder by --cache DIR"
        ) from error
    made = {split: _complete(data, out, split, key) for split, key in keys.items()}
    if lost := [split for split, crops in made.items() if crops is None]:
        raise DataError(f"the crops of '{lost[0]}' in {out} cannot be read back; check the disk")
    return {split: crops for split, crops in made.items() if crops}


def _complete(data: DataSet, out: Path, split: str, key: str) -> Crops | None:
    """Open a split's crops where they are those of its images; else None."""
    file = out / f"{split}.key"
    if not file.is_file() or file.read_text() != key:
        return None
    crops = load_crops(out, split)
    return crops if crops and crops.names == [name for name, _ in data.images[split]] else None


def _taken(out: Path) -> int:
    """Return the bytes that unfinished crops have already taken on the disk."""
    return sum(path.stat().st_size for path in out.glob(".*.part.npy"))


class _Part:
    """A split's crops while they are made: `.SPLIT.part.npy`, `.found` (a digit a finished row) and
    `.key`. A kill leaves them for the next run; an error removes them."""

    def __init__(self, out: Path, split: str, key: str) -> None:
        self._out, self._split, self._name = out, split, key
        self._pixels, self._found, self._key = (
            out / f".{split}.part.{end}" for end in ("npy", "found", "key")
        )

    def crop(
        self,
        images: list[Image],
        detector: Detector,
        spec: CropSpec,
        progress: Callable[[str], None],
        workers: int,
    ) -> None:
        """Write SPLIT.npy and SPLIT.csv, then SPLIT.key, without which they do not count."""
        try:
            found = self._rows(images, detector, spec, progress, workers)
            (self._out / f"{self._split}.key").unlink(missing_ok=True)
            text = io.StringIO()
            writer = csv.writer(text)
            writer.writerow(["name", "found"])
            writer.writerows((name, int(f)) for (name, _), f in zip(images, found, strict=True))
            os.replace(self._pixels, self._out / f"{self._split}.npy")
            write_atomically(self._out / f"{self._split}.csv", text.getvalue().encode())
            write_atomically(self._out / f"{self._split}.key", self._name.encode())
        except (OSError, EdgeError):
            self._pixels.unlink(missing_ok=True)
            raise
        finally:
            if not self._pixels.exists():
                self._found.unlink(missing_ok=True)
                self._key.unlink(missing_ok=True)

    def _resumed(self, shape: tuple[int, ...]) -> tuple[np.memmap[Any, Any], list[bool]]:
        """Open what a killed run left of the same images, or begin."""
        try:
            if self._key.read_text() == self._name:
                pixels = np.load(self._pixels, mmap_mode="r+", allow_pickle=False)
                if pixels.shape == shape and pixels.dtype == np.uint8:
                    return pixels, [digit == "1" for digit in self._found.read_text()[: shape[0]]]
        except (OSError, ValueError):
            pass
        self._key.unlink(missing_ok=True)
        self._pixels.unlink(missing_ok=True)
        made = create_map(self._pixels, np.uint8, shape)
        self._found.write_text("")
        self._key.write_text(self._name)  # last: now the rows can be trusted
        return made, []

    def _rows(
        self,
        images: list[Image],
        detector: Detector,
        spec: CropSpec,
        progress: Callable[[str], None],
        workers: int,
    ) -> list[bool]:
        """Crop the rows that are missing; return whether a face was found in each."""
        pixels, found = self._resumed((len(images), spec.channels, spec.size, spec.size))
        if found:
            progress(f"{self._split}: resumed after {len(found)} crops")

        def crop(item: Image) -> tuple[NDArray[np.uint8], bool]:
            return crop_single(read_picture(item[1]), detector, spec)

        saved = len(found)
        with (
            ThreadPoolExecutor(workers) as pool,
            self._found.open("a") as digits,
            Progress(f"cropping {self._split}", len(images), "crops", saved) as bar,
        ):
            for index, (cropped, was_found) in enumerate(pool.map(crop, images[saved:]), saved):
                pixels[index] = cropped
                found.append(was_found)
                bar.advance()
                last = len(found) == len(images)
                if len(found) % SAVE_EVERY == 0 or last:
                    pixels.flush()  # before the digits that vouch for the rows
                    digits.write("".join(str(int(f)) for f in found[saved:]))
                    digits.flush()
                    saved = len(found)
        progress(f"{self._split}: {len(found)}/{len(images)} crops")
        return found


def load_crops(folder: Path, split: str) -> Crops | None:
    """Open what make_crops wrote for a split; None where that is missing or damaged."""
    try:
        with (folder / f"{split}.csv").open(newline="", encoding="utf-8") as rows:
            table = list(csv.DictReader(rows))
        pixels = np.load(folder / f"{split}.npy", mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):
        return None
    if len(pixels) != len(table):
        return None
    return Crops(
        pixels=pixels,
        names=[row["name"] for row in table],
        found=np.array([row["found"] == "1" for row in table], dtype=bool),
    )


def run(argv: Sequence[str] | None = None) -> None:
    p = cli.parser(
        "edge-crops",
        "Crop a data set of single faces with the deployed detector and alignment; layouts as in\n"
        "distill/README.md. Writes SPLIT.npy and SPLIT.csv; a killed run is resumed.",
        "edge-crops ferplus --layout ferplus --out crops",
    )
    p.add_argument("data", type=Path, metavar="DATA", help="the root of the data set")
    p.add_argument("--layout", choices=LAYOUTS, required=True, help="how its folders lie")
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the crops go")
    add_skip_option(p)
    p.add_argument("--bundle", type=Path, metavar="DIR", help="whose crop; default: the shipped")
    p.add_argument("--weights", type=Path, metavar="DIR", help="folder with the detector's file")
    args = p.parse_args(argv)
    require_detector(args.weights)
    spec, detector = load_bundle(args.bundle).crop, crop_detector(args.weights)
    refuse_unwritable("--out", args.out, folder=True)
    data = open_data(args.data, args.layout, args.out, print, args.skip_bad)
    made = make_crops(data, args.out, detector, spec, print)
    for split, crops in made.items():
        print(f"{split}: {len(crops.names)} crops, face found in {100 * crops.found.mean():.2f} %")


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run("edge-crops", run, argv)


if __name__ == "__main__":
    sys.exit(main())
