"""The two means of running kernels without a GPU look alike from outside: arrays in, arrays changed in place."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

Argument = NDArray[np.generic] | int | float | None
Grid = tuple[int, int, int]


class KernelError(RuntimeError):
    """What an executor found wrong with a kernel: a place and a reason."""


class Executor(Protocol):
    def launch(self, kernel: str, grid: Grid, block: int, shared_bytes: int, *arguments: Argument) -> None:
        """Run a kernel to its end.

        Args:
            kernel: name with template arguments, as in kernels.h.
            grid: blocks in x, y and z.
            block: threads a block.
            arguments: C-contiguous arrays (pointers to their data), None (a null pointer), int32 or float32 values.

        Raises:
            KernelError: out of bounds, a race, a deadlock, ...; what is seen depends on the executor.
        """
        ...


class HostExecutor:
    """Kernels compiled by g++, every CUDA thread a fiber.

    Args:
        library: from `toolchain.host_library`.
        order: whose turn it is: ``forward``, ``reverse`` or ``random:SEED``.
    """

    def __init__(self, library: Path, order: str = "forward") -> None:
        self.library = ctypes.CDLL(str(library))
        self.library.last_error.restype = ctypes.c_char_p
        self.library.knn_candidate_bytes.restype = ctypes.c_size_t
        self.order = order

    def launch(self, kernel: str, grid: Grid, block: int, shared_bytes: int, *arguments: Argument) -> None:
        self.library.set_order(self.order.encode())
        values = [_c_value(argument) for argument in arguments]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        dimensions = ctypes.c_uint * 3
        self.check(
            self.library.launch_kernel(
                kernel.encode(), dimensions(*grid), dimensions(block, 1, 1), ctypes.c_size_t(shared_bytes), pointers
            )
        )

    def check(self, result: int) -> None:
        """Raise what the library says of a result that is not 0."""
        if result != 0:
            raise KernelError(self.library.last_error().decode())


class NumpyDevice:
    """What the launchers of `edgead.export.kernels` take for a device, on an executor: its arrays are numpy's."""

    multiprocessors = 3

    def __init__(self, executor: Executor) -> None:
        self.launch = executor.launch

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        made = np.empty(shape, dtype)
        # NaN, -1 or 255: nobody takes it for a result.
        made.view(np.uint8)[...] = 0xFF
        return made


def _c_value(argument: Argument) -> ctypes._SimpleCData:  # type: ignore[type-arg]
    if argument is None:
        return ctypes.c_void_p(None)
    if isinstance(argument, np.ndarray):
        if not argument.flags.c_contiguous:
            raise ValueError("an array for a kernel must be contiguous")
        return ctypes.c_void_p(argument.ctypes.data)
    return ctypes.c_float(argument) if isinstance(argument, float) else ctypes.c_int(argument)
