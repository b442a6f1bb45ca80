"""`export-engine`: bundle -> verified TensorRT engines for this very device. Needs no torch."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edge.base import cli
from edge.base.errors import BackendError, DeviceError, EdgeError
from edge.base.files import refuse_unwritable, sha256, write_atomically
from edge.base.strict_yaml import read_yaml, validate
from edge.detect import Detector
from edge.inference.backends import Backend
from edge.inference.bundle import TENSORRT_ROLES, Bundle, load_bundle
from edge.inference.engine_cache import (
    FACES,
    Device,
    Engine,
    Latency,
    Profile,
    Sidecar,
    build_lock,
    choose,
    engine_file,
    facts_of,
    find,
    quarantine,
    write_sidecar,
)
from edge.inference.loader import detector_profile, engines_folder, open_backend, student_profile
from edge.inference.weights import resolve
from edge.settings import Settings
from edge.sizes import expected
from edge.sources.synthetic import portrait
from export.engine.attention import Attention, fusion_report
from export.engine.builder import Plan, build, strongly_typed, workspace_mib
from export.engine.kernels import convolution_report

Say = Callable[[str], None]
TRIES = 2
LATENCY_ROUNDS = 100
WARM_UP = 10
BOX_TOLERANCE_PX = 2.0  # of a detector's box and landmarks, on the portrait


class Runtime(Backend, Protocol):
    """A backend that shows its engine's layers."""

    def inspect(self) -> str:
        """Return the engine inspector's JSON."""


@dataclass(frozen=True, slots=True)
class BuilderApi:
    """All that touches the device, passed in so that a test can replace it."""

    device: Device
    build: Callable[[Path, str, Profile, bytes, int, Say], Plan]
    open: Callable[[Path], Runtime]


@dataclass(frozen=True, slots=True)
class Network:
    """What an engine is made of.

    self_test: a backend's largest error; raises EdgeError where it answers wrongly.
    """

    name: str
    model: Path
    profile: Profile
    self_test: Callable[[Backend], float]
    attentions: tuple[Attention, ...] = ()


def this_device() -> BuilderApi:
    """Return this machine's own. Raises BackendError without a device or without TensorRT."""
    from edge.inference.backends.trt import TensorRT, device

    return BuilderApi(device(), build, TensorRT)


def make(
    api: BuilderApi, folder: Path, network: Network, precision: str, say: Say
) -> tuple[Engine, bool]:
    """Return the verified engine, from the cache or built, and whether it was built now.

    An engine that fails its self-test, or does not load, is quarantined and built once more without
    the timing cache. Raises BackendError when that one fails too, DeviceError at once where the
    device is lost to this process: a second engine would only be blamed for it.
    """
    facts = facts_of(network.model, precision, network.profile, api.device)
    if cached := find(folder, facts):
        say(f"{network.name} {precision}: {cached.path.name} is built and verified")
        return cached, False
    path = engine_file(folder, facts)
    bound = (api.device.tensorrt, api.device.name, api.device.compute_capability)
    timing_file = folder / f"timing-{sha256(json.dumps(bound).encode())[:16]}.cache"
    workspace = workspace_mib(api.device.memory_mib)
    timings = timing_file.read_bytes() if timing_file.is_file() else b""
    for _ in range(TRIES):
        say(f"{network.name} {precision}: building, workspace {workspace} MiB; minutes on a Jetson")
        plan = api.build(network.model, precision, network.profile, timings, workspace, say)
        write_atomically(path, plan.data)
        try:
            runtime = api.open(path)
            try:
                error = network.self_test(runtime)
                shown = runtime.inspect()
            finally:
                runtime.close()
        except EdgeError as fault:
            away = quarantine(path, str(fault))
            say(f"{network.name} {precision}: set aside as {away.name}: {fault}")
            if isinstance(fault, DeviceError):
                raise
            timings, last = b"", fault
            continue
        write_atomically(timing_file, plan.timings)
        engine = write_sidecar(
            path,
            Sidecar(
                facts=json.loads(json.dumps(asdict(facts))),
                bytes=len(plan.data),
                sha256=sha256(plan.data),
                answer_error=error,
                build_seconds=round(plan.seconds, 1),
                workspace_mib=workspace,
                attention=fusion_report(shown, list(network.attentions))
                if network.attentions
                else "has none",
                convolutions=convolution_report(shown),
            ),
        )
        return engine, True
    raise BackendError(
        f"{network.name} {precision}: {TRIES} engines were built and both are wrong ({last}); run "
        f"with --backend ort and report this with the files in {folder / 'set-aside'}"
    )


