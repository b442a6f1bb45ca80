"""`export-bench`: the bundle's precisions and backends against the networks that users would pick.

All of them take turns, call by call, so that a machine that slows down slows all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.progress import Progress
from edge.base import cli
from edge.base.errors import BackendError, UsageError
from edge.base.jetson import power_mode
from edge.base.strict_yaml import validate
from edge.health.reports import versions
from edge.inference.backends import Backend
from edge.inference.bundle import ROLES, TENSORRT_ROLES, Bundle, load_bundle
from edge.inference.engine_cache import facts_of, find
from edge.inference.loader import engines_folder, open_backend, student_profile
from edge.settings import Settings
from edge.tools.bench import processor

WARM_UP = 3
PEAK_SIDE = 1024
BATCH = 16  # of the ratios

Call = Callable[[NDArray[np.float32]], object]


def peaks(threads: int, rounds: int) -> dict[str, float]:
    """Measure the machine's best Gop/s (2 operations a multiply-add): a product of two 1024 x 1024
    matrices in float32 and in u8 x s8, by the runtime that runs the networks.

    Raises ImportError where `onnx`, which builds the two graphs, is missing.
    """
    import onnx
    from onnx import TensorProto, helper

    found = {}
    rng = np.random.default_rng(0)
    for name, kind, left, right, out in (
        ("fp32", "MatMul", TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.FLOAT),
        ("int8", "MatMulInteger", TensorProto.UINT8, TensorProto.INT8, TensorProto.INT32),
    ):
        shape = [PEAK_SIDE, PEAK_SIDE]
        # Values that do not saturate the products of processors without VNNI.
        weights = rng.integers(-64, 64, shape)
        graph = helper.make_graph(
            [helper.make_node(kind, ["a", "b"], ["c"])],
            name,
            [helper.make_tensor_value_info("a", left, shape)],
            [helper.make_tensor_value_info("c", out, shape)],
            [helper.make_tensor("b", right, shape, weights.reshape(-1))],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
        model.ir_version = 10
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "peak.onnx"
            onnx.save(model, str(path))
            backend = open_backend("ort", path, threads)
        dtype = np.float32 if name == "fp32" else np.uint8
        matrix: Any = rng.integers(0, 255, shape).astype(dtype)
        best = min(_time(backend.run, matrix) for _ in range(WARM_UP + rounds))
        backend.close()
        found[name] = 2 * PEAK_SIDE**3 / best / 1e9
    return found


def _time(call: Call, batch: NDArray[np.float32]) -> float:
    started = time.perf_counter()
    call(batch)
    return time.perf_counter() - started


def contenders(
    bundle: Bundle, settings: Settings, baselines: dict[str, tuple[Path, int]]
) -> tuple[dict[str, tuple[Backend, tuple[int, ...]]], dict[str, str]]:
    """Open what can run, each with its input's shape (C, S, S); and say why the rest cannot."""
    threads = settings.runtime.threads
    one = (bundle.crop.channels, bundle.crop.size, bundle.crop.size)
    running: dict[str, tuple[Backend, tuple[int, ...]]] = {}
    absent: dict[str, str] = {}
    for precision in ROLES:
        backend = open_backend("ort", bundle.model(precision), threads)
        running[f"student {precision}, ONNX Runtime"] = (backend, one)
    for precision, role in TENSORRT_ROLES.items():
        name = f"student {precision}, TensorRT"
        try:
            from edge.inference.backends.trt import TensorRT, device

            here = device()
            facts = facts_of(bundle.file(role), precision, student_profile(bundle), here)
            engine = find(engines_folder(settings), facts)
            if engine is None:
                raise BackendError("no engine; run export-engine first")
            running[name] = (TensorRT(engine.path), one)
        except BackendError as error:
            absent[name] = str(error)
    for name, (path, side) in baselines.items():
        running[f"{name}, ONNX Runtime"] = (open_backend("ort", path, threads), (3, side, side))
    return running, absent


def measure(
    running: dict[str, tuple[Backend, tuple[int, ...]]],
    batches: Sequence[int],
    rounds: int,
) -> list[dict[str, Any]]:
    """Time each network at each batch: median and 95th percentile in ms, faces a second."""
    total = sum(batches) * (WARM_UP + rounds) * len(running)
    with Progress("timing", total, "faces") as bar:
        return [row for batch in batches for row in _measure_batch(running, batch, rounds, bar)]


def _measure_batch(
    running: dict[str, tuple[Backend, tuple[int, ...]]], batch: int, rounds: int, bar: Progress
) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    rows = []
    inputs = {
        name: rng.integers(0, 256, (batch, *shape)).astype(np.float32)
        for name, (_, shape) in running.items()
    }
    taken: dict[str, list[float]] = {name: [] for name in running}
    for turn in range(WARM_UP + rounds):
        for name, (backend, _) in running.items():
            seconds = _time(backend.run, inputs[name])
            if turn >= WARM_UP:
                taken[name].append(seconds)
            # By faces: a round of a large batch takes longer than one of a small one.
            bar.advance(batch, f"batch {batch}, round {turn + 1} of {WARM_UP + rounds}")
    for name, times in taken.items():
        p50, p95 = np.percentile(times, [50, 95])
        rows.append(
            {
                "network": name,
                "batch": batch,
                "p50_ms": round(1000 * float(p50), 3),
                "p95_ms": round(1000 * float(p95), 3),
                "faces_per_second": round(batch / float(p50), 1),
            }
        )
    return rows


