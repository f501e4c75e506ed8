"""The kernels in the order in which they are launched: nearest neighbours, Mahalanobis distances, resize, maps.

Functions take and return arrays of the device; they copy nothing and wait for nothing. Sizes of blocks and of shared
memory are those of the ``*.cuh`` files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from edgead.export.kernels.gpu import Device
from edgead.runtime.errors import ConfigError

MAX_NEIGHBOURS, MAX_LOCATION_CHANNELS = 16, 1024

Precision = Literal["fp32", "fp16", "int8"]
_CPP = {np.dtype(np.float32): "float", np.dtype(np.float16): "__half"}
_KEEP = 4


@dataclass(frozen=True, slots=True)
class _Code:
    """What a scan reads: C++ name, numpy type, kernel; queries and rows of a tile, lists a query, shared bytes."""

    name: str
    dtype: Any
    scan: str
    queries: int
    rows: int
    lists: int
    shared_bytes: int

    def pitch(self, channels: int) -> int:
        size = int(np.dtype(self.dtype).itemsize)
        return _ceil(channels * size, 64) * 64 // size


_CODES: dict[str, _Code] = {
    "fp32": _Code("float", np.float32, "knn_scan_simt", 64, 64, 16, 2 * 16 * 68 * 4),
    "fp16": _Code("__half", np.float16, "knn_scan_mma<__half>", 128, 64, 8, 2 * (128 + 64) * 80),
    "int8": _Code("int8_t", np.int8, "knn_scan_mma<int8_t>", 128, 64, 8, 2 * (128 + 64) * 80),
}


@dataclass(frozen=True, slots=True)
class _Rows:
    count: int
    centred: Any
    coded: Any
    stats: Any
    error: Any


class MemoryBank:
    """A memory bank on the device, prepared once for any number of searches.

    Args:
        device: where the rows are.
        rows: ``(M, C)`` float32 or float16.
        center: ``(C,)`` float32 that is subtracted from rows and queries first, None for nothing. Distances do not feel
            it; the scan is the more certain the nearer the rows are to zero.
        precision: of the scan. Results are those of FP32 in each of them; see docs/kernels.md.

    Raises:
        ConfigError: wrong shape or type.
    """

    def __init__(self, device: Device, rows: Any, center: Any = None, precision: Precision = "fp16") -> None:
        if precision not in _CODES:
            raise ConfigError(f"a scan is in {', '.join(_CODES)}, not '{precision}'")
        self._device, self._center, self._code = device, center, _CODES[precision]
        count, self.channels = _shape(rows, 2, "a memory bank")
        if center is not None and tuple(center.shape) != (self.channels,):
            raise ConfigError(f"the centre of {self.channels} channels has not shape {tuple(center.shape)}")
        self._rows = self._prepare(rows, count)
        self._bound = device.empty((2,), np.float32)
        device.launch("knn_bank_bound", (1, 1, 1), 256, 64, self._rows.stats, self._rows.error, count, self._bound)

    def __len__(self) -> int:
        return self._rows.count

    def search(self, queries: Any, k: int = 1) -> tuple[Any, Any]:
        """Return Euclidean distances ``(Q, k)`` float32 and rows ``(Q, k)`` int64, nearest first, ties by row.

        Args:
            queries: ``(Q, C)`` float32 or float16; NaN and -1 come out for a query that is not finite.
            k: 1 to 16, and no more than there are rows.
        """
        count, channels = _shape(queries, 2, "queries")
        if channels != self.channels:
            raise ConfigError(f"queries of {channels} channels do not fit a bank of {self.channels}")
        if not 1 <= k <= min(MAX_NEIGHBOURS, len(self)):
            raise ConfigError(f"k must be 1 to {min(MAX_NEIGHBOURS, len(self))}, got {k}")
        device, code, bank = self._device, self._code, self._rows
        prepared = self._prepare(queries, count)
        splits = _splits(code, count, len(self), k, device.multiprocessors)
        lists = splits * code.lists
        candidates = device.empty((count, lists, _KEEP), np.uint64)
        # The FP32 kernel counts columns, the others stages of 64 bytes.
        pitch = code.pitch(channels)
        stride = pitch if code.dtype is np.float32 else pitch * np.dtype(code.dtype).itemsize // 64
        device.launch(
            code.scan, (_ceil(count, code.queries), splits, 1), 256, code.shared_bytes,
            prepared.coded, prepared.stats, count, bank.coded, bank.stats, len(self), stride, candidates,
        )  # fmt: skip
        best, certain = device.empty((count, k), np.uint64), device.empty((count,), np.int32)
        sums = 0 if code.dtype is np.int8 else channels
        device.launch(
            "knn_rerank", (_ceil(count, 4), 1, 1), 128, 0,
            prepared.centred, prepared.stats, prepared.error, count, bank.centred, self._bound, channels, sums,
            candidates, lists, k, best, certain,
        )  # fmt: skip
        exact = (prepared.centred, bank.centred, len(self), channels, k, certain, best)
        device.launch("knn_exhaust", (count, 1, 1), 256, 8 * MAX_NEIGHBOURS * 8, *exact)
        distance, index = device.empty((count, k), np.float32), device.empty((count, k), np.int64)
        device.launch("knn_unpack", (_ceil(count * k, 256), 1, 1), 256, 0, best, count * k, distance, index)
        return distance, index

    def _prepare(self, rows: Any, count: int) -> _Rows:
        device, code = self._device, self._code
        source = _cpp(rows, "rows")
        centred = device.empty((count, _CODES["fp32"].pitch(self.channels)), np.float32)
        coded = centred if code.dtype is np.float32 else device.empty((count, code.pitch(self.channels)), code.dtype)
        made = _Rows(count, centred, coded, device.empty((count, 2), np.float32), device.empty((count,), np.float32))
        outputs = (made.centred, made.coded, made.stats, made.error)
        arguments = (rows, self._center, count, self.channels, *outputs)
        device.launch(f"knn_prepare<{source}, {code.name}>", (_ceil(count, 4), 1, 1), 128, 0, *arguments)
        return made


def mahalanobis_scores(device: Device, rows: Any, mean: Any, factors: Any, precision: Any = None) -> Any:
    """Return the distances ``(N, P)`` float32 of each location's rows to the Gaussian of that location.

    Args:
        device: where the arrays are.
        rows: ``(N, P, d)`` float32.
        mean: ``(P, d)`` float32.
        factors: ``(P, r, d)`` float32 or float16, the whitening W; or ``(P, d (d + 1) / 2)``, the rows of a lower
            triangular W one after the other, which is half as much to read.
        precision: ``(P,)`` float32 in the low-rank form, ``|x|^2 precision - |V x|^2`` with factors V.

    Raises:
        ConfigError: shapes that do not fit, or more than 1024 channels.
    """
    frames, locations, channels = _shape(rows, 3, "rows")
    triangular = len(factors.shape) == 2
    rank = channels if triangular else int(factors.shape[1])
    wanted = (locations, channels * (channels + 1) // 2) if triangular else (locations, rank, channels)
    if tuple(mean.shape) != (locations, channels) or tuple(factors.shape) != wanted:
        raise ConfigError(f"mean {tuple(mean.shape)} or factors {tuple(factors.shape)} do not fit rows {rows.shape}")
    if channels > MAX_LOCATION_CHANNELS:
        raise ConfigError(f"{channels} channels are more than the {MAX_LOCATION_CHANNELS} that the kernel takes")
    if triangular and precision is not None:
        raise ConfigError("a triangular whitening has no precision beside it")
    width = _ceil(channels, 32) * 32
    columns = min(32, (32 << 10) // (4 * width)) // 8 * 8
    squared = device.empty((locations, frames, 1), np.float32)
    kind = f"location_distances<{_cpp(factors, 'factors')}, {'true' if triangular else 'false'}>"
    device.launch(
        kind, (locations, 1, 1), 256, 4 * (32 * 33 + columns * width),
        rows, mean, factors, precision, frames, locations, 1, channels, rank, 1, squared,
    )  # fmt: skip
    scores = device.empty((frames, locations), np.float32)
    plain = (None, 1, 0, 0.0, 0.0, 0.0)  # no distance to centroids beside it
    grid = (_ceil(frames * locations, 256), 1, 1)
    device.launch("location_scores", grid, 256, 0, squared, frames, locations, 1, 1, *plain, scores)
    return scores


def _splits(code: _Code, queries: int, rows: int, neighbours: int, multiprocessors: int) -> int:
    """How many blocks share the bank for one tile of queries; the rule is `Search::splits` of knn.cuh."""
    tiles = _ceil(queries, code.queries)
    wanted = _ceil(2 * multiprocessors, tiles)
    if neighbours > 1:
        wanted = max(wanted, neighbours)
    return min(wanted, _ceil(rows, code.rows))


def _shape(array: Any, axes: int, what: str) -> tuple[int, ...]:
    shape = tuple(int(size) for size in array.shape)
    if len(shape) != axes or math.prod(shape) == 0:
        raise ConfigError(f"{what} must have {axes} axes, none of them empty; got {shape}")
    return shape


def _cpp(array: Any, what: str) -> str:
    # torch's types print as torch.float16, numpy's as float16.
    name = str(array.dtype).rpartition(".")[2]
    found = _CPP.get(np.dtype(name)) if name in ("float32", "float16") else None
    if found is None:
        raise ConfigError(f"{what} must be float32 or float16, got {array.dtype}")
    return found


def _ceil(count: int, step: int) -> int:
    return -(-count // step)
