"""`edge-bench`: what each stage of the node takes on this machine, with the conditions."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2

from edge.assemble import open_pipeline
from edge.base import cli
from edge.base.addresses import shown
from edge.base.errors import SourceError, UsageError
from edge.base.jetson import power_mode
from edge.base.strict_yaml import read_yaml, validate
from edge.base.timing import Stages
from edge.detect import open_detector
from edge.health.reports import versions
from edge.inference.loader import open_student
from edge.records import Frame, Tick
from edge.settings import Settings
from edge.sizes import camera_shape
from edge.sources.open import open_source
from edge.sources.synthetic import scene

WARM_UP = 20
STAGES = ("capture", "detect", "track", "life", "classify", "aggregate", "whole frame")


def processor() -> str:
    """Read the CPU's or board's own name."""
    for path in (Path("/proc/device-tree/model"), Path("/proc/cpuinfo")):
        try:
            text = path.read_text(errors="replace")
        except OSError:
            continue
        if path.name == "model":
            return text.strip("\0\n")
        for line in text.splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()


def _items(settings: Settings, faces: int, frames: int) -> Iterator[Frame | Tick]:
    name = settings.camera.source
    if name != "test":
        if not Path(name).is_dir() and not Path(name).is_file():
            # Not even opened: a bench has no hours, and a camera is looked at within its hours alone.
            raise UsageError(f"no file or folder '{shown(name)}'; a camera sets its own pace")
        yield from open_source(settings.camera)
        return
    height, width = camera_shape(settings)
    for index in range(frames):
        moment = index / settings.camera.rate
        yield Frame(pixels=scene(moment, faces, width, height), time=moment, utc=moment)


def measure(settings: Settings, faces: int, frames: int) -> dict[str, Any]:
    """Run the node's stages over the source as fast as it goes; one process, nothing published.

    The pattern's pictures have the camera's shape, and lie as far apart in time as the node looks, so
    that what runs by the clock has its share. core_seconds_a_minute: what a minute of that takes of one
    core, all threads added up, without a camera's own driver. The first WARM_UP frames are not counted.
    Raises as the node does.
    """
    cv2.setNumThreads(settings.runtime.threads)
    bundle, student = open_student(settings)
    detector, opened = open_detector(settings)
    pipeline = open_pipeline(settings, bundle, student, detector, file_start=0.0)
    stages = Stages(keep=1_000_000)
    people: list[int] = []
    sizes: set[str] = set()
    counted, began, used, warm = 0, time.perf_counter(), time.process_time(), False
    previous = time.perf_counter()
    for index, item in enumerate(_items(settings, faces, frames)):
        if isinstance(item, Tick):
            continue
        captured = time.perf_counter()
        if index == WARM_UP:
            pipeline.stages = Stages(keep=1_000_000)
            stages, began, counted, warm = Stages(keep=1_000_000), previous, 0, True
            people, used = [], time.process_time()
        pipeline.step(item)
        now = time.perf_counter()
        stages.note("capture", captured - previous)
        stages.note("whole frame", now - previous)
        people.append(pipeline.window.people_now())
        sizes.add(f"{item.pixels.shape[1]}x{item.pixels.shape[0]}")
        counted += 1
        previous = now
    if not warm or counted <= 1:
        raise SourceError(f"fewer than {WARM_UP + 2} pictures; give a longer source")
    spent = time.process_time() - used
    rows = {
        name: (pipeline.stages if name in pipeline.stages.names() else stages).milliseconds(name)
        for name in STAGES
    }
    return {
        "frames_per_second": round(counted / (previous - began), 1),
        "core_seconds_a_minute": round(spent / counted * settings.camera.rate * 60, 1),
        "stages_ms": {
            name: {"p50": row[0], "p95": row[1]} for name, row in rows.items() if row is not None
        },
        "conditions": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "power_mode": power_mode() or "not known",
            "threads": settings.runtime.threads,
            "student": f"{student.backend.name} {student.precision}",
            "detector": f"{opened.backend.name} {opened.precision} {detector.size}",
            "source": f"{'test pattern' if settings.camera.source == 'test' else 'file'} "
            f"{', '.join(sorted(sizes))}",
            "analyse_per_second": settings.camera.rate,
            "faces_in_view": f"{min(people)} to {max(people)}, mean {sum(people) / len(people):.1f}",
            "masks": len(settings.privacy.masks),
            "frames": counted,
            "warm_up_frames": WARM_UP,
            **versions(),
        },
    }


def as_text(result: dict[str, Any]) -> str:
    lines = [f"{'stage':<14}{'median ms':>12}{'95 % ms':>12}"]
    for name, row in result["stages_ms"].items():
        lines.append(f"{name:<14}{row['p50']:>12.2f}{row['p95']:>12.2f}")
    rate = result["conditions"]["analyse_per_second"]
    lines.append(f"\n{result['frames_per_second']:g} frames/s end to end")
    lines.append(
        f"{result['core_seconds_a_minute']:g} core-seconds a minute at {rate:g} pictures a second\n"
    )
    lines += [f"{key}: {value}" for key, value in result["conditions"].items()]
    return "\n".join(lines)


def build_parser() -> argparse.ArgumentParser:
    p = cli.parser(
        "edge-bench",
        "Time every stage of the node on this machine, median and 95th percentile.",
        "edge-bench --faces 5 --threads 2",
    )
    p.add_argument(
        "--config", type=Path, metavar="node.yaml", help="a node's settings, with its masks"
    )
    p.add_argument("--bundle", type=Path, metavar="DIR", help="default: the shipped one")
    p.add_argument(
        "--camera",
        default="test",
        metavar="SRC",
        help="video file or folder; default: test, a pattern",
    )
    p.add_argument("--faces", type=int, default=5, metavar="N", help="faces in the pattern")
    p.add_argument("--frames", type=int, default=320, metavar="N", help="pictures of the pattern")
    p.add_argument("--threads", type=int, metavar="N", help="cores for one network; default: 2")
    p.add_argument("--json", action="store_true", help="write the figures as one JSON object")
    return p


def run(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    if not 0 <= args.faces <= 200 or args.frames < 1:
        raise UsageError("--faces must be 0 to 200 and --frames at least 1")
    data: dict[str, Any] = read_yaml(args.config) if args.config else {}
    validate(Settings, data, str(args.config))
    options = {
        ("camera", "source"): args.camera,
        ("runtime", "threads"): args.threads,
        ("runtime", "bundle"): str(args.bundle) if args.bundle else None,
    }
    for (section, key), value in options.items():
        if value is not None:
            data.setdefault(section, {})[key] = value
    result = measure(validate(Settings, data, "options"), args.faces, args.frames)
    print(json.dumps(result, indent=1) if args.json else as_text(result))


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run("edge-bench", run, argv)


if __name__ == "__main__":
    sys.exit(main())