def ratios(rows: list[dict[str, Any]], batch: int) -> dict[str, float]:
    """Return how many times as fast the INT8 student is under ONNX Runtime as each other network."""
    times = {row["network"]: row["p50_ms"] for row in rows if row["batch"] == batch}
    own = times.pop("student int8, ONNX Runtime")
    return {name: round(value / own, 2) for name, value in times.items()}


def bench(
    bundle: Bundle,
    settings: Settings,
    batches: Sequence[int],
    rounds: int,
    with_baselines: bool,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Measure everything in one run. Raises UsageError where the `train` extra is missing."""
    with tempfile.TemporaryDirectory() as folder:
        baselines: dict[str, tuple[Path, int]] = {}
        why_not = ""
        if with_baselines:
            say("writing EfficientNet-B0 and MobileFaceNet")
            try:
                from export.baselines import write_baselines

                baselines = write_baselines(Path(folder), len(bundle.labels))
            except ImportError as error:
                why_not = f"{error}; install the 'train' extra"
        running, absent = contenders(bundle, settings, baselines)
        if why_not:
            absent["other networks"] = why_not
        try:
            say("the machine's peak: two matrix products")
            before = peaks(settings.runtime.threads, rounds)
            rows = measure(running, batches, rounds)
            after = peaks(settings.runtime.threads, rounds)
        except ImportError as error:
            raise UsageError(f"{error}; install the 'train' extra") from error
        finally:
            for backend, _ in running.values():
                backend.close()
    peak = {name: max(before[name], after[name]) for name in before}
    cost = bundle.description.provenance.get("multiply_adds", 0)
    shares = {}
    for precision in ROLES:
        name = f"student {precision}, ONNX Runtime"
        ms = next(r["p50_ms"] for r in rows if r["network"] == name and r["batch"] == BATCH)
        shares[precision] = round(2 * cost * BATCH / (ms / 1000) / 1e9 / peak[precision], 3)
    return {
        "rows": rows,
        "int8_faster_by": ratios(rows, BATCH),
        "peak_gops": {name: round(value, 1) for name, value in peak.items()},
        "share_of_peak": shares,
        "not_measured": absent,
        "conditions": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "threads": settings.runtime.threads,
            "power_mode": power_mode() or "not known",
            "rounds": rounds,
            "bundle": bundle.sha256[:12],
            **versions(),
        },
    }


def as_text(result: dict[str, Any]) -> str:
    """Return `bench`'s result as tables for people."""
    lines = [f"{'network':<38}{'batch':>6}{'median ms':>11}{'95 % ms':>10}{'faces/s':>10}"]
    lines += [
        f"{r['network']:<38}{r['batch']:>6}{r['p50_ms']:>11.2f}{r['p95_ms']:>10.2f}"
        f"{r['faces_per_second']:>10.0f}"
        for r in result["rows"]
    ]
    lines.append(f"\nINT8 under ONNX Runtime, batch {BATCH}, is as many times as fast a face as")
    lines += [f"  {name:<38}{value:>6.2f}" for name, value in result["int8_faster_by"].items()]
    lines.append("\nshare of the machine's peak (a 1024 x 1024 matrix product in this run)")
    lines += [
        f"  {name:<6}{100 * share:>5.0f} % of {result['peak_gops'][name]:.0f} Gop/s"
        for name, share in result["share_of_peak"].items()
    ]
    lines += [f"not measured: {n}: {why[:100]}" for n, why in result["not_measured"].items()]
    lines.append("")
    lines += [f"{key}: {value}" for key, value in result["conditions"].items()]
    return "\n".join(lines)


def run(argv: Sequence[str] | None = None) -> None:
    p = cli.parser(
        "export-bench",
        "Time a bundle's precisions and backends against EfficientNet-B0 and MobileFaceNet, and\n"
        "compare with what the machine can do at most.",
        "export-bench edge/models --threads 1",
    )
    p.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder that export-model wrote")
    p.add_argument("--threads", type=int, default=1, metavar="N", help="cores for one network")
    p.add_argument("--rounds", type=int, default=20, metavar="N", help="timed calls of each")
    p.add_argument("--engines", type=Path, metavar="DIR", help="where export-engine put them")
    p.add_argument(
        "--without-baselines",
        action="store_true",
        help="only the bundle; needs neither torch nor transformers",
    )
    p.add_argument(
        "--without-rivals",  # the name in 0.1.0
        action="store_true",
        dest="without_baselines",
        help=argparse.SUPPRESS,
    )
    p.add_argument("--json", action="store_true", help="write the figures as one JSON object")
    args = p.parse_args(argv)
    if args.rounds < 1:
        raise UsageError("--rounds must be at least 1")
    runtime: dict[str, Any] = {"threads": args.threads}
    if args.engines:
        if not args.engines.is_dir():
            raise UsageError(f"--engines {args.engines} is not a folder; export-engine makes it")
        runtime["engines"] = str(args.engines)
    settings = validate(Settings, {"runtime": runtime}, "options")
    bundle, with_baselines = load_bundle(args.bundle), not args.without_baselines
    result = bench(bundle, settings, (1, 8, BATCH, 32), args.rounds, with_baselines, cli.say)
    print(json.dumps(result, indent=1) if args.json else as_text(result))


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run("export-bench", run, argv)


if __name__ == "__main__":
    sys.exit(main())
