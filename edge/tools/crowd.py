"""`edge-crowd`: score the node's counts on pictures in which somebody drew a box around every face.

Every picture goes through the node's own detector and tracker, at its settings, as a picture that
stands alone: whoever is in view counts at once, and no group is too small. A box is found where one of
the people overlaps it (IoU of OVERLAP and more, at most one each, by optimal assignment).

Boxes that cannot be judged are ignored: marked invalid, without area, centred outside of the picture or
in one of the node's masks, or smaller than --ignore-below. They are no misses, and who is found in one
is neither counted nor false.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import process_time
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.assemble import open_pipeline
from edge.base import cli
from edge.base.assignment import assign
from edge.base.errors import DataError, UsageError
from edge.base.files import refuse_unwritable, write_atomically
from edge.base.strict_yaml import read_yaml, validate
from edge.detect import open_detector
from edge.inference.loader import open_student
from edge.pipeline import Pipeline, cover
from edge.settings import Settings
from edge.sources.images import MAX_SIDE, read_picture
from edge.sources.recorded import PICTURES
from edge.tools.boxes import Labelled, read_boxes

OVERLAP = 0.4
# Sides of faces, in pixels of the picture: from each to the next.
SIZES = (0, 8, 12, 16, 24, 32, 48, 96)
ROUNDS, SEED = 2000, 0
# Farther apart than any setting of the tracker remembers: nobody is taken from one picture to the next.
APART_SECONDS = 1000.0
IMPOSSIBLE = 1e6
NAMED = 3  # so many names are said in a line
GREY = 114


@dataclass(frozen=True, slots=True)
class Score:
    """One picture at one scale. people: boxes that count; counted: people that the node counts there;
    false: of these, without a box; faces, found: by size (SIZES); ignored: boxes, by reason; size: the
    detector's; cpu_seconds: of the detector, on all its cores."""

    name: str
    scale: float
    people: int
    counted: int
    false: int
    faces: NDArray[np.int64]
    found: NDArray[np.int64]
    ignored: dict[str, int]
    size: str = ""
    cpu_seconds: float = 0.0


