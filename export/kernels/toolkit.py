"""nvcc on this machine, and the plugin for TensorRT that it makes of the kernels."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from edgead.export.kernels import SOURCE_FOLDER
from edgead.runtime.backends.gpu_driver import cuda_driver
from edgead.runtime.errors import BackendError, BackendUnavailable, ConfigError
from edgead.runtime.files import atomic_write, reason

# Tensor cores as the kernels use them begin with Turing.
OLDEST_ARCHITECTURE = 75
_HEADER = "NvInferRuntime.h"
_HEADER_FOLDERS = ("/usr/include/aarch64-linux-gnu", "/usr/include/x86_64-linux-gnu", "/usr/include")
_TIMEOUT_S = 1800


def find_nvcc() -> Path:
    """Return nvcc of ``CUDA_HOME``, of /usr/local/cuda or of the path; raises `BackendUnavailable` without."""
    candidates = [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin" / "nvcc"]
    on_path = shutil.which("nvcc")
    if on_path is not None:
        candidates.append(Path(on_path))
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise BackendUnavailable(
        "there is no nvcc on this machine; install the CUDA toolkit (Jetson: sudo apt-get install nvidia-cuda-dev) "
        "or set CUDA_HOME to where it is"
    )


def find_tensorrt_headers(folder: Path | None = None) -> Path:
    """Return the folder with TensorRT's headers.

    Args:
        folder: where to look; None looks into ``TENSORRT_ROOT/include`` and where Debian packages put them.

    Raises:
        ConfigError: ``folder`` has none. BackendUnavailable: no folder has.
    """
    if folder is not None:
        if not (folder / _HEADER).is_file():
            raise ConfigError(f"{folder} has no {_HEADER}; give the folder of TensorRT's headers")
        return folder
    root = os.environ.get("TENSORRT_ROOT")
    for place in ([str(Path(root) / "include")] if root else []) + list(_HEADER_FOLDERS):
        if (Path(place) / _HEADER).is_file():
            return Path(place)
    raise BackendUnavailable(
        "TensorRT's headers are not on this machine; run: sudo apt-get install libnvinfer-headers-dev, "
        "or give their folder with --tensorrt-include"
    )


def check_architectures(asked: Sequence[str]) -> list[int]:
    """Return compute capabilities such as ``8.7`` as numbers such as 87; none means that of this machine's GPU.

    Raises:
        ConfigError: not a compute capability, or older than 7.5; or none asked for and no GPU here.
    """
    if not asked:
        driver = cuda_driver()
        if driver.problem is not None:
            raise ConfigError(f"say for which GPU with --compute-capability, for example 8.7 (Orin): {driver.problem}")
        asked = [driver.devices[0].compute_capability]
    found = []
    for text in asked:
        match = re.fullmatch(r"(\d{1,2})\.(\d)", text)
        if match is None:
            raise ConfigError(f"'{text}' is no compute capability; it looks like 8.7 (Orin) or 8.9 (RTX 4090)")
        number = int(match[1]) * 10 + int(match[2])
        if number < OLDEST_ARCHITECTURE:
            raise ConfigError(f"the kernels need compute capability 7.5 or newer, not {text}")
        found.append(number)
    return list(dict.fromkeys(found))


def build_plugin(
    out: Path, *, compute_capabilities: Sequence[str] = (), tensorrt_include: Path | None = None
) -> list[int]:
    """Compile ``libedgead_plugin.so``, which gives TensorRT the two scoring nodes as fused kernels.

    It holds machine code for each GPU asked for, and PTX of the newest of them for GPUs that come later. It is bound to
    the major version of the TensorRT whose headers it was built with.

    Args:
        out: the library to write; it appears whole or not at all.
        compute_capabilities: such as ``8.7``; none means that of this machine's GPU.
        tensorrt_include: see `find_tensorrt_headers`.

    Returns:
        What it was built for, such as ``[87]``.

    Raises:
        ConfigError: a wrong argument. BackendUnavailable: no nvcc or no headers. BackendError: the compiler refuses.
    """
    architectures = check_architectures(compute_capabilities)
    nvcc, include = find_nvcc(), find_tensorrt_headers(tensorrt_include)
    newest = max(architectures)
    codes = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in architectures]
    codes.append(f"-gencode=arch=compute_{newest},code=compute_{newest}")
    flags = ["-std=c++17", "-O3", "-shared", "-cudart=static", "-Xcompiler=-fPIC,-fvisibility=hidden"]
    _compile([str(nvcc), *flags, *codes, "-isystem", str(include)], SOURCE_FOLDER / "plugin" / "plugin.cu", out)
    return architectures


def _compile(command: Sequence[str], source: Path, out: Path) -> None:
    if not out.parent.is_dir():
        raise ConfigError(f"the folder of {out} does not exist; make it first")
    with tempfile.TemporaryDirectory(prefix="edgead-nvcc-") as folder:
        made = Path(folder) / out.name
        try:
            done = subprocess.run(
                [*command, "-o", str(made), str(source)],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise BackendError(f"nvcc did not end after {_TIMEOUT_S} s; try one --compute-capability only") from error
        except OSError as error:
            raise BackendError(f"{command[0]} cannot be run: {reason(error)}; set CUDA_HOME") from error
        if done.returncode != 0 or not made.is_file():
            said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
            first = next((line for line in said if "error" in line or "fatal" in line), said[0] if said else "no word")
            raise BackendError(f"nvcc refuses {source.name}: {' '.join(first.split())[:300]}")
        with atomic_write(out, BackendError) as stream:
            stream.write(made.read_bytes())
