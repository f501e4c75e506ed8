"""Which element of a matrix lies where in a fragment: what both executors assume, held against NVIDIA's headers."""

from __future__ import annotations

import subprocess

from tests.cuda import toolchain, wheels


def test_fragments_lie_as_in_cute() -> None:
    program = toolchain.host_program("layouts.cpp", wheels.cute())
    done = subprocess.run([program], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout == "compared\n"