def measure(
    runtimes: dict[str, Backend], inputs: NDArray[np.float32], batches: Sequence[int]
) -> dict[str, dict[str, Latency]]:
    """Measure latency by precision and batch, precisions in turn, with copies to the device and back.

    inputs: (N, C, S, S) float32, repeated to fill a batch.
    """
    times: dict[str, dict[str, Latency]] = {name: {} for name in runtimes}
    for batch in batches:
        faces = np.resize(inputs, (batch, *inputs.shape[1:]))
        taken: dict[str, list[float]] = {name: [] for name in runtimes}
        for turn in range(WARM_UP + LATENCY_ROUNDS):
            for name, runtime in runtimes.items():
                started = time.perf_counter()
                runtime.run(faces)
                if turn >= WARM_UP:
                    taken[name].append(1000 * (time.perf_counter() - started))
        for name, row in taken.items():
            p50, p95 = np.percentile(row, [50, 95])
            times[name][str(batch)] = Latency(
                p50_ms=round(float(p50), 4), p95_ms=round(float(p95), 4)
            )
    return times


def student_networks(bundle: Bundle, wanted: str, say: Say) -> dict[str, Network]:
    """Return the student by precision; `auto` leaves out what the bundle says strays from float."""
    attentions = tuple(
        Attention(*names) for names in bundle.description.provenance.get("attention", [])
    )
    networks = {}
    for precision, role in TENSORRT_ROLES.items():
        if wanted not in ("auto", precision):
            continue
        agreement = bundle.description.provenance.get("agreement", {}).get(role, {})
        if wanted == "auto" and agreement.get("within") is False:
            say(f"student {precision}: left out, the bundle says that it strays from float")
            continue

        def self_test(backend: Backend, precision: str = precision) -> float:
            return bundle.self_test(backend, precision)

        networks[precision] = Network(
            "student", bundle.file(role), student_profile(bundle), self_test, attentions
        )
    return networks


def detector_network(settings: Settings) -> Network:
    """Return the detector at the size in the settings, or the camera's; it is compared with ONNX
    Runtime on the portrait."""
    d = settings.detector
    model = resolve("yunet", d.weights)
    width, height = expected(settings)

    def faces(backend: Backend) -> NDArray[np.float32]:
        found = Detector(backend, width, height, d.score, d.overlap).find(portrait())
        return np.array([[*f.box, *f.landmarks.reshape(-1)] for f in found], dtype=np.float32)

    def self_test(backend: Backend) -> float:
        exact = open_backend("ort", model)
        try:
            expected, seen = faces(exact), faces(backend)
        finally:
            exact.close()
        error = float(np.abs(expected - seen).max()) if expected.shape == seen.shape else np.inf
        if not error <= BOX_TOLERANCE_PX:
            raise BackendError(
                f"the detector finds {len(seen)} faces in the portrait, off by {error:.3g} px; "
                f"ONNX Runtime finds {len(expected)}"
            )
        return error

    return Network("detector", model, detector_profile(width, height), self_test)


def export(
    bundle: Bundle, settings: Settings, wanted: str, api: BuilderApi, typed: bool, say: Say
) -> dict[str, Any]:
    """Build and verify everything that the node needs; return the report.

    wanted: a precision, or `auto`; typed: this TensorRT builds strongly typed networks.
    """
    folder = engines_folder(settings)
    with build_lock(folder) as waited:
        if waited:
            say("waited for another export-engine on this folder")
        networks = student_networks(bundle, wanted, say)
        engines = {p: make(api, folder, n, p, say)[0] for p, n in networks.items()}
        runtimes: dict[str, Backend] = {p: api.open(e.path) for p, e in engines.items()}
        try:
            latency = measure(runtimes, bundle.known_inputs().astype(np.float32), FACES)
        finally:
            for runtime in runtimes.values():
                runtime.close()
        engines = {
            p: write_sidecar(e.path, e.sidecar.model_copy(update={"latency": latency[p]}))
            for p, e in engines.items()
        }
        if wanted != "auto":
            _forget_others(bundle, api.device, folder, wanted)
        # YuNet's file is float32, and so is what a strongly typed network computes of it (by TF32 on
        # Ampere and later); FP16 is a flag of weakly typed TensorRT.
        precision = "fp32" if typed else "fp16"
        detector, _ = make(api, folder, detector_network(settings), precision, say)
    chosen = choose(list(engines.values()))
    return {
        "device": asdict(api.device),
        "engines": {p: _row(e) for p, e in engines.items()},
        "detector": _row(detector),
        "chosen": chosen.precision,
        "why": f"faster at batch {FACES[1]}" if len(engines) > 1 else "the only one",
    }


