"""Nearest-neighbour search by the kernels, in the order in which knn.cuh launches them, and what it must equal."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tests.cuda.executor import Executor

Floats = NDArray[np.float32]

KEEP = 4
NO_NEIGHBOUR = np.uint64(2**64 - 1)

# As in knn_scan_simt.cuh and knn_scan_mma.cuh: threads, queries and rows a tile, lists a query, shared bytes.
_SIMT = (256, 64, 64, 16, 2 * 16 * 68 * 4)
_MMA = (256, 128, 64, 8, 2 * (128 + 64) * 80)


@dataclass(frozen=True)
class Code:
    """What a scan reads: C++ name, numpy type, kernel, geometry."""

    name: str
    dtype: type[np.generic]
    scan: str
    geometry: tuple[int, int, int, int, int]

    def pitch(self, channels: int) -> int:
        size = np.dtype(self.dtype).itemsize
        return -(-channels * size // 64) * 64 // size


FP32 = Code("float", np.float32, "knn_scan_simt", _SIMT)
FP16 = Code("__half", np.float16, "knn_scan_mma<__half>", _MMA)
INT8 = Code("int8_t", np.int8, "knn_scan_mma<int8_t>", _MMA)
CODES = {"fp32": FP32, "fp16": FP16, "int8": INT8}


@dataclass(frozen=True)
class Prepared:
    """Rows as `knn_prepare` leaves them."""

    code: Code
    channels: int
    centred: Floats
    coded: NDArray[np.generic]
    stats: Floats  # (count, 2): norm, scale
    error: Floats
    bound: Floats  # (2): largest norm and error; of a bank only

    @property
    def count(self) -> int:
        return len(self.centred)

    def decoded(self) -> NDArray[np.float64]:
        """The rows that the scan sees, without padding."""
        return self.coded[:, : self.channels].astype(np.float64) * self.stats[:, 1:].astype(np.float64)


@dataclass(frozen=True)
class Found:
    """``squared`` and ``index`` are ``(queries, k)``; NaN and -1 where there are fewer rows than k."""

    squared: Floats
    index: NDArray[np.int64]
    certain: NDArray[np.bool_]
    candidates: NDArray[np.uint64]  # (queries, lists, KEEP)
    best: NDArray[np.uint64]


def empty(code: Code, count: int, channels: int) -> Prepared:
    """Make arrays of the right sizes, filled with what would be seen if a kernel left it there."""
    centred = np.full((count, FP32.pitch(channels)), np.nan, np.float32)
    coded = centred if code is FP32 else np.full((count, code.pitch(channels)), 77, code.dtype)
    stats, error = np.full((count, 2), np.nan, np.float32), np.full(count, np.nan, np.float32)
    return Prepared(code, channels, centred, coded, stats, error, np.full(2, np.nan, np.float32))


def prepare(
    executor: Executor, rows: NDArray[np.generic], center: Floats | None, code: Code, *, bank: bool
) -> Prepared:
    """Centre and code rows ``(count, channels)``, float32 or float16; None leaves them where they are."""
    count, channels = rows.shape
    out = empty(code, count, channels)
    source = {np.dtype(np.float32): "float", np.dtype(np.float16): "__half"}[rows.dtype]
    blocks = (-(-count // 4), 1, 1)
    arrays = (out.centred, out.coded, out.stats, out.error)
    executor.launch(f"knn_prepare<{source}, {code.name}>", blocks, 128, 0, rows, center, count, channels, *arrays)
    if bank:
        executor.launch("knn_bank_bound", (1, 1, 1), 256, 64, out.stats, out.error, count, out.bound)
    return out


def prepare_keys(executor: Executor, keys: NDArray[np.generic]) -> Prepared:
    """Make a bank in FP16 codes of the keys ``(channels + 1, count)`` of the ONNX node."""
    channels, count = keys.shape[0] - 1, keys.shape[1]
    out = empty(FP16, count, channels)
    source = {np.dtype(np.float32): "float", np.dtype(np.float16): "__half"}[keys.dtype]
    arrays = (out.centred, out.coded, out.stats, out.error)
    blocks = (-(-count // 32), 1, 1)
    executor.launch(f"knn_prepare_keys<{source}, __half>", blocks, 256, 32 * 33 * 4, keys, count, channels, *arrays)
    return out


def unpack_on_device(executor: Executor, best: NDArray[np.uint64]) -> tuple[Floats, NDArray[np.int64]]:
    """Distances and rows of packed neighbours, as the ONNX node gives them."""
    distance, index = np.full(best.shape, -7, np.float32), np.full(best.shape, -7, np.int64)
    executor.launch("knn_unpack", (-(-best.size // 256), 1, 1), 256, 0, best, best.size, distance, index)
    return distance, index


def search(executor: Executor, queries: Prepared, bank: Prepared, neighbours: int = 1, splits: int = 1) -> Found:
    """Find the nearest rows: scan, exact ranking, and the exact scan of what was not certain."""
    code, channels, count = queries.code, queries.channels, queries.count
    threads, tile, _, lists, shared = code.geometry
    candidates = np.full((count, splits * lists, KEEP), 12345, np.uint64)
    stride = code.pitch(channels) if code is FP32 else code.pitch(channels) * np.dtype(code.dtype).itemsize // 64
    scanned = (queries.coded, queries.stats, count, bank.coded, bank.stats, bank.count, stride, candidates)
    executor.launch(code.scan, (-(-count // tile), splits, 1), threads, shared, *scanned)
    best, certain = np.full((count, neighbours), 12345, np.uint64), np.full(count, 7, np.int32)
    sums = 0 if code is INT8 else channels
    executor.launch(
        "knn_rerank", (-(-count // 4), 1, 1), 128, 0,
        queries.centred, queries.stats, queries.error, count, bank.centred, bank.bound, channels, sums,
        candidates, splits * lists, neighbours, best, certain,
    )  # fmt: skip
    exhaust = (queries.centred, bank.centred, bank.count, channels, neighbours, certain, best)
    executor.launch("knn_exhaust", (count, 1, 1), 256, 8 * 16 * 8, *exhaust)
    return Found(*unpack(best), certain.astype(bool), candidates, best)


def unpack(best: NDArray[np.uint64]) -> tuple[Floats, NDArray[np.int64]]:
    """Split packed neighbours into squared distance and row; NaN and -1 where there is none."""
    squared = (best >> np.uint64(32)).astype(np.uint32).view(np.float32)
    return squared, best.astype(np.uint32).view(np.int32).astype(np.int64)


def brute_force(queries: Floats, bank: Floats, neighbours: int) -> tuple[Floats, NDArray[np.int64]]:
    """FP32 brute force over centred rows in the order of additions of `warp_squared_distance`: the same bits."""
    pad = -queries.shape[1] % 32
    width = queries.shape[1] + pad
    queries, bank = (np.pad(rows, ((0, 0), (0, pad))) for rows in (queries, bank))
    squared = np.empty((len(queries), len(bank)), np.float32)
    for number, query in enumerate(queries):
        difference = query - bank
        lanes = np.zeros((len(bank), 32), np.float32)
        for start in range(0, width, 32):
            part = difference[:, start : start + 32]
            lanes += part * part
        while lanes.shape[1] > 1:
            half = lanes.shape[1] // 2
            lanes = lanes[:, :half] + lanes[:, half:]
        squared[number] = lanes[:, 0]
    order = np.argsort(squared, axis=1, kind="stable")[:, :neighbours]
    return np.take_along_axis(squared, order, axis=1), order


def features(seed: int, queries: int, rows: int, channels: int, scale: float = 1.0) -> tuple[Floats, Floats, Floats]:
    """Make queries, bank and centre: correlated rows around a mean far from zero, some queries close to bank rows."""
    random = np.random.default_rng(seed)
    mixing = random.standard_normal((channels, channels)) / np.sqrt(channels)
    mean = 3.0 * random.standard_normal(channels)
    bank = random.standard_normal((rows, channels)) @ mixing + mean
    found = random.standard_normal((queries, channels)) @ mixing + mean
    near = random.integers(0, rows, queries)
    close = random.random((queries, 1))
    found = np.where(close < 0.5, bank[near] + 0.3 * (found - mean), found)
    bank, found = (bank * scale).astype(np.float32), (found * scale).astype(np.float32)
    return found, bank, bank.mean(0).astype(np.float32)