def overlaps(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the IoU (A, B) of boxes (A, 4) and (B, 4), left, top, width, height."""
    start = np.maximum(a[:, None, :2], b[None, :, :2])
    end = np.minimum((a[:, :2] + a[:, 2:])[:, None], (b[:, :2] + b[:, 2:])[None])
    common = np.prod(np.clip(end - start, 0, None), axis=2)
    union = np.prod(a[:, 2:], axis=1)[:, None] + np.prod(b[:, 2:], axis=1)[None] - common
    return np.asarray(common / np.maximum(union, 1e-9))


def match(boxes: NDArray[np.float64], people: NDArray[np.float64]) -> list[tuple[int, int]]:
    """Pair boxes (B, 4) with people (P, 4): as many as can be, then those that overlap most."""
    if not len(boxes) or not len(people):
        return []
    share = overlaps(boxes, people)
    cost = np.where(share >= OVERLAP, 1 - share, IMPOSSIBLE)
    return [(i, j) for i, j in assign(cost) if cost[i, j] < IMPOSSIBLE]


def judge(
    labelled: Labelled,
    scale: float,
    origin: tuple[int, int],
    shape: tuple[int, ...],
    people: NDArray[np.float64],
    masks: Sequence[Sequence[float]] = (),
    ignore_below: float = 0.0,
) -> Score:
    """Score the people (P, 4) that were counted in a frame of `shape` (H, W, ...), in which the picture
    lies at `origin` (x, y), scaled. ignore_below: side in pixels of that frame."""
    boxes = labelled.boxes * scale
    boxes[:, :2] += origin
    size = np.sqrt(np.prod(np.clip(boxes[:, 2:], 0, None), axis=1))
    centre = boxes[:, :2] + boxes[:, 2:] / 2
    share = centre / (shape[1], shape[0])
    masked = np.zeros(len(boxes), dtype=bool)
    for left, top, right, bottom in masks:
        masked |= ((share >= (left, top)) & (share <= (right, bottom))).all(axis=1)
    reasons = {
        "invalid": ~labelled.valid,
        "without area": (boxes[:, 2:] <= 0).any(axis=1),
        "outside of the picture": ((share < 0) | (share >= 1)).any(axis=1),
        "masked": masked,
        "too small": size < ignore_below,
    }
    left_out, ignored = np.zeros(len(boxes), dtype=bool), {}
    for reason, those in reasons.items():
        ignored[reason] = int((those & ~left_out).sum())
        left_out |= those
    judged, rest = np.flatnonzero(~left_out), boxes[left_out & (boxes[:, 2:] > 0).all(axis=1)]
    pairs = match(boxes[judged], people)
    free = np.setdiff1d(np.arange(len(people)), [j for _, j in pairs])
    middle = people[free, :2] + people[free, 2:] / 2
    inside = (middle[:, None] >= rest[None, :, :2]) & (
        middle[:, None] <= (rest[:, :2] + rest[:, 2:])[None]
    )
    nothing = (overlaps(people[free], rest) >= OVERLAP) | inside.all(axis=2)
    false = int((~nothing.any(axis=1)).sum())
    bins = np.digitize(size, SIZES) - 1
    found = judged[[i for i, _ in pairs]] if pairs else judged[:0]
    return Score(
        name=labelled.name,
        scale=scale,
        people=len(judged),
        counted=len(pairs) + false,
        false=false,
        faces=np.bincount(bins[judged], minlength=len(SIZES)),
        found=np.bincount(bins[found], minlength=len(SIZES)),
        ignored=ignored,
    )


def placed(
    picture: NDArray[np.uint8], scale: float, frame: tuple[int, int] | None, name: str
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Scale a picture (H, W, 3) and lay it into the middle of a grey frame (width, height), if one is
    given. Returns that and where the picture begins, (x, y). Raises UsageError where too large."""
    height, width = (max(1, round(side * scale)) for side in picture.shape[:2])
    if max(width, height) > MAX_SIDE:
        raise UsageError(f"{name} at scale {scale:g} is {width}x{height}; take a smaller --scale")
    if scale != 1:
        way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        picture = np.asarray(cv2.resize(picture, (width, height), interpolation=way), np.uint8)
    if frame is None:
        return picture, (0, 0)
    x, y = (frame[0] - width) // 2, (frame[1] - height) // 2
    if x < 0 or y < 0:
        raise UsageError(
            f"{name} at scale {scale:g} is {width}x{height}, more than --frame; take a smaller --scale"
        )
    canvas = np.full((frame[1], frame[0], 3), GREY, np.uint8)
    canvas[y : y + height, x : x + width] = picture
    return canvas, (x, y)


def measure(
    folder: Path,
    listed: Sequence[Labelled],
    pipeline: Pipeline,
    scales: Sequence[float] = (1.0,),
    frame: tuple[int, int] | None = None,
    ignore_below: float = 0.0,
) -> Iterator[Score]:
    """Score every picture at every scale; raises SourceError for one that cannot be read."""
    time = 0.0
    for labelled in listed:
        picture = read_picture(folder / labelled.name)
        for scale in scales:
            pixels, origin = placed(picture, scale, frame, labelled.name)
            pixels = pixels.copy()
            cover(pixels, pipeline.masks)
            time += APART_SECONDS
            pipeline.detector.fit(pixels.shape)
            began = process_time()
            faces = pipeline.detector.find(pixels)
            spent = process_time() - began
            tracks = pipeline.tracker.update(faces, time, pixels.shape)
            people = np.array([t.face.box for t in tracks], dtype=np.float64).reshape(-1, 4)
            score = judge(
                labelled, scale, origin, pixels.shape, people, pipeline.masks, ignore_below
            )
            yield replace(score, size=pipeline.detector.size, cpu_seconds=spent)


def summary(scores: Sequence[Score]) -> dict[str, Any]:
    """Add up what was scored, each figure with its 95 % interval by ROUNDS of bootstrap over pictures
    (a picture's scales stay together); None where there is nothing to divide by, or but one picture."""
    names = sorted({score.name for score in scores})
    place = np.array([names.index(score.name) for score in scores])
    rng = np.random.default_rng(SEED)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), ROUNDS)
    one, people, counted, false = (
        np.array(column, dtype=np.float64)
        for column in zip(*((1, s.people, s.counted, s.false) for s in scores), strict=True)
    )
    error = counted - people
    spent = sum(s.cpu_seconds for s in scores)
    faces, found = (np.array([getattr(s, of) for s in scores]) for of in ("faces", "found"))

    def share(part: NDArray[Any], whole: NDArray[Any]) -> dict[str, Any]:
        if not whole.sum():
            return {"value": None, "low": None, "high": None}
        value = float(part.sum() / whole.sum())
        over, under = (drawn @ np.bincount(place, x, len(names)) for x in (part, whole))
        if len(names) < 2 or not under.any():
            return {"value": value, "low": None, "high": None}
        low, high = np.percentile(over[under > 0] / under[under > 0], (2.5, 97.5))
        return {"value": value, "low": float(low), "high": float(high)}

    sizes = [
        {
            "from_px": least,
            "to_px": SIZES[at + 1] if at + 1 < len(SIZES) else None,
            "faces": int(faces[:, at].sum()),
            "found": int(found[:, at].sum()),
            "recall": share(found[:, at], faces[:, at]),
        }
        for at, least in enumerate(SIZES)
    ]
    return {
        "pictures": len(names),
        "frames": len(scores),
        "people": int(people.sum()),
        "counted": int(counted.sum()),
        "ignored": {
            reason: number
            for reason in scores[0].ignored
            if (number := sum(s.ignored[reason] for s in scores))
        },
        "bias": share(error, one),
        "absolute_error": share(np.abs(error), one),
        "exact": share((error == 0).astype(float), one),
        "total_error": share(error, people),
        "false_a_picture": share(false, one),
        "recall": share(found.sum(axis=1), faces.sum(axis=1)),
        "recall_from_12_px": share(found[:, 2:].sum(axis=1), faces[:, 2:].sum(axis=1)),
        "recall_by_size": sizes,
        "detector_cpu_ms_a_frame": 1000 * spent / len(scores),
        "found_a_core_second": found.sum() / spent if spent > 0 else None,
    }


