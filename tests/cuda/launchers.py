"""The C++ launchers of the headers, called as a program would: grids, shared memory and order are theirs."""

from __future__ import annotations

import ctypes

import numpy as np
from numpy.typing import NDArray

from tests.cuda import knn, mahalanobis
from tests.cuda.executor import HostExecutor
from tests.cuda.knn import CODES, Code, Floats


class Rows(ctypes.Structure):
    _fields_ = (
        ("count", ctypes.c_int),
        *((name, ctypes.c_void_p) for name in ("centred", "coded", "stats", "error")),
    )


def pointer(array: NDArray[np.generic]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def search(
    executor: HostExecutor, code: Code, features: Floats, rows: Floats, center: Floats, neighbours: int
) -> NDArray[np.uint64]:
    """Search with the C++ launchers of knn.cuh."""

    def rows_of(prepared: knn.Prepared) -> Rows:
        arrays = (prepared.centred, prepared.coded, prepared.stats, prepared.error)
        return Rows(prepared.count, *(array.ctypes.data for array in arrays))

    shape = (len(features), *rows.shape)
    queries, bank = knn.empty(code, shape[0], shape[2]), knn.empty(code, shape[1], shape[2])
    number, library = list(CODES.values()).index(code), executor.library
    splits = library.knn_splits(number, shape[0], shape[1], neighbours, 8)
    assert 1 <= splits <= -(-shape[1] // 64)  # never more than there are tiles of bank rows
    size = library.knn_candidate_bytes(number, shape[0], splits)
    assert size == shape[0] * splits * code.geometry[3] * knn.KEEP * 8
    candidates = np.empty(size // 8, np.uint64)
    best, certain = np.empty((shape[0], neighbours), np.uint64), np.empty(shape[0], np.int32)
    executor.check(
        library.knn_search(
            number, pointer(features), pointer(rows), pointer(center), ctypes.byref(rows_of(queries)),
            ctypes.byref(rows_of(bank)), pointer(bank.bound), shape[2], neighbours, splits, pointer(candidates),
            pointer(best), pointer(certain),
        )
    )  # fmt: skip
    return best


def locations(
    executor: HostExecutor, grid: tuple[int, int], channels: int, window: int
) -> tuple[mahalanobis.Locations, NDArray[np.float32], NDArray[np.float32]]:
    """Score two frames with the C++ launcher of mahalanobis.cuh."""
    made = mahalanobis.make(8, grid, channels, None, np.float32)
    count = grid[0] * grid[1]
    features = np.random.default_rng(9).standard_normal((2, count, channels)).astype(np.float32)
    squared, found = np.empty((count, 2, window * window), np.float32), np.empty((2, count), np.float32)
    arrays = (pointer(features), pointer(made.mean), pointer(made.factors))
    outputs = (pointer(squared), pointer(found))
    executor.check(executor.library.mahalanobis_scores(*arrays, 2, *grid, channels, window, *outputs))
    return made, features, found
