"""Exact nearest-neighbour search on the CPU by native code, in place of one large matrix product in the graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgead.runtime.errors import BackendError
from edgead.runtime.native import Workers, aligned

# Sums of products of bytes stay within 32 bits up to here.
MOST_CHANNELS = 2048
LACKING = "AVX-512 VNNI, which the native search needs"
_ROWS = 64
_FILLING = 1 << 30


class RowSearch:
    """Distances to the nearest row of a bank.

    Args:
        library: from `edgead.runtime.native.find_library`.
        keys: ``(C + 1, M)`` float32 as the graph's matrix product holds them: ``-2 m`` and ``|m|^2`` of each row m.
        threads: CPU threads.
    """

    def __init__(self, library: Any, keys: NDArray[np.float32], threads: int) -> None:
        self._library = library
        rows = np.ascontiguousarray(keys[:-1].T * np.float32(-0.5))
        self._rows = rows
        count, channels = rows.shape
        quads, groups = -(-channels // 4), -(-count // _ROWS)
        self._step = float(np.abs(rows).max()) / 127.0 or 1.0
        rounded = np.clip(np.rint(rows / np.float32(self._step)), -127, 127).astype(np.int32)
        rest = rows.astype(np.float64) - self._step * rounded
        # Rounded up: the library counts on no row being farther from its rounded form.
        self._error = float(np.nextafter(np.float32(np.sqrt((rest * rest).sum(1).max()) * 1.00001), np.float32(np.inf)))
        packed = np.zeros((groups * _ROWS, quads * 4), np.uint8)
        packed[:count, :channels] = rounded + 128
        # Vectors of 16 rows, four channels of each side by side: what one instruction multiplies and adds.
        vectors = packed.reshape(groups * 4, 16, quads, 4).transpose(0, 2, 1, 3)
        self._packed = aligned(vectors.shape, np.uint8)
        self._packed[...] = vectors
        self._norms = aligned([groups * _ROWS], np.int32)
        self._norms[:count] = (rounded * rounded).sum(1)
        self._norms[count:] = _FILLING
        self._groups = groups
        self._workers = Workers(threads, "edgead-search")

    @staticmethod
    def supported(library: Any) -> bool:
        """Whether this processor can."""
        return bool(library.edgead_search_supported())

    def distances(self, queries: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the Euclidean distance ``(...)`` of each query ``(..., C)`` to its nearest row, NaN for one with NaN.

        Exact to the rounding of float32 sums; raises `BackendError` where memory is short.
        """
        rows = np.ascontiguousarray(queries, np.float32).reshape(-1, queries.shape[-1])
        found = np.empty(len(rows), np.float32)

        def search(start: int, end: int) -> None:
            failed = self._library.edgead_search(
                rows[start:end].ctypes.data,
                end - start,
                rows.shape[1],
                self._packed.ctypes.data,
                self._norms.ctypes.data,
                self._groups,
                self._rows.ctypes.data,
                self._step,
                self._error,
                found[start:end].ctypes.data,
            )
            if failed:
                raise BackendError("the search in the memory bank ran out of memory")

        self._workers.share(len(rows), search)
        return found.reshape(queries.shape[:-1])

    def describe(self) -> str:
        """Return what it is, in a few words."""
        return "native search"

    def close(self) -> None:
        """End the threads."""
        self._workers.close()


def open_search(library: Any, constants: Mapping[str, NDArray[Any]], channels: int, threads: int) -> RowSearch:
    """Return the search among the constant ``keys``; raises `ValueError` where they do not fit so many channels."""
    keys = constants["keys"]
    if keys.dtype != np.float32 or keys.ndim != 2 or len(keys) - 1 != channels or channels > MOST_CHANNELS:
        raise ValueError(f"keys {keys.shape} {keys.dtype} for {channels} channels")
    return RowSearch(library, keys, threads)
