"""One ONNX file -> one TensorRT plan, with TensorRT 8.6, 10 and 11. No calibrator: INT8 is in the file.

From 10.0 on the network is strongly typed: what is computed are the file's own types, on a Jetson as by
NVIDIA's builder in the tests. 8.6 knows weak typing alone: flags allow FP16 and INT8, the file's Q/DQ
say where INT8 is, and the builder chooses between FP16 and float32 by speed, whatever the Casts say.
Source of the differences: the bindings' own attributes, compared by the tests.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.base.errors import BackendError, BundleError
from edge.inference.backends.trt import import_tensorrt
from edge.inference.engine_cache import Profile

LEAST_WORKSPACE_MIB = 64
MOST_WORKSPACE_MIB = 1024


def workspace_mib(memory_mib: int) -> int:
    """Return a quarter of the memory at most: a 4 GB board shares it with everything else."""
    return max(LEAST_WORKSPACE_MIB, min(MOST_WORKSPACE_MIB, memory_mib // 4))


@dataclass(frozen=True, slots=True)
class Plan:
    """What a build made. data: the serialized engine; timings: the timing cache after it."""

    data: bytes
    timings: bytes
    seconds: float


def _logger(trt: Any, say: Callable[[str], None]) -> Any:
    class Log(trt.ILogger):  # type: ignore[misc]
        """Errors are kept for the one line that names them."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(message.strip())
            elif severity == trt.ILogger.WARNING:
                say(f"  TensorRT: {message.strip()[:160]}")

    return Log()


def _monitor(trt: Any, say: Callable[[str], None]) -> Any:
    """Report TensorRT's own progress, from 10 on: each phase with its step, every five seconds."""

    class Progress(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}
            self._said = time.monotonic()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            if time.monotonic() - self._said >= 5:
                self._said = time.monotonic()
                say(f"  {phase_name}: {step + 1}/{self._steps.get(phase_name, 0)}")
            return True  # go on

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

    return Progress()


def _line(faults: list[str]) -> str:
    """Return the first of TensorRT's messages, which run over several lines, as part of one line."""
    return " ".join(faults[0].split())[:200] if faults else "it gives no reason"


def strongly_typed(trt: Any) -> bool:
    """Tell whether this TensorRT can build strongly typed networks: from 10.0 on, and from 11 on no
    others."""
    return hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")


def _use_timings(config: Any, timings: bytes, say: Callable[[str], None]) -> Any:
    """Give the builder the timings of earlier builds, or a fresh cache where it refuses them (a cut
    file, another device's). The answer must live until the engine is built."""
    cache = config.create_timing_cache(timings)
    if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
        return cache
    say("  TensorRT refuses the timings of earlier builds; the build goes on without them")
    cache = config.create_timing_cache(b"")
    if cache is not None:
        config.set_timing_cache(cache, ignore_mismatch=False)
    return cache


def build(
    model: Path,
    precision: str,
    profile: Profile,
    timings: bytes,
    workspace: int,
    say: Callable[[str], None],
) -> Plan:
    """Build an engine of an ONNX file.

    precision: int8, fp16 or fp32; timings: the timing cache of earlier builds; workspace: MiB. Raises
    BundleError where the parser refuses the file, BackendError where nothing can be built.
    """
    trt = import_tensorrt()
    logger = _logger(trt, say)
    builder = trt.Builder(logger)
    flags = 0
    for name in ("EXPLICIT_BATCH", *(["STRONGLY_TYPED"] if strongly_typed(trt) else [])):
        if hasattr(trt.NetworkDefinitionCreationFlag, name):
            flags |= 1 << int(getattr(trt.NetworkDefinitionCreationFlag, name))
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model.read_bytes()):
        faults = [parser.get_error(i).desc() for i in range(parser.num_errors)] or logger.errors
        raise BundleError(
            f"TensorRT {trt.__version__} refuses {model.name}: {_line(faults)}; "
            f"export the bundle again with this version of the kit"
        )
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace << 20)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # for the inspector
    if not strongly_typed(trt):
        say(
            f"  TensorRT {trt.__version__} is weakly typed: what the file has in FP16 is computed in "
            f"FP16 or float32, whichever is faster"
        )
        allowed = {"int8": ("FP16", "INT8"), "fp16": ("FP16",), "fp32": ()}[precision]
        for name in allowed:
            config.set_flag(getattr(trt.BuilderFlag, name))
    source = network.get_input(0)
    shapes = builder.create_optimization_profile()
    shapes.set_shape(source.name, *profile)
    config.add_optimization_profile(shapes)
    cache = _use_timings(config, timings, say)
    if hasattr(trt, "IProgressMonitor"):
        config.progress_monitor = _monitor(trt, say)
    started = time.monotonic()
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BackendError(
            f"TensorRT {trt.__version__} built no {precision} engine of {model.name}: "
            f"{_line(logger.errors[-1:])}; free "
            f"memory (close the desktop) and start again"
        )
    made = b"" if cache is None else bytes(cache.serialize())
    return Plan(bytes(plan), made, time.monotonic() - started)