def as_text(result: dict[str, Any]) -> str:
    """Print a summary as a table for 80 columns."""

    def row(name: str, figure: dict[str, Any], percent: bool, more: str = "") -> str:
        value, low, high = (
            "-" if v is None else f"{100 * v:.1f} %" if percent else f"{v:.2f}"
            for v in (figure["value"], figure["low"], figure["high"])
        )
        between = "" if low == "-" else f"{low} to {high}"
        return f"{name:<34}{value:>9}   {between:<20}{more}".rstrip()

    left_out = ", ".join(f"{n} {why}" for why, n in result["ignored"].items())
    lines = [
        f"{result['people']} people in {result['frames']} frames of {result['pictures']} pictures; "
        f"{result['counted']} counted",
        *([f"boxes ignored: {left_out}"] if left_out else []),
        "",
        f"{'people counted':<34}{'':>9}   95 % over pictures",
        row("bias, people a frame", result["bias"], False),
        row("mean absolute error, people", result["absolute_error"], False),
        row("frames counted exactly", result["exact"], True),
        row("error of the total", result["total_error"], True),
        row("counted without a box, a frame", result["false_a_picture"], False),
        "",
        f"{'faces found':<34}{'':>9}   {'':<20}faces",
    ]
    for size in result["recall_by_size"]:
        if size["faces"]:
            end = f" to {size['to_px']}" if size["to_px"] else " and more"
            name = f"{size['from_px']}{end} px"
            lines.append(row(name, size["recall"], True, str(size["faces"])))
    total = sum(size["faces"] for size in result["recall_by_size"])
    far = sum(size["faces"] for size in result["recall_by_size"] if size["from_px"] >= 12)
    lines.append(row("12 px and more", result["recall_from_12_px"], True, str(far)))
    lines.append(row("all", result["recall"], True, str(total)))
    return "\n".join(lines)


