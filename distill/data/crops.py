"""`edge-crops`, a laboratory tool: a data set of single faces -> crops, as the node would make them.

For each split two files are written: `SPLIT.npy`, (N, C, S, S) uint8, readable by memory map, and
`SPLIT.csv` with a row a crop: the image's name and whether a face was found. Where none was
found the whole image is used; nothing is ever dropped.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.base import cli
from edge.base.errors import DataError
from edge.base.files import write_atomically
from edge.crop import crop_faces, crop_whole
from edge.detect import Detector
from edge.inference.bundle import CropSpec, load_bundle
from edge.inference.loader import open_backend
from edge.inference.weights import locked, resolve
from edge.records import Face
from edge.sources.images import read_picture
from edge.sources.recorded import PICTURES

LAYOUTS = ("ferplus", "fer2013", "rafdb", "folders")

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


def list_images(data: Path, layout: str) -> dict[str, list[tuple[str, Path]]]:
    """List the images by split ("train", "valid", "test"), each a name and a path, sorted by name.

    ferplus, fer2013: FER2013Train|Valid|Test/*.png. rafdb: a tenth of train kept apart as valid,
    Image/aligned/{train,test}_NNNNN_aligned.jpg.
    folders: train|valid|test/CLASS/*, named CLASS/file. Raises DataError where the layout is not met.
    """
    if not data.is_dir():
        raise DataError(f"{data} is not a folder; give the root of the data set")
    splits: dict[str, list[tuple[str, Path]]] = {}
    if layout in ("ferplus", "fer2013"):  # the same images under other labels
        for split in ("train", "valid", "test"):
            folder = data / f"FER2013{split.capitalize()}"
            splits[split] = [(p.name, p) for p in sorted(folder.glob("*.png"))]
    elif layout == "rafdb":
        for path in sorted((data / "Image" / "aligned").glob("t*_*_aligned.jpg")):
            name = path.name.replace("_aligned", "")
            splits.setdefault(rafdb_split(name), []).append((name, path))
    else:
        for split in ("train", "valid", "test"):
            splits[split] = [
                (f"{p.parent.name}/{p.name}", p)
                for p in sorted((data / split).glob("*/*"))
                if p.suffix.lower() in PICTURES
            ]
    splits = {split: rows for split, rows in splits.items() if rows}
    if not splits:
        raise DataError(f"{data} holds no images in the layout '{layout}'; see --help for it")
    return splits


def rafdb_split(name: str) -> str:
    """Name the split of an image of RAF-DB, which has none for validation: a tenth of its training
    images, by the hash of their names, is kept apart to choose on, never the test split."""
    if name.startswith("test"):
        return "test"
    return "valid" if hashlib.sha256(name.encode()).digest()[0] < 26 else "train"


def fingerprint(images: list[tuple[str, Path]]) -> str:
    """Hash what changes when an image is added, removed, renamed or overwritten."""
    digest = hashlib.sha256()
    for name, path in images:
        status = path.stat()
        digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def crop_detector(weights: Path | None = None, threads: int = 1) -> Detector:
    """Open the deployed detector at the size that crops are made with; `weights` as in `resolve`."""
    backend = open_backend("ort", resolve("yunet", weights), threads)
    return Detector(backend, DETECT_SIDE, DETECT_SIDE, DETECT_SCORE)


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
    data: Path,
    layout: str,
    out: Path,
    detector: Detector,
    spec: CropSpec,
    progress: Callable[[str], None] = lambda line: None,
    workers: int = 2,
) -> dict[str, Crops]:
    """Crop every split of `data` into `out`; a split that is complete there is kept.

    detector: of DETECT_SIDE x DETECT_SIDE and DETECT_SCORE. Raises SourceError for a bad image.
    """
    made = {}
    for split, images in list_images(data, layout).items():
        key = f"{crops_key(spec, locked()['yunet']['sha256'])} {fingerprint(images)}"
        key_file = out / f"{split}.key"
        existing = load_crops(out, split) if _holds(key_file, key) else None
        if existing is None or existing.names != [name for name, _ in images]:
            out.mkdir(parents=True, exist_ok=True)
            key_file.unlink(missing_ok=True)
            _crop_split(out, split, images, detector, spec, progress, workers)
            write_atomically(key_file, key.encode())  # last: without it the rest does not count
            existing = load_crops(out, split)
        if existing is None:
            raise DataError(f"the crops of '{split}' in {out} cannot be read back; check the disk")
        made[split] = existing
    return made


def _holds(file: Path, text: str) -> bool:
    return file.is_file() and file.read_text() == text


def _crop_split(
    out: Path,
    split: str,
    images: list[tuple[str, Path]],
    detector: Detector,
    spec: CropSpec,
    progress: Callable[[str], None],
    workers: int,
) -> None:
    """Write SPLIT.npy and SPLIT.csv, each whole or not at all."""
    pixels_file, index_file = (out / f".{split}.{os.getpid()}.{end}" for end in ("npy", "csv"))
    shape = (len(images), spec.channels, spec.size, spec.size)
    pixels = np.lib.format.open_memmap(pixels_file, mode="w+", dtype=np.uint8, shape=shape)
    found: list[bool] = []

    def crop(item: tuple[str, Path]) -> tuple[NDArray[np.uint8], bool]:
        return crop_single(read_picture(item[1]), detector, spec)

    with ThreadPoolExecutor(workers) as pool:
        for index, (cropped, was_found) in enumerate(pool.map(crop, images)):
            pixels[index] = cropped
            found.append(was_found)
            if (index + 1) % 1000 == 0 or index + 1 == len(images):
                progress(f"{split}: {index + 1}/{len(images)} crops")
    pixels.flush()
    with index_file.open("w", newline="", encoding="utf-8") as rows:
        writer = csv.writer(rows)
        writer.writerow(["name", "found"])
        writer.writerows((n, int(f)) for (n, _), f in zip(images, found, strict=True))
    os.replace(pixels_file, out / f"{split}.npy")
    os.replace(index_file, out / f"{split}.csv")


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
        "Crop a data set of single faces with the deployed detector and alignment.\n"
        "ferplus, fer2013: FER2013Train|Valid|Test/*.png; rafdb: Image/aligned/*_aligned.jpg (a tenth\n"
        "of train becomes valid);\n"
        "folders: train|valid|test/CLASS/*. Writes SPLIT.npy and SPLIT.csv.",
        "edge-crops ferplus --layout ferplus --out crops",
    )
    p.add_argument("data", type=Path, metavar="DATA")
    p.add_argument("--layout", choices=LAYOUTS, required=True)
    p.add_argument("--out", type=Path, required=True, metavar="DIR")
    p.add_argument("--bundle", type=Path, metavar="DIR", help="whose crop; default: the shipped")
    p.add_argument("--weights", type=Path, metavar="DIR", help="folder with the detector's file")
    args = p.parse_args(argv)
    spec = load_bundle(args.bundle).crop
    made = make_crops(args.data, args.layout, args.out, crop_detector(args.weights), spec, print)
    for split, crops in made.items():
        print(f"{split}: {len(crops.names)} crops, face found in {100 * crops.found.mean():.2f} %")


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run("edge-crops", run, argv)


if __name__ == "__main__":
    sys.exit(main())
