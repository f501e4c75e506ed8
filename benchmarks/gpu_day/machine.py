"""The GPU of the day, or one that is none for a dry run; what its machine is; the kernels' executor on it."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgead.export.kernels.gpu import Gpu
from edgead.runtime.backends.gpu_driver import cuda_driver
from edgead.runtime.machine import describe_machine

ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = ("torch", "numpy", "onnx", "onnxruntime", "timm", "cuda-bindings", "cupy-cuda13x", "tensorrt-rtx-cu13-libs")


@contextmanager
def open_gpu(dry: bool, stream: int = 0) -> Iterator[Gpu]:
    """Yield the first GPU; in a dry run the fake driver of tests/cuda, whose kernels run on the host."""
    if not dry:
        with Gpu(stream) as gpu:
            yield gpu
        return
    import pytest

    from tests.cuda import fake_driver, toolchain

    with pytest.MonkeyPatch.context() as patch:
        fake_driver.install(patch, toolchain.host_library())
        with Gpu() as gpu:
            yield gpu


class GpuExecutor:
    """Runs one kernel of numpy arrays on a GPU and brings all of them back: the executor of tests/cuda, on a device."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu

    def launch(self, kernel: str, grid: tuple[int, int, int], block: int, shared_bytes: int, *arguments: Any) -> None:
        """Run a kernel to its end; arguments as of `tests.cuda.executor.Executor`."""
        # One array may be given twice, as its rows and as their FP32 code.
        arrays = [one for one in arguments if isinstance(one, np.ndarray)]
        hosts = {one.ctypes.data: one for one in sorted(arrays, key=lambda one: one.nbytes)}
        devices = {address: self._gpu.upload(host) for address, host in hosts.items()}
        uploaded = [devices[one.ctypes.data] if isinstance(one, np.ndarray) else one for one in arguments]
        self._gpu.launch(kernel, grid, block, shared_bytes, *uploaded)
        self._gpu.synchronize()
        for address, host in hosts.items():
            if host.flags.writeable:
                found: NDArray[Any] = devices[address].numpy()
                host[...] = found


def describe(dry: bool) -> dict[str, Any]:
    """Return what every result states: device, driver, processor and the versions that matter."""
    driver = cuda_driver()
    devices = [f"{one.name} ({one.compute_capability})" for one in driver.devices]
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "dry_run": dry,
        "devices": ["a GPU that is none"] if dry else devices,
        "cuda": driver.release,
        "nvidia_smi": ""
        if dry
        else _said("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv"),
        "nvcc": _said("nvcc", "--version").rpartition("\n")[2],
        "machine": describe_machine(),
        "python": platform.python_version(),
        "versions": versions,
    }


def _said(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()
