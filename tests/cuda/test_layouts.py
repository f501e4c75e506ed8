"""Which element of a matrix lies where in a fragment: what both executors assume, held against NVIDIA's headers."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

import pytest

from tests.cuda import toolchain


def test_fragments_lie_as_in_cute() -> None:
    found = importlib.util.find_spec("cutlass_library")
    if found is None or found.origin is None:
        pytest.skip("no CuTe headers: pip install nvidia-cutlass==4.2.0.0")
    include = Path(found.origin).parent / "source" / "include"
    program = toolchain.host_program("layouts.cpp", include)
    done = subprocess.run([program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "compared\n"