def _size(text: str, option: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9][0-9]{0,3})x([1-9][0-9]{0,3})", text)
    if not found or max(map(int, found.groups())) > MAX_SIDE:
        raise UsageError(f"{option} {text:.40}: give it as 1280x720")
    return int(found[1]), int(found[2])


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def check_folder(folder: Path, listed: Sequence[Labelled], list_path: Path) -> list[str]:
    """Return the pictures of the folder that have no entry. Raises DataError where an entry has no
    picture."""
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder; give the one that holds the pictures")
    pictures = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() in PICTURES and not path.name.startswith(".")
    }
    if not pictures:
        raise DataError(f"{folder} has no pictures")
    missing = [entry for entry in listed if not (folder / entry.name).is_file()]
    if missing:
        raise DataError(
            f"{list_path}, line {missing[0].line}: {folder} lacks "
            f"{_named([entry.name for entry in missing])}; add the pictures or remove the entries"
        )
    return sorted(pictures - {entry.name for entry in listed})


def build_parser() -> argparse.ArgumentParser:
    p = cli.parser(
        "edge-crowd",
        "Score the node's counts of people on a folder of pictures with a box around every face.",
        "edge-crowd pictures boxes.txt --config node.yaml",
    )
    p.add_argument("folder", type=Path, metavar="FOLDER", help="the pictures")
    p.add_argument("boxes", type=Path, metavar="boxes.txt", help="in WIDER FACE's list format")
    p.add_argument("--config", type=Path, metavar="node.yaml", help="settings, with masks")
    p.add_argument("--detector", metavar="WxH|auto", help="detector.width and height")
    p.add_argument(
        "--scale", type=float, nargs="+", default=[1.0], metavar="F", help="of pictures and boxes"
    )
    p.add_argument(
        "--frame",
        metavar="WxH",
        help="lay each scaled picture into a grey frame of a camera's size",
    )
    p.add_argument("--ignore-below", type=float, default=0.0, metavar="PX", help="smaller faces")
    p.add_argument("--json", type=Path, metavar="out.json", help="write all, by picture too")
    return p


def _settings(args: argparse.Namespace) -> Settings:
    data: dict[str, Any] = read_yaml(args.config) if args.config else {}
    settings = validate(Settings, data, str(args.config))
    if args.detector is None:
        return settings
    auto = args.detector == "auto"
    width, height = ("auto", "auto") if auto else _size(args.detector, "--detector")
    data["detector"] = {**(data.get("detector") or {}), "width": width, "height": height}
    return validate(Settings, data, "--detector")


def run(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    refuse_unwritable("--json", args.json)
    if not all(0.01 <= scale <= 16 for scale in args.scale) or not 0 <= args.ignore_below < 1e4:
        raise UsageError("--scale must be 0.01 to 16, --ignore-below at least 0")
    frame = _size(args.frame, "--frame") if args.frame else None
    settings, listed = _settings(args), read_boxes(args.boxes)
    if unlisted := check_folder(args.folder, listed, args.boxes):
        cli.say(f"not scored, for they have no entry in {args.boxes}: {_named(unlisted)}")
    cv2.setNumThreads(settings.runtime.threads)
    bundle, student = open_student(settings)
    detector, opened = open_detector(settings)
    pipeline = open_pipeline(settings, bundle, student, detector, file_start=0.0)
    scores = list(measure(args.folder, listed, pipeline, args.scale, frame, args.ignore_below))
    result = summary(scores)
    result["conditions"] = {
        "detector": f"{opened.backend.name} {opened.precision}",
        "detector_size": ", ".join(sorted({score.size for score in scores})),
        "threads": settings.runtime.threads,
        "scales": args.scale,
        "frame": args.frame,
        "ignore_below_px": args.ignore_below,
        "masks": len(settings.privacy.masks),
        "least_iou": OVERLAP,
    }
    print(as_text(result))
    for key in ("detector_cpu_ms_a_frame", "found_a_core_second"):
        result["conditions"][key] = round(result.pop(key) or 0.0, 1)
    print("\n" + "\n".join(f"{key}: {value}" for key, value in result["conditions"].items()))
    if args.json:
        result["by_picture"] = [
            {"name": s.name, "scale": s.scale, "people": s.people, "counted": s.counted,
             "found": int(s.found.sum()), "false": s.false, "cpu_seconds": s.cpu_seconds}
            for s in scores
        ]  # fmt: skip
        write_atomically(args.json, (json.dumps(result, indent=1) + "\n").encode())


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run("edge-crowd", run, argv)


if __name__ == "__main__":
    sys.exit(main())
