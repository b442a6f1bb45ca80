"""Open the two networks that the settings name, each on its runtime and verified before it is used.

`auto` takes TensorRT where a verified engine for this very device is on the disk, else ONNX Runtime,
and says why; each network for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edge.base.errors import BackendError, BundleError, DeviceError, EdgeError, UsageError
from edge.inference.backends import Backend
from edge.inference.bundle import TENSORRT_ROLES, Bundle, load_bundle
from edge.inference.engine_cache import FACES, Profile, choose, facts_of, find, quarantine
from edge.settings import Settings


@dataclass(frozen=True, slots=True)
class Opened:
    """A network ready to run. engine: file name of TensorRT's; fallback: why `auto` took ONNX
    Runtime; both None otherwise."""

    backend: Backend
    precision: str
    engine: str | None = None
    fallback: str | None = None


def open_backend(choice: str, model: Path, threads: int = 2) -> Backend:
    """Open `model` (an ONNX file) with ONNX Runtime ("ort") or the fake ("fake"); TensorRT runs
    engines, see `open_engine`.

    Raises BackendError where the runtime is missing or refuses the file.
    """
    if choice == "fake":
        from edge.inference.backends.fake import Fake

        return Fake(model)
    if choice == "ort":
        from edge.inference.backends.ort import OnnxRuntime

        return OnnxRuntime(model, threads)
    raise UsageError(f"no backend '{choice}' runs an ONNX file; choose ort or fake")


def engines_folder(settings: Settings) -> Path:
    """Return where the node keeps its TensorRT engines."""
    return settings.runtime.engines or settings.state_folder / "engines"


def student_profile(bundle: Bundle) -> Profile:
    """Return (N, C, S, S) for the smallest, the usual and the largest batch."""
    c, s = bundle.crop.channels, bundle.crop.size
    small, usual, large = ((n, c, s, s) for n in FACES)
    return small, usual, large


def detector_profile(width: int, height: int) -> Profile:
    """Return (1, 3, H, W) three times: the detector sees one frame at a time."""
    shape = (1, 3, height, width)
    return shape, shape, shape


def open_engine(
    models: Mapping[str, Path],
    profile: Profile,
    folder: Path,
    self_test: Callable[[Backend, str], object],
) -> Opened:
    """Open the best verified engine among those of `models` (ONNX files by precision).

    self_test: raises EdgeError where a backend of that precision answers wrongly; such an engine, or
    one that does not load, is quarantined. Raises BackendError where none is left, DeviceError where
    the device was lost to this process; the next one finds other engines, or none.
    """
    from edge.inference.backends.trt import TensorRT, device

    here = device()
    found = [
        engine
        for precision, model in models.items()
        if (engine := find(folder, facts_of(model, precision, profile, here)))
    ]
    chosen = choose(found)
    try:
        backend = TensorRT(chosen.path)
        try:
            self_test(backend, chosen.precision)
        except BaseException:
            backend.close()
            raise
    except EdgeError as error:
        quarantine(chosen.path, str(error))
        if isinstance(error, DeviceError):
            raise
        raise BackendError(f"{error}; the engine was set aside, run export-engine") from error
    return Opened(backend, chosen.precision, chosen.path.name)


def open_student(settings: Settings) -> tuple[Bundle, Opened]:
    """Load the bundle and open its student, which has passed the bundle's self-test.

    Raises BundleError or BackendError; `auto` falls back to ONNX Runtime, and says why."""
    bundle = load_bundle(settings.runtime.bundle)
    choice, threads = settings.runtime.backend, settings.runtime.threads
    fallback = None
    if choice in ("auto", "trt"):
        try:
            models = {p: bundle.file(role) for p, role in TENSORRT_ROLES.items()}
            profile = student_profile(bundle)
            return bundle, open_engine(models, profile, engines_folder(settings), bundle.self_test)
        except (BackendError, BundleError) as error:
            if choice == "trt":
                raise
            fallback = str(error)
    backend = open_backend("fake" if choice == "fake" else "ort", bundle.model(), threads)
    if choice == "fake":
        return bundle, Opened(backend, "none")
    try:
        bundle.self_test(backend)
    except EdgeError:
        backend.close()
        raise
    return bundle, Opened(backend, "int8", fallback=fallback)
