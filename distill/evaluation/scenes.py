"""`distill-scenes`: thirty faces at once through the whole node, at several face sizes.

Each scene is a 640x480 image of test faces on grey, in rows and columns, held still for one window;
`edge-run` reads it as it would a camera and its published counts are compared with the labels. The
images live in a temporary folder and go with it.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from distill.data.crops import LAYOUTS, list_images
from distill.data.splits import majority
from distill.data.votes import READERS
from edge.base import cli
from edge.base.errors import DataError, EdgeError, UsageError
from edge.base.files import write_atomically
from edge.inference.bundle import SHIPPED, load_bundle
from edge.sources.images import read_picture

WIDTH, HEIGHT = 640, 480
COLUMNS, ROWS = 6, 5
FRAMES, PER_SECOND = 20, 10.0  # one window of two seconds
SIZES = (16, 24, 32, 48)
CONFIG = """
camera: {{pictures_per_second: {per_second}}}
privacy: {{min_group: 1}}
detector: {detector}
window: {{seconds: {window}}}
broker: {{url: "-"}}
runtime: {{state: {state}}}
"""


@dataclass(frozen=True, slots=True)
class SceneScore:
    """One face size. found: mean of faces in view / 30; counted: share of the labels' counts that the
    node's counts cover, label by label (1 - total variation, unclassified and missed are wrong)."""

    face_px: int
    scenes: int
    found: float
    counted: float


def compose(faces: Sequence[NDArray[np.uint8]], size: int) -> NDArray[np.uint8]:
    """Lay up to thirty square faces of `size` pixels a side on grey: (480, 640, 3) uint8."""
    scene = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    for index, face in enumerate(faces):
        row, column = divmod(index, COLUMNS)
        y = int((row + 0.5) * HEIGHT / ROWS) - size // 2
        x = int((column + 0.5) * WIDTH / COLUMNS) - size // 2
        way = cv2.INTER_AREA if size < face.shape[0] else cv2.INTER_LINEAR
        small = cv2.resize(face, (size, size), interpolation=way)
        scene[y : y + size, x : x + size] = small[..., None] if small.ndim == 2 else small
    return scene


def node_counts(
    scene: NDArray[np.uint8], bundle: Path, weights: Path | None, side: tuple[int, int]
) -> dict[str, int]:
    """Run the node for one window and return its published counts, `faces` among them; side: of the
    detector's input, to which it scales the scene. Raises EdgeError where the node fails."""
    with tempfile.TemporaryDirectory(prefix="scenes-") as place:
        folder = Path(place) / "images"
        folder.mkdir()
        coded = cv2.imencode(".png", scene)[1].tobytes()
        for index in range(FRAMES):
            (folder / f"{index:03d}.png").write_bytes(coded)
        config = Path(place) / "node.yaml"
        window = FRAMES / PER_SECOND
        detector: dict[str, object] = {"width": side[0], "height": side[1]}
        if weights:
            detector["weights"] = str(weights.resolve())
        config.write_text(
            CONFIG.format(
                per_second=PER_SECOND,
                window=window,
                state=Path(place) / "state",
                detector=json.dumps(detector),
            )
        )
        command = [sys.executable, "-m", "edge.run", "--config", str(config)]
        command += ["--camera", str(folder), "--bundle", str(bundle), "--broker", "-"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EdgeError(f"edge-run ended with {done.returncode}: {done.stderr.strip()[-200:]}")
    for line in done.stdout.splitlines():
        message = json.loads(line)
        if message["topic"].endswith("/counts"):
            payload = message["payload"]
            faces = payload["faces"]  # null where the window saw no image in time
            return {**(payload["counts"] or {}), "faces": faces["max"] if faces else 0}
    raise EdgeError("edge-run published no counts; see its log")


def measure(
    images: list[NDArray[np.uint8]],
    truth: list[str],
    bundle: Path,
    weights: Path | None,
    scenes: int,
    side: tuple[int, int] = (WIDTH, HEIGHT),
    sizes: Sequence[int] = SIZES,
) -> list[SceneScore]:
    """Count scenes of thirty faces for every size, the same faces for all; side: (width, height) of
    the detector's input."""
    each = COLUMNS * ROWS
    rng = np.random.default_rng(0)
    drawn = [rng.choice(len(images), each, replace=False) for _ in range(scenes)]
    rows = []
    for size in sizes:
        found, counted = [], []
        for places in drawn:
            scene = compose([images[i] for i in places], size)
            counts = node_counts(scene, bundle, weights, side)
            found.append(min(counts["faces"], each) / each)
            right = [truth[i] for i in places]
            both = sum(min(counts.get(k, 0), right.count(k)) for k in set(right))
            counted.append(both / each)
        rows.append(SceneScore(size, scenes, float(np.mean(found)), float(np.mean(counted))))
        print(
            f"{size:3d} px: {100 * rows[-1].found:5.1f} % of 30 faces found, "
            f"{100 * rows[-1].counted:5.1f} % counted as labelled ({scenes} scenes)",
            flush=True,
        )
    return rows


def run(argv: Sequence[str] | None = None) -> None:
    p = cli.parser(
        "distill-scenes",
        "Scenes of thirty test faces at 16, 24, 32 and 48 pixels through the whole node.",
        "distill-scenes --bundle edge/models --data ferplus --layout ferplus",
    )
    p.add_argument("--bundle", type=Path, default=SHIPPED, metavar="DIR")
    p.add_argument("--data", type=Path, required=True, metavar="DIR", help="the raw data set")
    p.add_argument("--layout", choices=LAYOUTS, required=True)
    p.add_argument("--split", choices=("valid", "test"), default="test")
    p.add_argument("--scenes", type=int, default=10, metavar="N", help="for every size")
    p.add_argument(
        "--detector",
        default=f"{WIDTH}x{HEIGHT}",
        metavar="WxH",
        help="the node's detector.width and height, to which it scales the scene",
    )
    p.add_argument("--json", type=Path, metavar="out.json", help="write the table")
    p.add_argument("--weights", type=Path, metavar="DIR", help="folder with the detector's file")
    args = p.parse_args(argv)
    load_bundle(args.bundle)
    width, _, height = args.detector.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise UsageError(f"--detector {args.detector}: give it as 640x480")
    listed = list_images(args.data, args.layout).get(args.split)
    if not listed:
        raise DataError(f"{args.data} has no split '{args.split}'")
    voted, labels = READERS[args.layout](args.data, args.split)
    labelled = [(name, path) for name, path in listed if name in voted]
    table = np.array([voted[name].votes for name, _ in labelled], dtype=np.int64)
    truth = majority(table, len(labels)) if labelled else np.empty(0, dtype=np.int64)
    kept = [(path, labels[k]) for (_, path), k in zip(labelled, truth, strict=True) if k >= 0]
    if len(kept) < COLUMNS * ROWS:
        raise DataError(f"{args.data}: fewer than {COLUMNS * ROWS} labelled images")
    rows = measure(
        [read_picture(path) for path, _ in kept],
        [name for _, name in kept],
        args.bundle,
        args.weights,
        args.scenes,
        (int(width), int(height)),
    )
    if args.json:
        content = json.dumps([dataclasses.asdict(row) for row in rows], indent=1) + "\n"
        write_atomically(args.json, content.encode())


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run("distill-scenes", run, argv)


if __name__ == "__main__":
    sys.exit(main())
