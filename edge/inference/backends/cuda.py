"""The few calls of the CUDA driver that an engine needs, by pycuda or by cuda-bindings.

pycuda has no wheel; where nobody built it, NVIDIA's cuda-bindings does the same. All calls but
`open_cuda` belong to the thread that called `enter`.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edge.base.errors import BackendError


@dataclass(frozen=True, slots=True)
class Buffer:
    """host: page-locked array; address: where the device reads or writes; mapped: the device uses
    the host's own memory, so that nothing is copied."""

    host: NDArray[Any]
    address: int
    mapped: bool
    owner: Any = None


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """memory_mib: of the whole device; shared: it computes in the processor's own memory."""

    name: str
    compute_capability: str
    memory_mib: int
    shared: bool


class Cuda(Protocol):
    def facts(self) -> DeviceFacts: ...

    def enter(self) -> None:
        """Make the device's primary context this thread's; a stream is made in it."""

    def buffer(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Buffer: ...

    def upload(self, buffer: Buffer, count: int) -> None:
        """Queue the first `count` bytes to the device; do nothing for a mapped buffer."""

    def download(self, buffer: Buffer, count: int) -> None: ...

    @property
    def stream(self) -> int: ...

    def wait(self) -> None:
        """Wait until everything that was queued is done."""

    def leave(self) -> None:
        """Give back all that `enter` and `buffer` took, also after half of it; never raises, since a
        context that has failed answers every call with its first fault."""


class PyCuda:
    def __init__(self) -> None:
        """Open the driver; raises ImportError without it or pycuda, BackendError without a device."""
        import pycuda.driver as driver

        self._driver = driver
        self._context: Any = None
        self._stream: Any = None
        try:
            driver.init()
            if not driver.Device.count():
                raise BackendError("the NVIDIA driver knows no device")
            self._device = driver.Device(0)
        except driver.Error as error:
            raise BackendError(f"the NVIDIA driver does not start: {error}") from error

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except self._driver.Error as error:
            raise BackendError(f"the device failed: {error}") from error

    def facts(self) -> DeviceFacts:
        at = self._driver.device_attribute
        major, minor = self._device.compute_capability()
        shared = all(
            self._device.get_attribute(getattr(at, name))
            for name in ("INTEGRATED", "CAN_MAP_HOST_MEMORY")
        )
        return DeviceFacts(
            self._device.name(), f"{major}.{minor}", self._device.total_memory() >> 20, shared
        )

    def enter(self) -> None:
        with self._faults():
            self._shared = self.facts().shared
            self._context = self._device.retain_primary_context()
            self._context.push()
            self._stream = self._driver.Stream()

    def buffer(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Buffer:
        flags = self._driver.host_alloc_flags.DEVICEMAP if self._shared else 0
        with self._faults():
            host = self._driver.pagelocked_empty(shape, dtype, mem_flags=flags)
            if self._shared:
                return Buffer(host, int(host.base.get_device_pointer()), True)
            memory = self._driver.mem_alloc(max(1, host.nbytes))
        return Buffer(host, int(memory), False, memory)

    def upload(self, buffer: Buffer, count: int) -> None:
        if not buffer.mapped:
            part = buffer.host.reshape(-1).view(np.uint8)[:count]
            with self._faults():
                self._driver.memcpy_htod_async(buffer.address, part, self._stream)

    def download(self, buffer: Buffer, count: int) -> None:
        if not buffer.mapped:
            part = buffer.host.reshape(-1).view(np.uint8)[:count]
            with self._faults():
                self._driver.memcpy_dtoh_async(part, buffer.address, self._stream)

    @property
    def stream(self) -> int:
        return int(self._stream.handle)

    def wait(self) -> None:
        with self._faults():
            self._stream.synchronize()

    def leave(self) -> None:
        self._stream = None
        if self._context is not None:
            context, self._context = self._context, None
            for step in (context.pop, context.detach):
                with suppress(self._driver.Error):
                    step()


class CudaBindings:
    def __init__(self) -> None:
        """Open the driver; raises ImportError without cuda-bindings, BackendError without a device."""
        try:
            from cuda.bindings import driver
        except ImportError:
            from cuda import cuda as driver  # its name before 12.8

        self._driver = driver
        self._context: Any = None
        self._stream: Any = None
        self._held: list[tuple[int, int | None]] = []
        try:
            self._call(driver.cuInit(0))
            if not self._call(driver.cuDeviceGetCount()):
                raise BackendError("the NVIDIA driver knows no device")
            self._device = self._call(driver.cuDeviceGet(0))
        except RuntimeError as error:  # libcuda.so.1 is not there
            raise BackendError(f"the NVIDIA driver is missing: {error}") from error

    def _call(self, answer: tuple[Any, ...]) -> Any:
        code, *values = answer
        if int(code) != 0:
            raise BackendError(f"the NVIDIA driver answers {getattr(code, 'name', code)}")
        return values[0] if len(values) == 1 else values

    def _attribute(self, name: str) -> int:
        attribute = getattr(self._driver.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
        return int(self._call(self._driver.cuDeviceGetAttribute(attribute, self._device)))

    def facts(self) -> DeviceFacts:
        name = self._call(self._driver.cuDeviceGetName(128, self._device))
        major = self._attribute("COMPUTE_CAPABILITY_MAJOR")
        minor = self._attribute("COMPUTE_CAPABILITY_MINOR")
        shared = bool(self._attribute("INTEGRATED") and self._attribute("CAN_MAP_HOST_MEMORY"))
        memory = int(self._call(self._driver.cuDeviceTotalMem(self._device))) >> 20
        return DeviceFacts(name.split(b"\0")[0].decode(), f"{major}.{minor}", memory, shared)

    def enter(self) -> None:
        self._shared = self.facts().shared
        self._context = self._call(self._driver.cuDevicePrimaryCtxRetain(self._device))
        self._call(self._driver.cuCtxPushCurrent(self._context))
        self._stream = self._call(self._driver.cuStreamCreate(0))

    def buffer(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Buffer:
        count = max(1, math.prod(shape) * dtype.itemsize)
        flags = self._driver.CU_MEMHOSTALLOC_DEVICEMAP if self._shared else 0
        place = int(self._call(self._driver.cuMemHostAlloc(count, flags)))
        self._held.append((place, None))
        memory = memoryview((ctypes.c_uint8 * count).from_address(place))
        host = np.frombuffer(memory, dtype, count=math.prod(shape)).reshape(shape)
        if self._shared:
            return Buffer(
                host, int(self._call(self._driver.cuMemHostGetDevicePointer(place, 0))), True
            )
        address = int(self._call(self._driver.cuMemAlloc(count)))
        self._held[-1] = (place, address)
        return Buffer(host, address, False)

    def upload(self, buffer: Buffer, count: int) -> None:
        if not buffer.mapped:
            self._call(
                self._driver.cuMemcpyHtoDAsync(
                    buffer.address, buffer.host.ctypes.data, count, self._stream
                )
            )

    def download(self, buffer: Buffer, count: int) -> None:
        if not buffer.mapped:
            self._call(
                self._driver.cuMemcpyDtoHAsync(
                    buffer.host.ctypes.data, buffer.address, count, self._stream
                )
            )

    @property
    def stream(self) -> int:
        return int(self._stream)

    def wait(self) -> None:
        self._call(self._driver.cuStreamSynchronize(self._stream))

    def leave(self) -> None:
        driver, held = self._driver, self._held
        self._held = []
        for place, address in held:
            if address is not None:
                driver.cuMemFree(address)
            driver.cuMemFreeHost(place)
        if self._stream is not None:
            driver.cuStreamDestroy(self._stream)
        if self._context is not None:
            driver.cuCtxPopCurrent()
            driver.cuDevicePrimaryCtxRelease(self._device)
        self._stream = self._context = None


def open_cuda() -> Cuda:
    """Open the first binding that works; raises BackendError where none does, before any TensorRT
    call: `tensorrt.Runtime` can crash a process that has no driver."""
    reasons = []
    for kind in (PyCuda, CudaBindings):
        try:
            return kind()
        except ImportError as error:
            reasons.append(f"{kind.__name__}: {error}")
        except BackendError as error:
            reasons.append(str(error))
    raise BackendError(
        f"no CUDA device can be used ({'; '.join(reasons)}); install NVIDIA's driver, and pycuda or "
        f"cuda-bindings, or run with --backend ort"
    )
