"""A driver that is none, in the place of ``cuda.bindings``: its memory is the host's, its kernels are the simulator's.

It takes calls as cuda-bindings does, by position and with a tuple as the answer, and is strict where a GPU would be:
memory that nobody allocated, freed twice or left behind, kernels of an unloaded module, work without a context.
"""

from __future__ import annotations

import ctypes
import enum
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgead.export.kernels import gpu as gpu_module
from edgead.runtime.backends.gpu_driver import CudaDevice, CudaDriver
from tests.cuda.executor import HostExecutor


class Status(enum.IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_NOT_FOUND = 500


class FakeDriver:
    """Stands for ``cuda.bindings.driver``; functions have the names of the driver's."""

    def __init__(self, library: Path, memory_bytes: int = 1 << 30) -> None:
        self._executor = HostExecutor(library)
        self._memory: dict[int, NDArray[np.uint8]] = {}
        self._left = memory_bytes
        self._clock = 0.0
        self._context = 0
        self.modules: set[int] = set()
        self.launched: list[str] = []
        self.CUdevice_attribute = SimpleNamespace(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT=16)
        self.CUevent_flags = SimpleNamespace(CU_EVENT_DEFAULT=0)

    @property
    def allocations(self) -> int:
        return len(self._memory)

    def cuInit(self, flags: int) -> tuple[Status]:
        return (Status.CUDA_SUCCESS if flags == 0 else Status.CUDA_ERROR_INVALID_VALUE,)

    def cuDeviceGet(self, number: int) -> tuple[Status, int]:
        return Status.CUDA_SUCCESS, number

    def cuDeviceGetAttribute(self, attribute: int, device: int) -> tuple[Status, int]:
        assert (attribute, device) == (16, 0)
        return Status.CUDA_SUCCESS, 3

    def cuDevicePrimaryCtxRetain(self, device: int) -> tuple[Status, int]:
        return Status.CUDA_SUCCESS, 7000 + device

    def cuDevicePrimaryCtxRelease(self, device: int) -> tuple[Status]:
        assert device == 0
        self._context = 0
        return (Status.CUDA_SUCCESS,)

    def cuCtxSetCurrent(self, context: int) -> tuple[Status]:
        self._context = context
        return (Status.CUDA_SUCCESS,)

    def cuMemAlloc(self, size: int) -> tuple[Status, int]:
        assert self._context
        assert size > 0
        if size > self._left:
            return Status.CUDA_ERROR_OUT_OF_MEMORY, 0
        block = np.full(size, 0xA5, np.uint8)
        self._memory[block.ctypes.data] = block
        self._left -= size
        return Status.CUDA_SUCCESS, block.ctypes.data

    def cuMemFree(self, address: int) -> tuple[Status]:
        self._left += len(self._memory.pop(address))
        return (Status.CUDA_SUCCESS,)

    def cuMemcpyHtoD(self, target: int, source: int, size: int) -> tuple[Status]:
        assert size <= len(self._memory[target])
        ctypes.memmove(target, source, size)
        return (Status.CUDA_SUCCESS,)

    def cuMemcpyDtoH(self, target: int, source: int, size: int) -> tuple[Status]:
        assert size <= len(self._memory[source])
        ctypes.memmove(target, source, size)
        return (Status.CUDA_SUCCESS,)

    def cuMemcpyDtoDAsync(self, target: int, source: int, size: int, stream: int) -> tuple[Status]:
        assert stream == 0
        assert size <= min(len(self._memory[target]), len(self._memory[source]))
        ctypes.memmove(target, source, size)
        self._clock += 1.0
        return (Status.CUDA_SUCCESS,)

    def cuModuleLoadData(self, image: bytes) -> tuple[Status, int]:
        assert image.startswith(b"machine code of ")
        self.modules.add(len(self.launched) * 1000 + len(self.modules) + 1)
        return Status.CUDA_SUCCESS, max(self.modules)

    def cuModuleUnload(self, module: int) -> tuple[Status]:
        self.modules.remove(module)
        return (Status.CUDA_SUCCESS,)

    def cuModuleGetFunction(self, module: int, name: bytes) -> tuple[Status, Any]:
        if module not in self.modules:
            return Status.CUDA_ERROR_NOT_FOUND, None
        return Status.CUDA_SUCCESS, (module, name.decode().removeprefix("lowered "))

    def cuLaunchKernel(
        self, function: Any, x: int, y: int, z: int, bx: int, by: int, bz: int, shared: int, stream: int,
        parameters: tuple[tuple[Any, ...], tuple[Any, ...]], extra: int,
    ) -> tuple[Status]:  # fmt: skip
        module, name = function
        assert module in self.modules
        assert (by, bz, stream, extra) == (1, 1, 0, 0)
        if min(x, y, z) < 1:
            return (Status.CUDA_ERROR_INVALID_VALUE,)
        self._clock += 1.0
        self.launched.append(name)
        if name.startswith("ceiling_"):
            return (Status.CUDA_SUCCESS,)  # arithmetic for its own sake, not in the simulator's library
        values = [kind(value) for value, kind in zip(*parameters, strict=True)]
        for value in values:
            if isinstance(value, ctypes.c_void_p) and value.value is not None:
                assert value.value in self._memory, f"{name}: an address that nobody allocated"
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        dimensions = ctypes.c_uint * 3
        sizes = (dimensions(x, y, z), dimensions(bx, by, bz), ctypes.c_size_t(shared))
        self._executor.check(self._executor.library.launch_kernel(name.encode(), *sizes, pointers))
        return (Status.CUDA_SUCCESS,)

    def cuStreamSynchronize(self, stream: int) -> tuple[Status]:
        assert stream == 0
        return (Status.CUDA_SUCCESS,)

    def cuEventCreate(self, flags: int) -> tuple[Status, list[float]]:
        assert flags == 0
        return Status.CUDA_SUCCESS, [-1.0]

    def cuEventRecord(self, event: list[float], stream: int) -> tuple[Status]:
        assert stream == 0
        event[0] = self._clock
        return (Status.CUDA_SUCCESS,)

    def cuEventSynchronize(self, event: list[float]) -> tuple[Status]:
        assert event[0] >= 0.0
        return (Status.CUDA_SUCCESS,)

    def cuEventElapsedTime(self, begin: list[float], end: list[float]) -> tuple[Status, float]:
        return Status.CUDA_SUCCESS, end[0] - begin[0]

    def cuEventDestroy(self, event: list[float]) -> tuple[Status]:
        event[0] = -2.0
        return (Status.CUDA_SUCCESS,)


class FakeNvrtc:
    """Stands for ``cuda.bindings.nvrtc``: its machine code is the kernel's name."""

    def nvrtcCreateProgram(self, source: bytes, name: bytes, count: int, texts: list[bytes], names: list[bytes]) -> Any:
        assert (count, texts, names) == (0, [], [])
        return 0, {"source": source.decode(), "file": name}

    def nvrtcAddNameExpression(self, program: dict[str, Any], expression: bytes) -> tuple[int]:
        program["kernel"] = expression.decode().removeprefix("edgead::")
        return (0,)

    def nvrtcCompileProgram(self, program: dict[str, Any], count: int, options: list[bytes]) -> tuple[int]:
        assert count == len(options)
        assert b"--gpu-architecture=sm_87" in options
        return (0,)

    def nvrtcGetLoweredName(self, program: dict[str, Any], expression: bytes) -> tuple[int, bytes]:
        return 0, b"lowered " + program["kernel"].encode()

    def nvrtcGetCUBINSize(self, program: dict[str, Any]) -> tuple[int, int]:
        return 0, len(b"machine code of ") + len(program["kernel"])

    def nvrtcGetCUBIN(self, program: dict[str, Any], target: bytes) -> tuple[int]:
        code = b"machine code of " + program["kernel"].encode()
        assert len(target) == len(code)
        # The real one writes into the bytes it is given, and so must this.
        offset = sys.getsizeof(b"") - 1
        ctypes.memmove(id(target) + offset, code, len(code))
        return (0,)

    def nvrtcDestroyProgram(self, program: dict[str, Any]) -> tuple[int]:
        program.clear()
        return (0,)


def install(monkeypatch: pytest.MonkeyPatch, library: Path) -> FakeDriver:
    """Put both in the place of cuda-bindings, and a GPU of that driver into this machine."""
    driver = FakeDriver(library)
    bindings = ModuleType("cuda.bindings")
    modules = {"cuda": ModuleType("cuda"), "cuda.bindings": bindings, "cuda.bindings.driver": driver}
    modules["cuda.bindings.nvrtc"] = FakeNvrtc()  # type: ignore[assignment]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)  # type: ignore[arg-type]
    found = CudaDriver(found=True, release="12.6", devices=(CudaDevice("a GPU that is none", "8.7"),))
    monkeypatch.setattr(gpu_module, "require_gpu", lambda _what: found.devices[0])
    return driver
