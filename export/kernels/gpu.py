"""Kernels on a GPU, from Python: memory, compilation on first use, launches, times; over cuda-bindings.

Arrays of others go in as they are: whatever has ``__cuda_array_interface__`` (CuPy, PyCUDA, torch) is taken by address.
**Never executed on a GPU.** What the tests show: its calls exist in cuda-bindings 12.8 and 13.5, NVRTC compiles what it
asks for, and with a driver that is none, whose memory is the host's, all launches give the right numbers.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from importlib import import_module
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from edgead.export.kernels.compiling import compile_kernel
from edgead.runtime.backends.gpu_driver import require_gpu
from edgead.runtime.errors import BackendError, BackendUnavailable, ConfigError

# Array of the CUDA array interface, whole number (int32), real number (float32), or no array.
Argument = Any
Grid = tuple[int, int, int]


class Device(Protocol):
    """What `edgead.export.kernels.scoring` needs of a GPU; tests give it one that is none."""

    @property
    def multiprocessors(self) -> int: ...

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> Any:
        """Return an array of undefined values."""

    def launch(self, kernel: str, grid: Grid, block: int, shared_bytes: int, *arguments: Argument) -> None:
        """Run a kernel of this folder by its name with template arguments."""


class GpuArray:
    """A C-contiguous array in a GPU's memory, freed with the object; others read it by ``__cuda_array_interface__``."""

    def __init__(self, gpu: Gpu, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        self.shape, self.dtype, self._gpu = shape, np.dtype(dtype), gpu
        self.nbytes = math.prod(shape) * self.dtype.itemsize
        # CUDA refuses an allocation of nothing.
        self.address = int(gpu.call("cuMemAlloc", max(self.nbytes, 1)))

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "strides": None,
            "version": 3,
            "stream": None,
        }

    def numpy(self) -> NDArray[Any]:
        """Wait for all launches, and return a copy on the host."""
        self._gpu.synchronize()
        found = np.empty(self.shape, self.dtype)
        if self.nbytes:
            self._gpu.call("cuMemcpyDtoH", found.ctypes.data, self.address, self.nbytes)
        return found

    def __del__(self) -> None:
        address, self.address = getattr(self, "address", 0), 0
        if address:
            self._gpu.free(address)


