"""Files that only packages on PyPI carry, fetched on first use and kept: NVIDIA's headers and compilers, for tests."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.cache import packages


def site(name: str, *requirements: str) -> Path:
    """Return a folder with the unpacked packages; skips the test where they cannot be had."""
    try:
        return packages(name, requirements)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired, OSError) as error:
        said = str(getattr(error, "stderr", None) or error).strip().splitlines()
        pytest.skip(f"cannot fetch {', '.join(requirements)} from PyPI: {said[-1] if said else 'no reason given'}")


def cute() -> Path:
    """Return the folder of NVIDIA's CuTe headers."""
    return site("cutlass-4.2", "nvidia-cutlass==4.2.0.0") / "cutlass_library" / "source" / "include"


def tensorrt_headers() -> Path:
    """Return the folder of TensorRT's headers, version 10.14, which this package brings along."""
    return site("kernel_lens-2.0", "kernel-lens==2.0.1") / "kernel_lens" / "include" / "tensorrt"


def nvrtc_12() -> tuple[Path, Path]:
    """Return the folders of NVRTC 12.6's libraries and of CUDA 12.6's headers."""
    root = site("nvrtc-12.6", "nvidia-cuda-nvrtc-cu12==12.6.85", "nvidia-cuda-runtime-cu12==12.6.77") / "nvidia"
    return root / "cuda_nvrtc" / "lib", root / "cuda_runtime" / "include"
