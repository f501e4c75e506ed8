"""What the NVIDIA driver of this machine offers, asked through the driver library itself.

The vendor's runtimes must not be asked: without a driver some of them end the process (seen: ``tensorrt_dispatch``).
Written against the driver's API; on a GPU it has not been executed.
"""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from functools import cache

from edgead.runtime.errors import BackendUnavailable


@dataclass(frozen=True, slots=True)
class CudaDevice:
    """One GPU; ``compute_capability`` such as ``8.7``."""

    name: str
    compute_capability: str


@dataclass(frozen=True, slots=True)
class CudaDriver:
    """The state of the driver.

    Attributes:
        found: whether its library could be loaded.
        code: what ``cuInit`` returned, 0 where it worked.
        release: CUDA release that the driver supports, such as ``12.6``.
        devices: the GPUs this process may use.
    """

    found: bool
    code: int = 0
    release: str = ""
    devices: tuple[CudaDevice, ...] = ()

    @property
    def problem(self) -> str | None:
        """Why no GPU can be used, on one line; None where one can."""
        if not self.found:
            return "this machine has no NVIDIA driver"
        if self.code:
            return f"the NVIDIA driver is there, but cuInit fails with code {self.code} (no GPU, or no right to use it)"
        return None if self.devices else "the NVIDIA driver is there, but it offers no GPU"


@cache
def cuda_driver() -> CudaDriver:
    """Ask the driver, once a process; without its library this costs one failed look-up."""
    try:
        cuda = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return CudaDriver(found=False)
    code = cuda.cuInit(0)
    if code:
        return CudaDriver(found=True, code=code)
    number, count = ctypes.c_int(), ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(number))
    cuda.cuDeviceGetCount(ctypes.byref(count))
    devices = []
    for index in range(count.value):
        device, major, minor, text = ctypes.c_int(), ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(128)
        cuda.cuDeviceGet(ctypes.byref(device), index)
        cuda.cuDeviceGetName(text, len(text), device)
        cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, device)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
        cuda.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)
        devices.append(CudaDevice(text.value.decode(errors="replace"), f"{major.value}.{minor.value}"))
    release = f"{number.value // 1000}.{number.value % 1000 // 10}"
    return CudaDriver(found=True, release=release, devices=tuple(devices))


def require_gpu(what: str) -> CudaDevice:
    """Return the first GPU; raises `BackendUnavailable` where there is none, before any vendor library is touched."""
    driver = cuda_driver()
    if driver.problem is not None:
        raise BackendUnavailable(f"{what} needs an NVIDIA GPU: {driver.problem}; see: edgead doctor")
    return driver.devices[0]
