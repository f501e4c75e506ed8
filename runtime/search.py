"""Exact nearest-neighbour search on the CPU by native code, in place of one large matrix product in the graph.

A bundle whose head compares patches with a memory bank also holds its graph in two parts, images to queries and
distances to score and map; ``search.c`` (which says how) goes between them. It is compiled on the device by
``edgead build --target cpu`` and only looked up here: without it, or on a processor that lacks the instructions, the
whole graph runs as it is, with the same scores.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import platform
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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
NATIVE = "native search"
# Sums of products of bytes stay within 32 bits up to here.
MOST_CHANNELS = 2048
_ROWS = 64
_FILLING = 1 << 30


def search_files(precision: str) -> tuple[str, str, str]:
    """Return names for a precision's graph in parts: images to queries, distances to score and map, and the bank.

    The last one is JSON: ``keys``, the file in ``weights/`` that holds the constant of the graph's matrix product, and
    its ``shape``.
    """
    return f"search-queries.{precision}.onnx", f"search-score.{precision}.onnx", f"search-bank.{precision}.json"


@dataclass(frozen=True, slots=True)
class SearchParts:
    """A graph in two parts, images to queries ``(N, P, C)`` and distances ``(N, P)`` to score and map.

    ``library`` is what searches between them, see `find_library`.
    """

    queries: Path
    score: Path
    bank: Path
    library: Any

    def open_search(self, channels: int, threads: int | None) -> RowSearch:
        """Return the search in the bank; raises `BackendError` where it does not fit queries of so many channels."""
        try:
            described = json.loads(self.bank.read_text())
            file = self.bank.parent / "weights" / Path(described["keys"]).name
            keys = np.memmap(file, np.dtype("<f4"), "r", shape=tuple(described["shape"]))
            if keys.ndim != 2 or len(keys) - 1 != channels or channels > MOST_CHANNELS:
                raise ValueError(f"shape {keys.shape} for {channels} channels")
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise BackendError(f"{self.bank.name} names no fitting bank ({error}); export the bundle again") from error
        return RowSearch(self.library, keys, threads or os.cpu_count() or 1)


def find_parts(model: Path) -> SearchParts | None:
    """Return the parts that lie beside a graph file, None where there are none or nothing here can search natively.

    Raises:
        BackendError: see `find_library`.
    """
    precision = model.name.removeprefix("model.").removesuffix(".onnx")
    queries, score, bank = (model.with_name(name) for name in search_files(precision))
    if not (queries.is_file() and score.is_file() and bank.is_file()):
        return None
    library = find_library()
    return None if library is None else SearchParts(queries, score, bank, library)


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