class Gpu:
    """The first GPU of this machine, in its primary context, which torch and CuPy use too; for one thread.

    Args:
        stream: handle of the stream to launch on, such as ``torch.cuda.current_stream().cuda_stream``; 0 is CUDA's
            default stream.

    Raises:
        BackendUnavailable: no driver, no GPU, or cuda-bindings is not installed; nothing was touched then.
    """

    def __init__(self, stream: int = 0) -> None:
        self.info = require_gpu("launching kernels")
        self._driver, self._nvrtc = _bindings()
        self._stream = stream
        self._functions: dict[str, Any] = {}
        self._modules: list[Any] = []
        self.call("cuInit", 0)
        self._device = self.call("cuDeviceGet", 0)
        self._open = True
        self.call("cuCtxSetCurrent", self.call("cuDevicePrimaryCtxRetain", self._device))
        major, _, minor = self.info.compute_capability.partition(".")
        self.architecture = int(major) * 10 + int(minor)
        count = self._driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT
        self._multiprocessors = int(self.call("cuDeviceGetAttribute", count, self._device))

    @property
    def multiprocessors(self) -> int:
        return self._multiprocessors

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> GpuArray:
        """Return an array of undefined values."""
        return GpuArray(self, shape, dtype)

    def upload(self, values: NDArray[Any]) -> GpuArray:
        """Return a copy of a host array."""
        packed = np.ascontiguousarray(values)
        made = self.empty(packed.shape, packed.dtype)
        if made.nbytes:
            self.call("cuMemcpyHtoD", made.address, packed.ctypes.data, made.nbytes)
        return made

    def load(self, kernel: str, *, source: str | None = None) -> Any:
        """Compile a kernel, unless it is there, and return its handle; arguments as in `compile_kernel`."""
        if kernel not in self._functions:
            code, name = compile_kernel(self._nvrtc, kernel, self.architecture, source=source)
            module = self.call("cuModuleLoadData", code)
            self._modules.append(module)
            self._functions[kernel] = self.call("cuModuleGetFunction", module, name)
        return self._functions[kernel]

    def launch(self, kernel: str, grid: Grid, block: int, shared_bytes: int, *arguments: Argument) -> None:
        """Run a kernel by its name with template arguments; returns at once.

        Raises:
            ConfigError: an array that is not on the GPU or not C-contiguous. BackendError: CUDA refuses the launch.
        """
        function = self.load(kernel)
        values, kinds = zip(*(_parameter(argument) for argument in arguments), strict=True)
        parameters = (values, kinds)
        self.call("cuLaunchKernel", function, *grid, block, 1, 1, shared_bytes, self._stream, parameters, 0)

    def synchronize(self) -> None:
        """Wait until everything on the stream is done; an error of a kernel shows here."""
        self.call("cuStreamSynchronize", self._stream)

    def milliseconds(self, work: Callable[[], object], rounds: int = 20, warm_up: int = 3) -> list[float]:
        """Return the time of each of ``rounds`` runs on the GPU, by its own clock."""
        for _ in range(warm_up):
            work()
        flags = int(self._driver.CUevent_flags.CU_EVENT_DEFAULT)
        begin, end = self.call("cuEventCreate", flags), self.call("cuEventCreate", flags)
        try:
            times = []
            for _ in range(rounds):
                self.call("cuEventRecord", begin, self._stream)
                work()
                self.call("cuEventRecord", end, self._stream)
                self.call("cuEventSynchronize", end)
                times.append(float(self.call("cuEventElapsedTime", begin, end)))
            return times
        finally:
            self.call("cuEventDestroy", begin)
            self.call("cuEventDestroy", end)

    def copy(self, target: GpuArray, source: GpuArray) -> None:
        """Copy within the GPU's memory."""
        self.call("cuMemcpyDtoDAsync", target.address, source.address, source.nbytes, self._stream)

    def call(self, name: str, *arguments: Any) -> Any:
        """Call the driver; raises `BackendError` where it answers with an error."""
        status, *values = getattr(self._driver, name)(*arguments)
        if int(status) != 0:
            raise BackendError(f"CUDA fails at {name}: {getattr(status, 'name', status)}")
        return values[0] if values else None

    def free(self, address: int) -> None:
        """Give memory back; after `close` there is nothing to give back to."""
        if self._open:
            self.call("cuMemFree", address)

    def close(self) -> None:
        """Unload the kernels and let go of the context; arrays of this GPU must not be used any more."""
        if self._open:
            for module in self._modules:
                self.call("cuModuleUnload", module)
            self._open = False
            self.call("cuDevicePrimaryCtxRelease", self._device)

    def __enter__(self) -> Gpu:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _bindings() -> tuple[Any, Any]:
    """Import driver and NVRTC of cuda-bindings; the extra depends on the driver."""
    from edgead.runtime.backends.tensorrt_library import cuda_extra

    try:
        return import_module("cuda.bindings.driver"), import_module("cuda.bindings.nvrtc")
    except ImportError as error:
        raise BackendUnavailable(
            f"cuda-bindings is not installed; run: pip install 'edgead[{cuda_extra()}]'"
        ) from error


def address_of(array: Any) -> int:
    """Return where a C-contiguous array of any library is in the GPU's memory; raises `ConfigError` otherwise."""
    described = getattr(array, "__cuda_array_interface__", None)
    if described is None:
        raise ConfigError(f"a {type(array).__name__} is not in a GPU's memory; upload it first")
    shape, strides = tuple(described["shape"]), described.get("strides")
    if strides is not None and tuple(strides) != _packed(shape, np.dtype(described["typestr"]).itemsize):
        raise ConfigError("an array for a kernel must be C-contiguous; make a contiguous copy of it")
    return int(described["data"][0])


def _packed(shape: Sequence[int], itemsize: int) -> tuple[int, ...]:
    strides, step = [], itemsize
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def _parameter(argument: Argument) -> tuple[Any, Any]:
    if argument is None:
        return 0, ctypes.c_void_p
    if isinstance(argument, float):
        return argument, ctypes.c_float
    if isinstance(argument, int):
        return argument, ctypes.c_int
    return address_of(argument), ctypes.c_void_p
