"""The kernels as a host compiler builds them, every CUDA thread a fiber, with and without sanitizers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.cuda import cases, knn, toolchain
from tests.cuda.executor import HostExecutor, KernelError
from tests.cuda.knn import CODES, FP16, FP32, Code

ROOT = Path(__file__).resolve().parent.parent.parent
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
    for seed in range(15):
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


def test_all_paths_return_the_same_bits(executor: HostExecutor) -> None:
    found = [cases.check_search(executor, (90, 400, 60), code, 7, 3).best for code in CODES.values()]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


@codes
def test_the_launchers_of_the_header_do_the_same(executor: HostExecutor, code: Code) -> None:
    import ctypes

    class Rows(ctypes.Structure):
        _fields_ = (
            ("count", ctypes.c_int),
            *((name, ctypes.c_void_p) for name in ("centred", "coded", "stats", "error")),
        )

    def pointer(array: np.ndarray) -> ctypes.c_void_p:
        return ctypes.c_void_p(array.ctypes.data)

    def rows_of(prepared: knn.Prepared) -> Rows:
        arrays = (prepared.centred, prepared.coded, prepared.stats, prepared.error)
        return Rows(prepared.count, *(array.ctypes.data for array in arrays))

    shape, neighbours = (150, 333, 40), 4
    features, bank_rows, center = knn.features(0, *shape)
    expected = cases.check_search(executor, shape, code, neighbours, 2).best
    queries, bank = knn.empty(code, shape[0], shape[2]), knn.empty(code, shape[1], shape[2])
    number, library = list(CODES.values()).index(code), executor.library
    splits = library.knn_splits(number, shape[0], shape[1], neighbours, 8)
    assert 1 < splits <= 6  # as many as there are tiles of bank rows
    size = library.knn_candidate_bytes(number, shape[0], splits)
    assert size == shape[0] * splits * code.geometry[3] * knn.KEEP * 8
    candidates = np.empty(size // 8, np.uint64)
    best, certain = np.empty((shape[0], neighbours), np.uint64), np.empty(shape[0], np.int32)
    executor.check(
        library.knn_search(
            number, pointer(features), pointer(bank_rows), pointer(center), ctypes.byref(rows_of(queries)),
            ctypes.byref(rows_of(bank)), pointer(bank.bound), shape[2], neighbours, splits, pointer(candidates),
            pointer(best), pointer(certain),
        )
    )  # fmt: skip
    np.testing.assert_array_equal(best, expected)


def test_too_much_shared_memory_is_refused(executor: HostExecutor) -> None:
    stats, error = np.zeros((1, 2), np.float32), np.zeros(1, np.float32)
    with pytest.raises(KernelError, match="48 KiB"):
        executor.launch("knn_bank_bound", (1, 1, 1), 256, 49_153, stats, error, 1, np.zeros(2, np.float32))


def test_an_unknown_kernel_is_named(executor: HostExecutor) -> None:
    with pytest.raises(KernelError, match="no kernel of the name knn_scan"):
        executor.launch("knn_scan", (1, 1, 1), 32, 0)


def run_sanitized(sanitizer: str, order: str, *suites: str) -> None:
    libraries = [str(toolchain.host_library(sanitizer)), str(toolchain.host_library())]
    command = [sys.executable, "-m", "tests.cuda.sanitized", *libraries, order, *suites]
    environment = toolchain.sanitizer_environment(sanitizer)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stderr


def test_the_address_sanitizer_finds_nothing() -> None:
    run_sanitized("asan", "forward", "all")


def test_the_thread_sanitizer_finds_nothing() -> None:
    run_sanitized("tsan", "forward", "scans", "small")


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("sanitizer", ["asan", "tsan"])
def test_sanitizers_find_nothing_in_any_order(sanitizer: str, order: str) -> None:
    run_sanitized(sanitizer, order, "scans", "all")


def test_paths_differ_in_what_they_read() -> None:
    # A check of the checks: three names for one path would make the comparisons above empty.
    assert len({code.scan for code in CODES.values()}) == 3
    assert FP32.pitch(17) == 32
    assert FP16.pitch(33) == 64
