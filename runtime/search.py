"""Exact nearest-neighbour search on the CPU by native code, in place of one large matrix product in the graph.

A bundle whose head compares patches with a memory bank also holds its graph in two parts, images to queries and
distances to score and map; ``search.c`` (which says how) goes between them. It is compiled on the device by
``edgead build --target cpu`` and only looked up here: without it, or on a processor that lacks the instructions, the
whole graph runs as it is, with the same scores.
"""

from __future__ import annotations

import ctypes
import hashlib
import platform
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgead.runtime.engine_cache import EngineCache
from edgead.runtime.engine_key import EngineKey
from edgead.runtime.errors import BackendError

SOURCE = Path(__file__).with_name("search.c")
# Of the first part: where its bank lies, as JSON.
METADATA = "edgead.search"
# Sums of products of bytes stay within 32 bits up to here.
MOST_CHANNELS = 2048
_ROWS = 64
_FILLING = 1 << 30


def search_files(precision: str) -> tuple[str, str]:
    """Return the names of the two parts of a precision's graph: images to queries, distances to score and map."""
    return f"search-queries.{precision}.onnx", f"search-score.{precision}.onnx"


def search_key() -> EngineKey:
    """Return what the compiled library is found by: its source and the processor's architecture."""
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()
    return EngineKey(digest, "cpu", "1", platform.machine() or "unknown", "fp32")


def find_library(engines: EngineCache | None = None) -> Any | None:
    """Return the compiled library, None where there is none or this processor lacks its instructions.

    Raises:
        BackendError: the file in the cache was altered, or belongs to another user; it is not loaded.
    """
    engines = engines or EngineCache()
    stored = engines.find(search_key())
    if stored is None:
        return None
    engines.read(stored)
    library = load_library(stored.path)
    return library if library.edgead_search_supported() else None


@cache
def load_library(path: Path) -> Any:
    """Load a compiled ``search.c``; raises `BackendError` where the system refuses it."""
    try:
        library = ctypes.CDLL(str(path))
        pointer, number, real = ctypes.c_void_p, ctypes.c_int, ctypes.c_float
        library.edgead_search.argtypes = [
            *(pointer, number, number),
            *(pointer, pointer, number),
            *(pointer, real, real, pointer),
        ]
        library.edgead_search.restype = number
        library.edgead_search_supported.restype = number
    except (OSError, AttributeError) as error:
        raise BackendError(f"cannot load {path}: {error}; run: edgead build BUNDLE --target cpu --rebuild") from error
    return library


class RowSearch:
    """Distances to the nearest row of a bank.

    Args:
        library: from `find_library`.
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
        self._packed = _aligned(packed.reshape(groups * 4, 16, quads, 4).transpose(0, 2, 1, 3))
        norms = np.full(groups * _ROWS, _FILLING, np.int32)
        norms[:count] = (rounded * rounded).sum(1)
        self._norms = _aligned(norms)
        self._groups = groups
        self._pool = ThreadPoolExecutor(threads, "edgead-search") if threads > 1 else None
        self._threads = threads

    def distances(self, queries: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the Euclidean distance ``(n,)`` of each query ``(n, C)`` to its nearest row, NaN for one with NaN.

        Exact to the rounding of float32 sums; raises `BackendError` where memory is short.
        """
        queries = np.ascontiguousarray(queries, np.float32)
        found = np.empty(len(queries), np.float32)
        bounds = np.linspace(0, len(queries), self._threads + 1).astype(int).tolist()
        parts = list(pairwise(bounds))
        if self._pool is None:
            self._search(queries, found, parts[0])
        else:
            waiting = [self._pool.submit(self._search, queries, found, part) for part in parts[1:]]
            self._search(queries, found, parts[0])
            for one in waiting:
                one.result()
        return found

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()

    def _search(self, queries: NDArray[np.float32], found: NDArray[np.float32], part: Sequence[int]) -> None:
        start, end = part
        if start == end:
            return
        failed = self._library.edgead_search(
            queries[start:end].ctypes.data,
            end - start,
            queries.shape[1],
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


def _aligned(values: NDArray[Any]) -> NDArray[Any]:
    """Return a contiguous copy that starts at a cache line: a vector across two of them costs two reads."""
    buffer = np.empty(values.nbytes + 64, np.uint8)
    start = -buffer.ctypes.data % 64
    copy = buffer[start : start + values.nbytes].view(values.dtype).reshape(values.shape)
    copy[...] = values
    return copy
