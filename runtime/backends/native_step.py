"""The part of a graph that is computed natively: opened for what its description says, and run between the others."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgead.runtime.backends.common import OUTPUTS, first_line
from edgead.runtime.backends.native import knn, mahalanobis
from edgead.runtime.backends.native.library import DISTANCES, NativeCode, NativeParts, find_parts
from edgead.runtime.errors import BackendError

Feeds = Mapping[str, NDArray[np.float32]]


def parts_for(model: Path, outputs: Sequence[str]) -> NativeParts | None:
    """Return the parts of a scoring graph where this device has native code for what lies between them, else None.

    Raises:
        BackendError: the library in the cache was altered, or what describes the parts is no description.
    """
    parts = find_parts(model) if set(outputs) <= set(OUTPUTS) else None
    return None if parts is None or lacking(parts.library, parts.description.kind) is not None else parts


def lacking(library: Any, kind: str) -> str | None:
    """Return what this processor lacks for native code of a kind, None where it can run it."""
    return None if kind != "search" or knn.supported(library) else knn.LACKING


def describe_native(library: Any) -> list[str]:
    """Return what a library computes natively on this processor, such as ``search (AVX2)``."""
    search = [f"search ({knn.find_set(library).name})"] if knn.supported(library) else []
    return [*search, f"Gaussians ({mahalanobis.vector_name(mahalanobis.most_lanes(library))})"]


class NativeStep:
    """The end of a graph that is there in two parts: from the first one's outputs to the graph's.

    Args:
        parts: from `parts_for`.
        shape: of the queries, without the batch axis.
        threads: as the backend's.
        finish: runs the second part, its inputs by name.
    """

    def __init__(
        self, parts: NativeParts, shape: Sequence[Any], threads: int | None, finish: Callable[[Feeds], Sequence[Any]]
    ) -> None:
        self._carried = parts.description.carried
        self._channels_first = parts.description.channels_first
        self._finish = finish
        self._code = _open(parts, shape, threads or os.cpu_count() or 1)

    def __call__(self, found: Sequence[NDArray[np.float32]]) -> Sequence[Any]:
        """Return the graph's outputs for those of the first part; raises `BackendError` where that fails."""
        queries, *carried = found
        distances = self._code.distances(queries.transpose(0, 2, 1) if self._channels_first else queries)
        feeds = {DISTANCES: distances, **dict(zip(self._carried, carried, strict=True))}
        try:
            return self._finish(feeds)
        except Exception as error:
            raise BackendError(f"the graph after {self.describe()} failed: {first_line(error)}") from error

    def describe(self) -> str:
        """Return what is native, in a few words."""
        return self._code.describe()

    def close(self) -> None:
        """End its threads."""
        self._code.close()


def _open(parts: NativeParts, shape: Sequence[Any], threads: int) -> NativeCode:
    description, constants, library = parts.description, parts.constants(), parts.library
    try:
        first, second = map(int, shape)
        locations, channels = (second, first) if description.channels_first else (first, second)
        if description.kind == "search":
            return knn.open_search(library, constants, channels, threads)
        return mahalanobis.open_gaussians(
            library,
            constants,
            (locations, channels),
            threads,
            triangular=description.triangular,
            bits=description.bits,
        )
    except (KeyError, ValueError, TypeError) as error:
        raise parts.misfit(str(error)) from error
