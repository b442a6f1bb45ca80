"""The two bindings of the CUDA driver over a driver in Python: what a failed context leaves behind."""

from __future__ import annotations

import ctypes
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edge.base.errors import BackendError
from edge.inference.backends.cuda import Cuda, CudaBindings, PyCuda

ILLEGAL_ADDRESS = 700


class Driver:
    """cuda-bindings' `driver`: every call notes its name and answers a code, 700 for ever once lost."""

    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=8,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=7,
        CU_DEVICE_ATTRIBUTE_INTEGRATED=0,
        CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY=1,
    )
    CU_MEMHOSTALLOC_DEVICEMAP = 2

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.lost_at = "cuStreamSynchronize"
        self.lost = False
        self._memory: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append(name)
            self.lost |= name == self.lost_at
            if self.lost:
                return (ILLEGAL_ADDRESS,)
            if name == "cuMemHostAlloc":
                self._memory.append((ctypes.c_uint8 * arguments[0])())
                return 0, ctypes.addressof(self._memory[-1])
            if name == "cuDeviceGetName":
                return 0, b"Orin\0"
            if name == "cuDeviceGetAttribute":
                return 0, arguments[0]
            return 0, 1

        return call


def bindings(monkeypatch: pytest.MonkeyPatch, driver: Driver) -> CudaBindings:
    module = ModuleType("cuda.bindings")
    module.driver = driver  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cuda", ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", module)
    return CudaBindings()


def fill(cuda: Cuda) -> None:
    """Use a device as a backend does."""
    cuda.enter()
    for _ in range(2):
        cuda.upload(cuda.buffer((2, 3), np.dtype(np.float32)), 8)
    cuda.wait()


FREED = ("cuMemFree", "cuMemFreeHost", "cuMemFree", "cuMemFreeHost")
LEFT = ("cuStreamDestroy", "cuCtxPopCurrent", "cuDevicePrimaryCtxRelease")


@pytest.mark.parametrize(
    ("lost_at", "given_back"),
    [
        ("cuStreamSynchronize", (*FREED, *LEFT)),
        ("cuMemcpyHtoDAsync", (*FREED[:2], *LEFT)),
        ("cuMemAlloc", ("cuMemFreeHost", *LEFT)),
        ("cuStreamCreate", LEFT[1:]),
        ("cuDevicePrimaryCtxRetain", ()),
    ],
)
def test_all_is_given_back_of_a_context_that_answers_with_its_first_fault(
    monkeypatch: pytest.MonkeyPatch, lost_at: str, given_back: tuple[str, ...]
) -> None:
    driver = Driver()
    cuda, driver.lost_at = bindings(monkeypatch, driver), lost_at
    with pytest.raises(BackendError, match="answers 700"):
        fill(cuda)
    driver.calls.clear()
    cuda.leave()
    assert tuple(driver.calls) == given_back
    cuda.leave()
    assert tuple(driver.calls) == given_back, "the second time does nothing"


class Refused(Exception):
    """pycuda's `driver.Error`."""


def refuse(*arguments: Any, **options: Any) -> Any:
    raise Refused("illegal address")


def pycuda(monkeypatch: pytest.MonkeyPatch, calls: list[str], **faults: Any) -> PyCuda:
    def noted(name: str) -> Any:
        def call() -> None:
            calls.append(name)
            refuse()

        return call

    context = SimpleNamespace(push=lambda: None, pop=noted("pop"), detach=noted("detach"))
    device = SimpleNamespace(
        compute_capability=lambda: (8, 7),
        get_attribute=lambda name: 0,
        name=lambda: "Orin",
        total_memory=lambda: 1 << 30,
        retain_primary_context=lambda: context,
    )

    class Device:
        def __new__(cls, index: int) -> Any:
            return device

        count = staticmethod(lambda: 1)

    driver = ModuleType("pycuda.driver")
    driver.__dict__.update(
        Error=Refused,
        init=lambda: None,
        Device=Device,
        device_attribute=SimpleNamespace(INTEGRATED=0, CAN_MAP_HOST_MEMORY=1),
        host_alloc_flags=SimpleNamespace(DEVICEMAP=2),
        Stream=lambda: SimpleNamespace(handle=7, synchronize=lambda: None),
        pagelocked_empty=lambda shape, dtype, mem_flags: np.empty(shape, dtype),
        mem_alloc=lambda count: 1000,
        memcpy_htod_async=lambda *arguments: None,
    )
    driver.__dict__.update(faults)
    package = ModuleType("pycuda")
    package.driver = driver  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", driver)
    return PyCuda()


@pytest.mark.parametrize(
    "faults",
    [
        {"Stream": refuse},
        {"pagelocked_empty": refuse},
        {"mem_alloc": refuse},
        {"memcpy_htod_async": refuse},
        {"Stream": lambda: SimpleNamespace(handle=7, synchronize=refuse)},
    ],
    ids=["enter", "host memory", "device memory", "copy", "wait"],
)
def test_each_fault_of_pycuda_is_one_of_ours_and_leaving_raises_none(
    monkeypatch: pytest.MonkeyPatch, faults: dict[str, Any]
) -> None:
    calls: list[str] = []
    cuda = pycuda(monkeypatch, calls, **faults)
    with pytest.raises(BackendError, match="the device failed: illegal address"):
        fill(cuda)
    cuda.leave()
    cuda.leave()
    assert calls == ["pop", "detach"]
