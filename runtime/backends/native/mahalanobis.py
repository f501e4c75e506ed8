"""Distances to the Gaussian of each location on the CPU by native code, in place of a large matrix product."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgead.runtime.backends.native.library import Workers, aligned
from edgead.runtime.errors import BackendError

# Of float32 at once; the code has one form for each, and four of them everywhere.
LANES = (16, 8, 4)
_ROWS = 4  # of a factor that are read together, see mahalanobis.c
_MOST_CODE = 32767
_FOUR = {"x86_64": "SSE2", "amd64": "SSE2", "aarch64": "NEON", "arm64": "NEON"}


def vector_name(lanes: int) -> str:
    """Return what a processor calls vectors of so many lanes."""
    return {16: "AVX-512", 8: "AVX2"}.get(lanes) or _FOUR.get(platform.machine().lower(), "four lanes")


def most_lanes(library: Any) -> int:
    """Return the lanes of the widest vectors that this processor has."""
    return next(count for count in LANES if library.edgead_gaussians_supported(count))


class _Gaussians(ctypes.Structure):
    """As in mahalanobis.c."""

    _fields_ = [
        ("mean", ctypes.c_void_p),
        ("factors", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("precision", ctypes.c_void_p),
        *((name, ctypes.c_int32) for name in ("lanes", "locations", "channels", "rows", "triangular")),
    ]


class _Queries(ctypes.Structure):
    """As in mahalanobis.c."""

    _fields_ = [
        ("values", ctypes.c_void_p),
        *((name, ctypes.c_ssize_t) for name in ("image", "location", "channel")),
        ("images", ctypes.c_int32),
    ]


class LocationDistances:
    """Distances ``|W_p (x_p - m_p)|``, or ``sqrt(|x_p - m_p|^2 precision_p - |W_p (x_p - m_p)|^2)``.

    Args:
        library: from `edgead.runtime.backends.native.library.find_library`.
        mean: ``(P, C)`` float32.
        factors: ``(P, R, C)`` float32 or float16, read once and packed anew.
        precision: ``(P,)`` float32 in the low-rank form, else None.
        threads: CPU threads.
        triangular: what lies above the diagonals of the factors is zero, and is not looked at.
        bits: 32, or 16: whole numbers with a scale for each row of a factor, which rounds it by up to 2^-16 of its
            largest entry.
        lanes: one of `LANES`; None takes the most that this processor has.
    """

    # More than six parameters: each is one quantity of the distance or of its native form.
    def __init__(
        self,
        library: Any,
        mean: NDArray[np.float32],
        factors: NDArray[Any],
        precision: NDArray[np.float32] | None,
        threads: int,
        *,
        triangular: bool = False,
        bits: int = 32,
        lanes: int | None = None,
    ) -> None:
        self._library = library
        self._bits = bits
        lanes = lanes or most_lanes(library)
        locations, rows, channels = factors.shape
        self._shape = locations, channels
        self._groups = -(-locations // lanes)
        # The code reads them through the structure, which keeps nothing alive.
        self._factors, self._scales = _pack_factors(factors, lanes, triangular, bits)
        self._mean = _pack(mean, lanes)
        self._precision = None if precision is None else _pack(precision[:, None], lanes)
        self._gaussians = _Gaussians(
            mean=self._mean.ctypes.data,
            factors=self._factors.ctypes.data,
            scales=None if self._scales is None else self._scales.ctypes.data,
            precision=None if self._precision is None else self._precision.ctypes.data,
            lanes=lanes,
            locations=locations,
            channels=channels,
            rows=rows,
            triangular=triangular,
        )
        self._workers = Workers(threads, "edgead-gaussians")

    def distances(self, queries: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map features ``(N, P, C)`` to ``(N, P)``, NaN where a feature is; locations side by side are read fastest.

        Exact to the rounding of float32 sums, and of the factors; raises `BackendError` where memory is short.
        """
        if queries.shape[1:] != self._shape:
            raise BackendError(f"the network gave features {queries.shape[1:]}, its Gaussians are for {self._shape}")
        if queries.dtype != np.float32 or any(step % 4 for step in queries.strides):
            queries = np.ascontiguousarray(queries, np.float32)
        image, location, channel = (step // 4 for step in queries.strides)
        given = _Queries(queries.ctypes.data, image, location, channel, len(queries))
        found = np.empty(queries.shape[:2], np.float32)

        def score(start: int, end: int) -> None:
            if self._library.edgead_gaussians(
                ctypes.byref(self._gaussians), ctypes.byref(given), start, end, found.ctypes.data
            ):
                raise BackendError("the distances to the Gaussians ran out of memory")

        self._workers.share(self._groups, score)
        return found

    def describe(self) -> str:
        """Return what it is, in a few words."""
        factors = "" if self._bits == 32 else f", {self._bits}-bit factors"
        return f"native Gaussians ({vector_name(self._gaussians.lanes)}{factors})"

    def close(self) -> None:
        """End the threads."""
        self._workers.close()


def open_gaussians(
    library: Any,
    constants: Mapping[str, NDArray[Any]],
    shape: tuple[int, int],
    threads: int,
    *,
    triangular: bool,
    bits: int,
) -> LocationDistances:
    """Return the distances to the constants ``mean``, ``factors`` and, in the low-rank form, ``precision``.

    Raises:
        ValueError: they do not fit features of ``shape``, locations and channels.
    """
    mean, factors, precision = constants["mean"], constants["factors"], constants.get("precision")
    locations, channels = shape
    if (
        mean.shape != shape
        or factors.shape[::2] != shape
        or factors.ndim != 3
        or (precision is not None and precision.shape != (locations,))
        or (triangular and factors.shape[1] != channels)
    ):
        shapes = [one.shape for one in constants.values()]
        raise ValueError(f"shapes {', '.join(map(str, shapes))} for {locations} locations of {channels} channels")
    return LocationDistances(library, mean, factors, precision, threads, triangular=triangular, bits=bits)


def _pack(values: NDArray[np.float32], lanes: int) -> NDArray[np.float32]:
    """Return ``(P, n)`` as ``(groups, n, lanes)``, the last group filled up with zeros."""
    count, width = values.shape
    whole = np.zeros((-(-count // lanes), lanes, width), np.float32)
    whole.reshape(-1, width)[:count] = values
    packed = aligned((len(whole), width, lanes), np.float32)
    packed[...] = whole.transpose(0, 2, 1)
    return packed


def _pack_factors(
    factors: NDArray[Any], lanes: int, triangular: bool, bits: int
) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
    """Return factors and, for 16 bits, scales in the order that mahalanobis.c describes."""
    count, rows, channels = factors.shape
    groups = -(-count // lanes)
    blocks = [(row, min(row + _ROWS, channels) if triangular else channels) for row in range(0, rows, _ROWS)]
    most = sum(entries for _, entries in blocks)
    packed = aligned((groups, _ROWS * most, lanes), np.float32 if bits == 32 else np.int16)
    scales = None if bits == 32 else aligned((groups, _ROWS * len(blocks), lanes), np.float32)
    end = 0
    for row, entries in blocks:
        start, end = end, end + _ROWS * entries
        # A few rows of all locations at a time: no second copy of all the factors is ever made.
        values = np.zeros((groups * lanes, _ROWS, entries), np.float32)
        read = factors[:, row : row + _ROWS, :entries]
        values[:count, : read.shape[1]] = np.tril(read, row) if triangular else read
        place = packed[:, start:end]
        if scales is None:
            grouped = values.reshape(groups, lanes, _ROWS, entries)
            place.reshape(groups, entries, _ROWS, lanes)[...] = grouped.transpose(0, 3, 2, 1)
        else:
            scale = np.maximum(np.abs(values).max(2), np.float32(1e-30)) / np.float32(_MOST_CODE)
            scales[:, row : row + _ROWS] = scale.reshape(groups, lanes, _ROWS).transpose(0, 2, 1)
            codes = np.rint(values / scale[:, :, None]).reshape(groups, lanes, _ROWS // 2, 2, entries)
            place.reshape(groups, entries, _ROWS // 2, lanes, 2)[...] = codes.transpose(0, 4, 2, 1, 3)
    return packed, scales
