"""Kernels to machine code by NVRTC, the compiler that comes as a library: no nvcc, and no GPU either."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgead.export.kernels import SOURCE_FOLDER
from edgead.runtime.errors import BackendError, BackendUnavailable, ConfigError, suggest

# Kernels of these names are in these files; a template's arguments follow its name.
_HEADERS = {
    "knn_": "knn_node.cuh",
    "location_": "mahalanobis.cuh",
    "resize_": "preprocess.cuh",
    "map_": "anomaly_map.cuh",
}
# What NVRTC has not: the headers of the toolkit, or those of the packages of CUDA 12 and of CUDA 13.
_CUDA_HEADER = "cuda_fp16.h"
_PACKAGE_FOLDERS = ("cuda_runtime/include", "cu13/include", "cu12/include")


def header_of(kernel: str) -> str:
    """Return the file that a kernel is in; raises `ConfigError` for a name that no file has."""
    for prefix, header in _HEADERS.items():
        if kernel.startswith(prefix):
            return header
    raise ConfigError(f"there is no kernel '{kernel}'.{suggest(kernel, _HEADERS)}")


def cuda_headers() -> Path:
    """Return the folder with ``cuda_fp16.h``; raises `BackendUnavailable` where there is none."""
    folders = [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "include"]
    spec = find_spec("nvidia")
    for root in (spec.submodule_search_locations or []) if spec is not None else []:
        folders += [Path(root) / folder for folder in _PACKAGE_FOLDERS]
    for folder in folders:
        if (folder / _CUDA_HEADER).is_file():
            return folder
    raise BackendUnavailable(
        f"there is no {_CUDA_HEADER}; install the CUDA toolkit, or set CUDA_HOME to where it is, "
        "or run: pip install nvidia-cuda-runtime"
    )


def compile_kernel(
    nvrtc: Any, kernel: str, architecture: int, *, source: str | None = None, include: Sequence[Path] = ()
) -> tuple[bytes, bytes]:
    """Compile one kernel; about a second.

    Args:
        nvrtc: ``cuda.bindings.nvrtc``.
        kernel: name with template arguments, such as ``knn_prepare<float, __half>``.
        architecture: compute capability such as 87.
        source: text that has the kernel in the namespace ``edgead``; None means the file of this folder that does.
        include: more folders with headers.

    Returns:
        Machine code, and the kernel's name in it.

    Raises:
        ConfigError: no such kernel. BackendUnavailable: no CUDA headers. BackendError: NVRTC refuses.
    """
    text = source if source is not None else f'#include "{header_of(kernel)}"\n'
    folders = [SOURCE_FOLDER, *include, cuda_headers()]
    options = [f"--gpu-architecture=sm_{architecture}", "-std=c++17", "-default-device"]
    options += [f"-I{folder}" for folder in folders]
    program = _take(nvrtc.nvrtcCreateProgram(text.encode(), b"edgead.cu", 0, [], []), kernel)
    try:
        expression = f"edgead::{kernel}".encode()
        _take(nvrtc.nvrtcAddNameExpression(program, expression), kernel)
        encoded = [option.encode() for option in options]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(encoded), encoded)
        if int(status) != 0:
            raise BackendError(f"NVRTC refuses {kernel} for sm_{architecture}: {_log(nvrtc, program)}")
        name = _take(nvrtc.nvrtcGetLoweredName(program, expression), kernel)
        code = b" " * _take(nvrtc.nvrtcGetCUBINSize(program), kernel)
        _take(nvrtc.nvrtcGetCUBIN(program, code), kernel)
        return code, bytes(name)
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _take(answer: tuple[Any, ...], kernel: str) -> Any:
    status, *values = answer
    if int(status) != 0:
        raise BackendError(f"NVRTC fails at {kernel}: {getattr(status, 'name', status)}")
    return values[0] if values else None


def _log(nvrtc: Any, program: Any) -> str:
    status, size = nvrtc.nvrtcGetProgramLogSize(program)
    text = b" " * size
    if int(status) != 0 or int(nvrtc.nvrtcGetProgramLog(program, text)[0]) != 0:
        return "it does not say why"
    lines = [line for line in text.decode(errors="replace").replace("\0", "").splitlines() if line.strip()]
    first = next((line for line in lines if "error" in line), lines[0] if lines else "it does not say why")
    return " ".join(first.split())[:300]
