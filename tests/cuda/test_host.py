"""The kernels as a host compiler builds them, every CUDA thread a fiber, with and without sanitizers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cuda import cases, knn, launchers, mahalanobis, probe, toolchain
from tests.cuda.executor import HostExecutor, KernelError
from tests.cuda.knn import CODES, FP16, FP32, Code

ORDERS = ("forward", "reverse", "random:7")

codes = pytest.mark.parametrize("code", CODES.values(), ids=CODES)


@pytest.fixture(scope="module")
def library() -> Path:
    return toolchain.host_library()


@pytest.fixture
def executor(library: Path) -> HostExecutor:
    return HostExecutor(library)


@codes
@pytest.mark.parametrize("shape", cases.RAGGED, ids=str)
def test_nearest_neighbours_equal_brute_force(executor: HostExecutor, shape: tuple[int, int, int], code: Code) -> None:
    for neighbours, splits in ((1, 1), (3, 2), (16, 3)):
        cases.check_search(executor, shape, code, neighbours, splits)


@codes
@pytest.mark.parametrize("shape", [(784, 2000, 64), (1024, 700, 384), (900, 1000, 512)], ids=str)
def test_realistic_shapes(executor: HostExecutor, shape: tuple[int, int, int], code: Code) -> None:
    cases.check_search(executor, shape, code, 1, 3)


@pytest.mark.slow
@codes
@pytest.mark.parametrize("shape", [(784, 10_000, 128), (1024, 10_000, 384), (784, 10_000, 512)], ids=str)
def test_realistic_shapes_with_large_banks(executor: HostExecutor, shape: tuple[int, int, int], code: Code) -> None:
    cases.check_search(executor, shape, code, 1, 2)
    cases.check_search(executor, shape, code, 9, 9)


@pytest.mark.parametrize("order", ORDERS)
def test_random_shapes(library: Path, order: str) -> None:
    for seed in range(8):
        cases.check_random(HostExecutor(library, order), seed)


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_200_random_shapes(library: Path, order: str) -> None:
    for seed in range(200):
        cases.check_random(HostExecutor(library, order), seed)


@codes
def test_rows_that_no_scan_can_tell_apart(executor: HostExecutor, code: Code) -> None:
    cases.check_uncertain(executor, code)


@codes
def test_extremes(executor: HostExecutor, code: Code) -> None:
    cases.check_extremes(executor, code)


@codes
@pytest.mark.parametrize(("images", "patches", "support"), [(1, 1, 1), (3, 49, 9), (2, 300, 33)])
def test_image_scores(executor: HostExecutor, code: Code, images: int, patches: int, support: int) -> None:
    cases.check_image(executor, code, images, patches, support)


@codes
def test_features_in_half_precision(executor: HostExecutor, code: Code) -> None:
    features, rows, center = knn.features(2, 40, 90, 50)
    halves, half_rows = features.astype(np.float16), rows.astype(np.float16)
    queries = knn.prepare(executor, halves, center, code, bank=False)
    bank = knn.prepare(executor, half_rows, center, code, bank=True)
    cases.check_prepared(halves.astype(np.float32), center, queries)
    cases.check_found(queries, bank, 1, knn.search(executor, queries, bank))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("shape", [(1, 1), (33, 31), (64, 32), (70, 65)], ids=str)
def test_keys_of_the_node_become_a_bank(
    executor: HostExecutor, shape: tuple[int, int], dtype: type[np.generic]
) -> None:
    cases.check_keys(executor, shape, dtype)
    cases.check_whole_factors(executor, dtype)


def test_all_paths_return_the_same_bits(executor: HostExecutor) -> None:
    found = [cases.check_search(executor, (90, 400, 60), code, 7, 3).best for code in CODES.values()]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


@codes
def test_the_launchers_of_the_header_do_the_same(executor: HostExecutor, code: Code) -> None:
    cases.check_launchers(executor, code, (150, 333, 40), 4)


def test_the_launchers_refuse_what_the_kernels_cannot(executor: HostExecutor) -> None:
    with pytest.raises(KernelError, match="refused"):
        launchers.search(executor, FP32, *knn.features(0, 4, 5, 6), neighbours=17)
    with pytest.raises(KernelError, match="too many channels"):
        launchers.locations(executor, (1, 1), 1025, 1)


LOCATIONS = {
    "one": {"grid": (1, 1), "channels": 1},
    "ragged": {"grid": (2, 3), "channels": 33},
    "tile": {"grid": (3, 2), "channels": 32, "frames": 3},
    "padim": {"grid": (6, 5), "channels": 100, "frames": 4},
    "npad": {"grid": (5, 4), "channels": 40, "frames": 5, "window": 3},
    "wide window": {"grid": (2, 4), "channels": 17, "frames": 2, "window": 7},
    "long": {"grid": (1, 2), "channels": 515, "frames": 20},
    "longest": {"grid": (1, 1), "channels": 1024, "frames": 9},
    "half": {"grid": (3, 4), "channels": 65, "dtype": np.float16, "frames": 2},
    "low rank": {"grid": (3, 4), "channels": 65, "rank": 34, "window": 3},
    "low rank, half": {"grid": (4, 2), "channels": 50, "rank": 9, "dtype": np.float16, "frames": 33},
}


@pytest.mark.parametrize("case", LOCATIONS.values(), ids=LOCATIONS)
def test_mahalanobis_distances(executor: HostExecutor, case: dict[str, Any]) -> None:
    cases.check_locations(executor, **case)


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_mahalanobis_distances_of_random_shapes(library: Path, order: str) -> None:
    for seed in range(100):
        random = np.random.default_rng(seed)
        rank = int(random.integers(1, 40)) if seed % 3 == 0 else None
        cases.check_locations(
            HostExecutor(library, order),
            (int(random.integers(1, 6)), int(random.integers(1, 6))),
            int(random.integers(1, 130)),
            rank=rank,
            dtype=[np.float32, np.float16][seed % 2],
            frames=int(random.integers(1, 12)),
            window=[1, 1, 3, 5][seed % 4],
            seed=seed,
        )


def test_fusion_with_centroids(executor: HostExecutor) -> None:
    cases.check_fusion(executor)


def test_mahalanobis_equals_the_module_that_is_trained(executor: HostExecutor) -> None:
    import torch

    from edgead.detectors.heads import LocationGaussians, LowRankWhitening, TriangularWhitening

    grid, window = (4, 5), 3
    for rank in (None, 6):
        locations = mahalanobis.make(4, grid, 24, rank, np.float32)
        features = np.random.default_rng(5).standard_normal((2, 20, 24)).astype(np.float32)
        factors = torch.from_numpy(locations.factors)
        if locations.precision is None:
            form: torch.nn.Module = TriangularWhitening(factors)
        else:
            form = LowRankWhitening(factors, torch.from_numpy(locations.precision))
        module = LocationGaussians(torch.from_numpy(locations.mean), form, window)
        expected = module.distances(torch.from_numpy(features), grid).numpy()
        squared = mahalanobis.measure(executor, features, locations, window)
        found = mahalanobis.scores(executor, squared, grid, window)
        np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_too_much_shared_memory_is_refused(executor: HostExecutor) -> None:
    stats, error = np.zeros((1, 2), np.float32), np.zeros(1, np.float32)
    with pytest.raises(KernelError, match="48 KiB"):
        executor.launch("knn_bank_bound", (1, 1, 1), 256, 49_153, stats, error, 1, np.zeros(2, np.float32))


def test_an_unknown_kernel_is_named(executor: HostExecutor) -> None:
    with pytest.raises(KernelError, match="no kernel of the name knn_scan"):
        executor.launch("knn_scan", (1, 1, 1), 32, 0)


SMALL = ["prepare", "knn fp32", "knn fp16", "knn int8", "image", "locations", "node", "regions"]


@pytest.mark.parametrize(
    ("sanitizer", "suites"), [("asan", [*SMALL, "uncertain", "extremes", "fusion", "pictures"]), ("tsan", SMALL)]
)
def test_sanitizers_find_nothing(sanitizer: str, suites: list[str]) -> None:
    status, said = probe.run(sanitizer, "forward", *suites)
    assert status == 0, said


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("sanitizer", ["asan", "tsan"])
def test_sanitizers_find_nothing_in_any_order(sanitizer: str, order: str) -> None:
    status, said = probe.run(sanitizer, order, *probe.SUITES)
    assert status == 0, said


def test_paths_differ_in_what_they_read() -> None:
    # A check of the checks: three names for one path would make the comparisons above empty.
    assert len({code.scan for code in CODES.values()}) == 3
    assert FP32.pitch(17) == 32
    assert FP16.pitch(33) == 64
