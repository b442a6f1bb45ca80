"""`edge-crops`, a laboratory tool: a data set of single faces > crops, as the node would make them.

For each split two files are written: `SPLIT.npy`, (N, C, S, S) uint8, readable by memory map, and
`SPLIT.csv` with a row a crop: the picture's name and whether a face was found. Where none was
found the whole picture stands in; nothing is ever dropped.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.base import cli
from edge.base.errors import DataError
from edge.base.files import write_atomically
from edge.crop import CropSpec, crop_faces, crop_whole
from edge.detect import Detector
from edge.inference.backends import open_backend
from edge.inference.bundle import load_bundle
from edge.inference.weights import locked, resolve
from edge.records import Face

LAYOUTS = ("ferplus", "fer2013", "rafdb", "folders")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")

# Data sets hold faces that fill the picture; YuNet wants some room around one. On the first 600
# training pictures of FER2013 (score 0.5 or more): 97.3 % found at 160+48 px, 98.7 % at 224+80.
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
    """Pictures by split ("train", "valid", "test"), each a name and a path, sorted by name.

    ferplus, fer2013: FER2013Train|Valid|Test/*.png. rafdb: a tenth of train kept apart as valid,
    Image/aligned/{train,test}_NNNNN_aligned.jpg.
    folders: train|valid|test/CLASS/*, named CLASS/file. Raises DataError where the layout is not met.
    """
    if not data.is_dir():
        raise DataError(f"{data} is no folder; give the root of the data set")
    splits: dict[str, list[tuple[str, Path]]] = {}
    if layout in ("ferplus", "fer2013"):  # the same pictures under other labels
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
                if p.suffix.lower() in SUFFIXES
            ]
    splits = {split: rows for split, rows in splits.items() if rows}
    if not splits:
        raise DataError(f"{data} holds no pictures in the layout '{layout}'; see --help for it")
    return splits


def rafdb_split(name: str) -> str:
    """RAF-DB has no validation split: a tenth of its training pictures, by the hash of their names,
    is kept apart to choose on, so that nothing is ever chosen on the test split."""
    if name.startswith("test"):
        return "test"
    return "valid" if hashlib.sha256(name.encode()).digest()[0] < 26 else "train"


def fingerprint(pictures: list[tuple[str, Path]]) -> str:
    """Changes when a picture is added, removed, renamed or written anew."""
    digest = hashlib.sha256()
    for name, path in pictures:
        facts = path.stat()
        digest.update(f"{name}\0{facts.st_size}\0{facts.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def read_image(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 BGR; raises DataError naming the file."""
    try:
        picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise DataError(f"{path} cannot be read as a picture: {error.err}") from error
    if picture is None:
        raise DataError(f"{path} is missing or is no picture")
    return np.asarray(picture, dtype=np.uint8)


def crop_detector(weights: Path | None = None, threads: int = 1) -> Detector:
    """The deployed detector at the size that crops are made with; `weights` as in `resolve`."""
    backend = open_backend("ort", resolve("yunet", weights), threads)
    return Detector(backend, DETECT_SIDE, DETECT_SIDE, DETECT_SCORE)


def crop_single(
    picture: NDArray[np.uint8], detector: Detector, spec: CropSpec
) -> tuple[NDArray[np.uint8], bool]:
    """The crop of a picture of one face: (C, S, S) uint8, and whether the face was found."""
    height, width = picture.shape[:2]
    scale = FACE_SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    method = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
    room = cv2.copyMakeBorder(
        cv2.resize(picture, size, interpolation=method),
        MARGIN,
        MARGIN,
        MARGIN,
        MARGIN,
        cv2.BORDER_CONSTANT,
    )
    faces = detector.find(np.asarray(room, dtype=np.uint8))
    if not faces:
        return crop_whole(picture, spec)[0], False
    face = max(faces, key=lambda found: found.size)
    # Back to the original's pixels, whose centres resize keeps at (x + 0.5) * scale - 0.5.
    landmarks = ((face.landmarks - MARGIN + 0.5) / scale - 0.5).astype(np.float32)
    original = Face(box=face.box, landmarks=landmarks, score=face.score)
    return crop_faces(picture, [original], spec)[0], True


def crops_key(spec: CropSpec, detector_sha256: str) -> str:
    """Names everything that changes a crop."""
    facts = [spec.as_dict(), detector_sha256, FACE_SIDE, MARGIN, DETECT_SCORE, "v1"]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


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

    detector: of DETECT_SIDE x DETECT_SIDE and DETECT_SCORE. Raises DataError for a bad picture.
    """
    made = {}
    for split, pictures in list_images(data, layout).items():
        key = f"{crops_key(spec, locked()['yunet']['sha256'])} {fingerprint(pictures)}"
        key_file = out / f"{split}.key"
        if key_file.is_file() and key_file.read_text() == key:
            existing = load_crops(out, split)
            if existing is not None and existing.names == [name for name, _ in pictures]:
                made[split] = existing
                continue
        out.mkdir(parents=True, exist_ok=True)
        key_file.unlink(missing_ok=True)
        partial = out / f".{split}.{os.getpid()}.npy"
        pixels = np.lib.format.open_memmap(
            partial,
            mode="w+",
            dtype=np.uint8,
            shape=(len(pictures), spec.channels, spec.size, spec.size),
        )
        found: list[bool] = []

        def one(item: tuple[str, Path]) -> tuple[NDArray[np.uint8], bool]:
            return crop_single(read_image(item[1]), detector, spec)

        with ThreadPoolExecutor(workers) as pool:
            for index, (crop, was_found) in enumerate(pool.map(one, pictures)):
                pixels[index] = crop
                found.append(was_found)
                if (index + 1) % 1000 == 0 or index + 1 == len(pictures):
                    progress(f"{split}: {index + 1}/{len(pictures)} crops")
        pixels.flush()
        rows = out / f".{split}.{os.getpid()}.csv"
        _write_index(rows, zip((n for n, _ in pictures), found, strict=True))
        os.replace(partial, out / f"{split}.npy")
        os.replace(rows, out / f"{split}.csv")
        write_atomically(key_file, key.encode())  # last: without it the rest does not count
        loaded = load_crops(out, split)
        if loaded is None:
            raise DataError(f"the crops of '{split}' in {out} cannot be read back; check the disk")
        made[split] = loaded
    return made


def _write_index(path: Path, rows: Iterable[tuple[str, bool]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(["name", "found"])
        writer.writerows((name, int(found)) for name, found in rows)


def load_crops(folder: Path, split: str) -> Crops | None:
    """What make_crops left for a split, or None where that is missing or damaged."""
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