def _forget_others(bundle: Bundle, device: Device, folder: Path, kept: str) -> None:
    """Remove the other precisions' engines, so that the node finds only the one that was asked for."""
    for precision, role in TENSORRT_ROLES.items():
        if precision != kept:
            facts = facts_of(bundle.file(role), precision, student_profile(bundle), device)
            path = engine_file(folder, facts)
            path.with_suffix(".json").unlink(missing_ok=True)
            path.unlink(missing_ok=True)


def _row(engine: Engine) -> dict[str, Any]:
    return {"file": engine.path.name, **engine.sidecar.model_dump(by_alias=True)}


def as_text(report: dict[str, Any]) -> str:
    """Return `export`'s report as a table for people."""
    d = report["device"]
    lines = [
        f"{d['name']}, compute capability {d['compute_capability']}, TensorRT {d['tensorrt']}",
        f"{'student':<9}{'batch':>6}{'median ms':>12}{'95 % ms':>10}{'faces/s':>10}",
    ]
    for precision, row in report["engines"].items():
        for batch, t in row["latency"].items():
            rate = 1000 * int(batch) / t["p50_ms"]
            lines.append(
                f"{precision:<9}{batch:>6}{t['p50_ms']:>12.3f}{t['p95_ms']:>10.3f}{rate:>10.0f}"
            )
    for precision, row in report["engines"].items():
        lines.append(
            f"{precision}: known answers off by {row['answer_error']:.3g}; attention {row['attention']}"
        )
        lines.append(f"{precision}: {row['convolutions'] or 'kernels not shown'}")
    precision = report["detector"]["facts"]["precision"]
    reason = (
        "as its file is" if precision == "fp32" else "or float32, whichever TensorRT found faster"
    )
    lines.append(f"detector: {precision}, {reason}")
    lines.append(f"chosen: {report['chosen']} ({report['why']})")
    return "\n".join(lines)


def run(argv: Sequence[str] | None = None) -> None:
    p = cli.parser(
        "export-engine",
        "Build TensorRT engines of a bundle's student and of the detector on this device, prove\n"
        "them on known answers, time them, and keep them where the node finds them.",
        "export-engine edge/models --config node.yaml",
    )
    p.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder that export-model wrote")
    p.add_argument(
        "--precision",
        choices=("auto", *TENSORRT_ROLES),
        default="auto",
        help="auto builds all and the node takes the fastest; else only this one is kept",
    )
    p.add_argument("--config", type=Path, metavar="node.yaml", help="detector size, folders")
    p.add_argument("--engines", type=Path, metavar="DIR", help="instead of the state folder's")
    p.add_argument("--json", action="store_true", help="write the figures as one JSON object")
    args: argparse.Namespace = p.parse_args(argv)
    data: dict[str, Any] = read_yaml(args.config) if args.config else {}
    settings = validate(Settings, data, str(args.config) if args.config else "settings")
    if args.engines:
        runtime = settings.runtime.model_copy(update={"engines": args.engines})
        settings = settings.model_copy(update={"runtime": runtime})
    bundle = load_bundle(args.bundle)
    # Before the minutes that the first engine takes.
    refuse_unwritable("--engines", engines_folder(settings), folder=True)
    api = this_device()
    from edge.inference.backends.trt import import_tensorrt

    report = export(
        bundle, settings, args.precision, api, strongly_typed(import_tensorrt()), cli.say
    )
    print(json.dumps(report, indent=1) if args.json else as_text(report))


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run("export-engine", run, argv)


if __name__ == "__main__":
    sys.exit(main())
