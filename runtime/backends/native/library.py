"""Native code for the part of a graph on which a CPU spends most: which part, where it is found, how it is called.

A bundle whose head compares patches with a memory bank, or with the Gaussian of each location, also holds its graph in
two parts, images to queries and distances to score and map; ``knn.c`` or ``mahalanobis.c`` (which say how) goes
between them. A wheel for this kind of machine brings the library; elsewhere ``edgead build --target cpu`` compiles it.
Without it the whole graph runs as it is, with the same scores.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgead.runtime.backends.engine_cache import EngineCache
from edgead.runtime.backends.engine_key import EngineKey
from edgead.runtime.backends.native.sources import FOLDER, packaged_name, sources_digest
from edgead.runtime.bundle.layout import native_files
from edgead.runtime.errors import BackendError

if TYPE_CHECKING:
    from edgead.runtime.bundle.native_description import Description

QUERIES, DISTANCES = "queries", "distances"


class NativeCode(Protocol):
    """Computes distances natively; the kinds are ``knn`` and ``mahalanobis``."""

    def distances(self, queries: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map ``queries (N, P, C)`` to ``(N, P)``, NaN for a query with NaN."""

    def describe(self) -> str:
        """Return what it is, in a few words."""

    def close(self) -> None:
        """End its threads."""


@dataclass(frozen=True, slots=True)
class NativeParts:
    """A graph in two parts, images to queries and distances to score and map, and what goes between them.

    ``library`` is from `find_library`.
    """

    queries: Path
    score: Path
    description: Description
    library: Any

    @property
    def outputs(self) -> tuple[str, ...]:
        """Of the first part."""
        return (QUERIES, *self.description.carried)

    def constants(self) -> dict[str, NDArray[Any]]:
        """Return the arrays, memory-mapped; raises `BackendError` where a file is missing or too small."""
        try:
            folder = self.queries.parent
            return {
                name: np.memmap(folder / one.file, one.dtype, "r", shape=tuple(one.shape))
                for name, one in self.description.constants.items()
            }
        except (ValueError, OSError) as error:
            raise self.misfit(str(error)) from error

    def misfit(self, why: str) -> BackendError:
        """Return the error for constants that do not fit the graph."""
        return BackendError(
            f"{self.queries.name} names no fitting constants for native {self.description.kind} ({why}); "
            "export the bundle again"
        )


def find_parts(model: Path) -> NativeParts | None:
    """Return the parts that lie beside a graph file, None where there are none or no library is built.

    Raises:
        BackendError: their description is not one, or see `find_library`.
    """
    # Its parser comes with a package that a backend's file must load without.
    from edgead.runtime.bundle.native_description import parse_description

    queries, score, described = (model.with_name(name) for name in native_files(model.name))
    if not (queries.is_file() and score.is_file() and described.is_file()):
        return None
    library = find_library()
    if library is None:
        return None
    return NativeParts(queries, score, parse_description(described.read_bytes(), described.name), library)


def native_key() -> EngineKey:
    """Return what a library compiled here is found by: its sources and the processor's architecture."""
    return EngineKey(sources_digest(), "cpu", "1", platform.machine() or "unknown", "fp32")


def packaged_library() -> Path | None:
    """Return the library that came with the package, None where it brought none."""
    file = FOLDER / packaged_name()
    return file if file.is_file() else None


def find_library(engines: EngineCache | None = None) -> Any | None:
    """Return the compiled library, None where there is none: the packaged one, else the one in the cache.

    Args:
        engines: the cache to look into, and in it alone; None: what this process uses.

    Raises:
        BackendError: the file in the cache was altered, or belongs to another user, and is not loaded; or the system
            refuses the library.
    """
    packaged = packaged_library() if engines is None else None
    if packaged is not None:
        return load_library(packaged)
    engines = engines or EngineCache()
    stored = engines.find(native_key())
    if stored is None:
        return None
    engines.read(stored)
    return load_library(stored.path)


@cache
def load_library(path: Path) -> Any:
    """Load the compiled sources, once; raises `BackendError` where the system refuses it."""
    try:
        library = ctypes.CDLL(str(path))
        pointer, number = ctypes.c_void_p, ctypes.c_int
        library.edgead_knn.argtypes = [number, pointer, pointer, number, pointer]
        library.edgead_knn_set.argtypes = library.edgead_knn_supported.argtypes = [number]
        library.edgead_gaussians.argtypes = [pointer, pointer, number, number, pointer]
        library.edgead_gaussians_supported.argtypes = [number]
        for name in ("knn", "knn_supported", "gaussians", "gaussians_supported"):
            getattr(library, f"edgead_{name}").restype = number
        library.edgead_knn_set.restype = pointer
    except (OSError, AttributeError) as error:
        fix = "install edgead again" if path.parent == FOLDER else "run: edgead build BUNDLE --target cpu --rebuild"
        raise BackendError(f"cannot load {path}: {error}; {fix}") from error
    return library


class Workers:
    """Threads that share a number of items; the calling one is one of them.

    Args:
        threads: how many; name: of the others.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads - 1, name) if threads > 1 else None

    def share(self, count: int, task: Callable[[int, int], None]) -> None:
        """Call ``task(start, end)`` for parts of ``range(count)``, and return when all are done."""
        bounds = [count * part // self._threads for part in range(self._threads + 1)]
        own, *others = [part for part in pairwise(bounds) if part[0] < part[1]] or [(0, 0)]
        waiting = [] if self._pool is None else [self._pool.submit(task, *part) for part in others]
        if own[0] < own[1]:
            task(*own)
        for one in waiting:
            one.result()

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()


def aligned(shape: Sequence[int], dtype: Any) -> NDArray[Any]:
    """Return zeros that start at a cache line: a vector across two of them costs two reads."""
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    buffer = np.empty(size + 64, np.uint8)
    start = -buffer.ctypes.data % 64
    values: NDArray[Any] = buffer[start : start + size].view(dtype).reshape(shape)
    values.fill(0)
    return values
