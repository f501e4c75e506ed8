"""Launches kernels of a PTX file in the interpreter, by the names of kernels.h."""

from __future__ import annotations

import itertools
import subprocess
from pathlib import Path

import numpy as np

from tests.cuda.executor import Argument, Grid, KernelError
from tests.cuda.ptx.arithmetic import TYPES
from tests.cuda.ptx.machine import Block
from tests.cuda.ptx.memory import GlobalMemory
from tests.cuda.ptx.parser import Kernel, PtxError, parse


class PtxExecutor:
    """Executes what nvcc emitted.

    Args:
        path: PTX of all kernels.
    """

    def __init__(self, path: Path) -> None:
        kernels = parse(path.read_text())
        names = subprocess.run(["c++filt", *kernels], capture_output=True, text=True, check=True).stdout.splitlines()
        self._kernels: dict[str, Kernel] = {
            _plain(name): kernel for name, kernel in zip(names, kernels.values(), strict=True)
        }

    def launch(self, kernel: str, grid: Grid, block: int, shared_bytes: int, *arguments: Argument) -> None:
        chosen = self._kernels[kernel]
        # One array may be given twice; it is one piece of memory then.
        arrays = {id(argument): argument for argument in arguments if isinstance(argument, np.ndarray)}
        memory = GlobalMemory(list(arrays.values()))
        addresses = dict(zip(arrays, memory.addresses(), strict=True))
        values = {
            name: np.array(addresses.get(id(argument), 0 if argument is None else argument), TYPES[kind])[()]
            for (name, kind), argument in zip(chosen.parameters, arguments, strict=True)
        }
        places = itertools.product(*(range(size) for size in reversed(grid)))
        for number, (z, y, x) in enumerate(places):
            memory.block = number
            try:
                with np.errstate(all="ignore"):
                    Block(chosen, values, memory, block, ((x, y, z), grid), shared_bytes).run()
            except PtxError as error:
                raise KernelError(f"{kernel}, block ({x}, {y}, {z}): {error}") from None
        memory.copy_back()


def _plain(demangled: str) -> str:
    """``void edgead::knn_scan_mma<signed char>(...)`` to ``knn_scan_mma<int8_t>``."""
    return demangled.removeprefix("void ").partition("(")[0].replace("edgead::", "").replace("signed char", "int8_t")
