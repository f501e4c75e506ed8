"""The kernels as nvcc compiles them: an interpreter executes the PTX it emits, inline assembly included."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.cuda import cases, toolchain
from tests.cuda.knn import CODES, FP16, FP32, INT8, Code
from tests.cuda.ptx.launch import PtxExecutor

codes = pytest.mark.parametrize("code", CODES.values(), ids=CODES)


@pytest.fixture(scope="module")
def executor() -> PtxExecutor:
    return PtxExecutor(toolchain.ptx())


@codes
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 2, 5), (33, 63, 17), (20, 200, 64), (129, 70, 33)], ids=str)
def test_nearest_neighbours_equal_brute_force(executor: PtxExecutor, shape: tuple[int, int, int], code: Code) -> None:
    cases.check_search(executor, shape, code, 3, 2)


@codes
@pytest.mark.slow
@pytest.mark.parametrize("shape", [*cases.RAGGED, (784, 1000, 64), (200, 2000, 384)], ids=str)
def test_more_shapes(executor: PtxExecutor, shape: tuple[int, int, int], code: Code) -> None:
    cases.check_search(executor, shape, code, 1, 2)


@pytest.mark.slow
def test_random_shapes(executor: PtxExecutor) -> None:
    for seed in range(40):
        cases.check_random(executor, seed)


# Without cp.async and with other mma instructions; and the newest, whose registers nvcc declares in another way.
@codes
@pytest.mark.parametrize("architecture", [75, 120])
def test_other_architectures(architecture: int, code: Code) -> None:
    cases.check_search(PtxExecutor(toolchain.ptx(architecture)), (9, 130, 70), code, 3, 2)


def test_rows_that_no_scan_can_tell_apart(executor: PtxExecutor) -> None:
    cases.check_uncertain(executor, FP16)


def test_extremes(executor: PtxExecutor) -> None:
    cases.check_extremes(executor, INT8)


def test_image_scores(executor: PtxExecutor) -> None:
    cases.check_image(executor, FP32, 2, 49, 9)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_keys_of_the_node_become_a_bank(executor: PtxExecutor, dtype: type[np.generic]) -> None:
    cases.check_keys(executor, (35, 33), dtype)
    cases.check_whole_factors(executor, dtype)


LOCATIONS = {
    "ragged": {"grid": (2, 3), "channels": 33},
    "npad": {"grid": (3, 2), "channels": 40, "frames": 5, "window": 3},
    "half": {"grid": (2, 2), "channels": 65, "dtype": np.float16, "frames": 2},
    "low rank": {"grid": (2, 3), "channels": 65, "rank": 34, "window": 3},
    "low rank, half": {"grid": (1, 2), "channels": 50, "rank": 9, "dtype": np.float16, "frames": 33},
}


@pytest.mark.parametrize("case", LOCATIONS.values(), ids=LOCATIONS)
def test_mahalanobis_distances(executor: PtxExecutor, case: dict[str, Any]) -> None:
    cases.check_locations(executor, **case)


def test_fusion_with_centroids(executor: PtxExecutor) -> None:
    cases.check_fusion(executor)
