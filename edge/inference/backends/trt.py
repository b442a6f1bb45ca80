"""TensorRT: a built engine on an NVIDIA device.

Everything that touches the device happens in one thread, which holds the context; `run` hands a batch
over and waits. Works with TensorRT 8.6 to 11: only calls that all of them have.

Some faults of a device are final (an illegal address, a failed launch): every later call of the process
fails too, whatever engine it is for. That is DeviceError, and the way out is a new process.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edge.base.errors import BackendError, DeviceError
from edge.base.jetson import l4t_release
from edge.inference.backends import TensorSpec
from edge.inference.backends.cuda import Buffer, Cuda, open_cuda
from edge.inference.engine_cache import Device

T = TypeVar("T")


def import_tensorrt() -> Any:
    """Import the module; raises BackendError in one line where it is missing."""
    try:
        import tensorrt as trt
    except ImportError as error:
        raise BackendError(
            f"TensorRT is not installed ({error}); on a Jetson install nvidia-jetpack and make the "
            f"environment with --system-site-packages, or run with --backend ort"
        ) from error
    return trt


def device() -> Device:
    """Describe the device that engines are for; raises BackendError without one or TensorRT."""
    facts = open_cuda().facts()
    return Device(
        name=facts.name,
        compute_capability=facts.compute_capability,
        tensorrt=str(import_tensorrt().__version__),
        l4t=l4t_release(),
        memory_mib=facts.memory_mib,
        shared=facts.shared,
    )


class TensorRT:
    """One engine with one input, whose first side is the batch."""

    name = "tensorrt"

    def __init__(self, plan: Path, cuda: Cuda | None = None) -> None:
        """Load the engine; raises BackendError where it is cut, or of another TensorRT, DeviceError
        where the device is lost to this process."""
        self.plan = plan
        self._cuda = cuda or open_cuda()
        self._trt = import_tensorrt()
        self._owner = ThreadPoolExecutor(1, thread_name_prefix=f"trt-{plan.stem[:8]}")
        self._kept: list[Any] = []
        self._closed = False
        try:
            self._owner.submit(self._cuda.enter).result()
            self._in_owner(self._open)
        except BaseException:
            self.close()
            raise

    def _in_owner(self, call: Callable[..., T], *arguments: Any) -> T:
        return self._owner.submit(self._judged, call, *arguments).result()

    def _judged(self, call: Callable[..., T], *arguments: Any) -> T:
        """Ask the device once more where a call failed: only a lost one fails at that too."""
        try:
            return call(*arguments)
        except BackendError as error:
            try:
                self._cuda.wait()
            except BackendError as last:
                raise DeviceError(
                    f"the NVIDIA device is lost to this process while {self.plan.name} was in use "
                    f"({last}); start it again, a service does so by itself",
                    public="the NVIDIA device is lost to the process, which starts again",
                ) from error
            raise

    def _open(self) -> None:
        trt = self._trt
        logger = trt.Logger(trt.Logger.ERROR)
        runtime = trt.Runtime(logger)
        # Kept in the order in which they must not be freed before each other.
        self._kept += [logger, runtime]
        engine = runtime.deserialize_cuda_engine(self.plan.read_bytes())
        if engine is None:
            raise BackendError(
                f"{self.plan} is not an engine for TensorRT {trt.__version__} on this device; run "
                f"export-engine again"
            )
        self._kept.append(engine)
        context = engine.create_execution_context()
        if context is None:
            raise BackendError(f"{self.plan}: no memory for its execution context")
        self._kept.append(context)
        self._engine, self._context = engine, context
        self._prepare()

    def _prepare(self) -> None:
        trt, engine = self._trt, self._engine
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        inputs = [n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
        if len(inputs) != 1:
            raise BackendError(f"{self.plan} has {len(inputs)} inputs, one is served")
        [source] = inputs
        shape = tuple(engine.get_tensor_shape(source))
        largest = tuple(engine.get_tensor_profile_shape(source, 0)[2])
        self.largest_batch = largest[0]
        self.input = TensorSpec(source, tuple(None if side < 0 else side for side in shape))
        self._context.set_input_shape(source, largest)
        self._source = self._buffer(source, largest)
        self._outputs = {
            name: self._buffer(name, tuple(self._context.get_tensor_shape(name)))
            for name in names
            if name != source
        }

    def _buffer(self, name: str, shape: tuple[int, ...]) -> Buffer:
        dtype = np.dtype(self._trt.nptype(self._engine.get_tensor_dtype(name)))
        if dtype != np.float32:
            raise BackendError(f"{self.plan}: '{name}' is {dtype}, float32 is served")
        buffer = self._cuda.buffer(shape, dtype)
        self._context.set_tensor_address(name, buffer.address)
        return buffer

    def run(self, batch: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """See Backend.run; a batch above the engine's largest goes in parts."""
        if len(batch) == 0:
            return {
                name: np.zeros((0, *buffer.host.shape[1:]), dtype=np.float32)
                for name, buffer in self._outputs.items()
            }
        expected = self.input.shape[1:]
        if any(e is not None and e != b for e, b in zip(expected, batch.shape[1:], strict=True)):
            raise BackendError(
                f"{self.plan.name} takes {self.input.shape}, not a batch of {batch.shape}"
            )
        step = self.largest_batch
        parts = [
            self._in_owner(self._run, batch[start : start + step])
            for start in range(0, len(batch), step)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in self._outputs}

    def _run(self, batch: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        cuda, count = self._cuda, len(batch)
        self._source.host[:count] = batch
        self._context.set_input_shape(self.input.name, batch.shape)
        cuda.upload(self._source, batch.nbytes)
        if not self._context.execute_async_v3(cuda.stream):
            raise BackendError(f"TensorRT did not run {self.plan.name} on {batch.shape}")
        for buffer in self._outputs.values():
            cuda.download(buffer, buffer.host.nbytes // self.largest_batch * count)
        cuda.wait()
        return {name: np.array(buffer.host[:count]) for name, buffer in self._outputs.items()}

    def inspect(self) -> str:
        """Return the engine inspector's JSON."""

        def ask() -> str:
            inspector = self._engine.create_engine_inspector()
            return str(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))

        return self._in_owner(ask)

    def close(self) -> None:
        """Give everything back, of a lost device too; never raises, does nothing the second time."""
        if self._closed:
            return
        self._closed = True
        self._owner.submit(self._free).result()
        self._owner.shutdown()

    def _free(self) -> None:
        if self._kept:
            with suppress(BackendError):  # of the batch that runs, which nobody waits for any more
                self._cuda.wait()
        self._source = None  # type: ignore[assignment]
        self._outputs = {}
        self._context = self._engine = None
        while self._kept:
            self._kept.pop()
        self._cuda.leave()
