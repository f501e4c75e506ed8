"""The native search in a memory bank against every distance in float64."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgead.runtime.backends.native.knn import RowSearch, find_set, instruction_sets, open_search
from edgead.runtime.errors import BackendError, BackendUnavailable
from tests.runtime.native_cases import nearest

Floats = NDArray[np.float32]

X86 = ["AVX-512 VNNI", "AVX-VNNI", "AVX2"]
ARM = ["NEON i8mm", "NEON dot product", "NEON"]
INSTRUCTIONS = [*(ARM if platform.machine().lower() in ("aarch64", "arm64") else X86), "plain C"]


@pytest.fixture(params=INSTRUCTIONS)
def instructions(request: pytest.FixtureRequest, native_library: Any) -> str:
    if request.param not in [one.name for one in instruction_sets(native_library) if one.supported]:
        pytest.skip(f"this processor lacks {request.param}")
    return str(request.param)


def keys(rows: Floats) -> Floats:
    """The constant of the graph's matrix product."""
    return np.concatenate([-2 * rows, (rows.astype(np.float64) ** 2).sum(1, keepdims=True)], axis=1).T.astype(
        np.float32
    )


def points(kind: str, count: int, channels: int, seed: int) -> Floats:
    random = np.random.default_rng(seed)
    values = random.normal(size=(count, channels))
    if kind == "clusters":  # many rows so near each other that 8 bits cannot tell them apart
        centers = np.random.default_rng(99).normal(size=(5, channels))
        values = 1e-3 * values + 10.0 * centers[random.integers(0, 5, count)]
    elif kind == "heavy tails":
        values = values**5
    elif kind == "one large channel":
        values[:, 0] *= 1000.0
    elif kind == "tiny":
        values *= 1e-6
    return values.astype(np.float32)


def searched(library: Any, queries: Floats, bank: Floats, instructions: str, threads: int = 1, **how: Any) -> Floats:
    search = RowSearch(library, keys(bank), threads, instructions=instructions, **how)
    found = search.distances(queries)
    assert search.describe() == f"native search ({instructions})"
    search.close()
    return found


@pytest.mark.parametrize("kind", ["plain", "clusters", "heavy tails", "one large channel", "tiny"])
@pytest.mark.parametrize(
    ("rows", "channels", "coarse"),
    [(1500, 152, None), (1500, 152, 24), (64, 4, None), (65, 17, None), (1, 3, None), (3000, 33, 16), (1, 40, 8)],
)
def test_distances_are_exact(
    native_library: Any, instructions: str, kind: str, rows: int, channels: int, coarse: int | None
) -> None:
    bank, queries = points(kind, rows, channels, 0), points(kind, 50, channels, 1)
    found = searched(native_library, queries, bank, instructions, coarse=coarse)
    np.testing.assert_allclose(found, nearest(queries, bank), rtol=3e-6)


@pytest.mark.parametrize("channels", [1, 2, 5, 8, 31, 32, 100, 257, 300, 1024, 1025])
def test_any_number_of_channels(native_library: Any, instructions: str, channels: int) -> None:
    # Rows in fewer directions than channels, as those of an image are; queries leave these a little.
    random = np.random.default_rng(channels)
    mixing = random.normal(size=(min(20, channels), channels)) * np.geomspace(1, 0.01, channels)
    bank = (random.normal(size=(301, len(mixing))) @ mixing + 3.0).astype(np.float32)
    queries = (random.normal(size=(13, len(mixing))) @ mixing + 3.0).astype(np.float32)
    queries += random.normal(size=queries.shape).astype(np.float32) * np.float32(1e-3)
    for coarse in (None, 16):
        found = searched(native_library, queries, bank, instructions, coarse=coarse)
        np.testing.assert_allclose(found, nearest(queries, bank), rtol=3e-6)


def test_ties_and_equal_rows(native_library: Any, instructions: str) -> None:
    random = np.random.default_rng(0)
    # Corners of a cube and a query in its middle: every row is equally far, and there are more than wait at once.
    corners = random.choice([-1.0, 1.0], (700, 48)).astype(np.float32)
    queries = np.concatenate([np.zeros((9, 48)), corners[:3]]).astype(np.float32)
    for bank in (corners, np.repeat(corners[:1], 700, axis=0), np.repeat(corners[:7], 100, axis=0)):
        for coarse in (None, 16):
            found = searched(native_library, queries, bank, instructions, coarse=coarse)
            np.testing.assert_allclose(found, nearest(queries, bank), rtol=3e-6)


@pytest.mark.parametrize("far", [1e2, 1e5, 1e12])
def test_one_far_row_makes_it_slow_but_not_wrong(native_library: Any, instructions: str, far: float) -> None:
    bank, queries = points("plain", 900, 64, 0), points("plain", 20, 64, 1)
    bank[450] *= np.float32(far)
    queries[7] *= np.float32(far)
    for coarse in (None, 16):
        found = searched(native_library, queries, bank, instructions, coarse=coarse)
        np.testing.assert_allclose(found, nearest(queries, bank), rtol=3e-6)


def test_the_nearest_row_differs_in_the_last_coordinates(native_library: Any, instructions: str) -> None:
    random = np.random.default_rng(5)
    bank = (random.normal(size=(800, 96)) * np.geomspace(10.0, 0.01, 96)).astype(np.float32)
    bank[:, :40] = bank[:8, :40].repeat(100, axis=0)  # eight places, a hundred rows in each
    queries = bank[random.permutation(800)[:30]] + (random.normal(size=(30, 96)) * 1e-3).astype(np.float32)
    found = searched(native_library, queries, bank, instructions, coarse=24)
    np.testing.assert_allclose(found, nearest(queries, bank), rtol=1e-5)


def test_queries_far_from_every_row_and_rows_themselves(native_library: Any, instructions: str) -> None:
    bank = points("plain", 2000, 152, 0)
    queries = np.concatenate([bank[[3, 1999]], 1e4 * points("plain", 5, 152, 2), np.zeros((1, 152), np.float32)])
    found = searched(native_library, queries, bank, instructions)
    assert found[:2].tolist() == [0.0, 0.0]  # a difference of squares would leave some thousandths
    np.testing.assert_allclose(found[2:], nearest(queries[2:], bank), rtol=3e-6)


def test_queries_at_the_ends_of_all_ranges_do_not_overflow(native_library: Any, instructions: str) -> None:
    # Every coordinate of every row and query is rounded to the largest value, of either sign.
    random = np.random.default_rng(3)
    for channels in (24, 1024 + 8):  # where the channels themselves are compared
        bank = random.choice([-1.0, 1.0], (130, channels)).astype(np.float32)
        bank[:2] = [[1.0], [-1.0]]
        queries = np.concatenate([bank[:3] * np.float32(9.0), bank[5:8]])
        found = searched(native_library, queries, bank, instructions)
        np.testing.assert_allclose(found, nearest(queries, bank), rtol=3e-6)


def test_a_bank_of_zeros(native_library: Any, instructions: str) -> None:
    for channels in (8, 40):
        queries = points("plain", 5, channels, 0)
        found = searched(native_library, queries, np.zeros((70, channels), np.float32), instructions)
        np.testing.assert_allclose(found, np.linalg.norm(queries, axis=1), rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_a_query_that_is_not_finite_is_nan_and_spoils_no_other(
    native_library: Any, instructions: str, bad: float
) -> None:
    for channels in (20, 40):
        bank, queries = points("plain", 700, channels, 0), points("plain", 20, channels, 1)
        spoiled = queries.copy()
        spoiled[4, 7] = bad
        whole = searched(native_library, queries, bank, instructions)
        found = searched(native_library, spoiled, bank, instructions)
        assert np.isnan(found[4])
        others = np.arange(20) != 4
        np.testing.assert_array_equal(found[others], whole[others])
        assert np.isnan(searched(native_library, np.full_like(queries, bad), bank, instructions)).all()


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_threads_share_the_queries(native_library: Any, instructions: str, threads: int) -> None:
    bank, queries = points("plain", 500, 24, 0), points("plain", 5, 24, 1)
    found = searched(native_library, queries, bank, instructions, threads)
    np.testing.assert_allclose(found, nearest(queries, bank), rtol=3e-6)


def test_the_fastest_instruction_set_is_taken_and_plain_c_only_when_asked_for(native_library: Any) -> None:
    sets = instruction_sets(native_library)
    assert [one.name for one in sets if one.name in INSTRUCTIONS] == [one.name for one in sets]
    assert sets[-1].name == "plain C"
    assert sets[-1].supported
    assert find_set(native_library, "plain C") == sets[-1]
    fastest = next(one for one in sets if one.supported)
    if fastest == sets[-1]:
        with pytest.raises(BackendUnavailable, match="AVX2 or NEON"):
            find_set(native_library)
    else:
        assert find_set(native_library) == fastest
    with pytest.raises(BackendUnavailable, match="this processor lacks MMX"):
        find_set(native_library, "MMX")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("channels", [8, 40])
def test_a_bank_that_is_not_finite_is_refused(native_library: Any, bad: float, channels: int) -> None:
    bank = points("plain", 100, channels, 0)
    bank[50, 3] = bad
    with np.errstate(invalid="ignore"), pytest.raises(ValueError, match="not finite"):
        RowSearch(native_library, keys(bank), 1, instructions="plain C")


def test_what_does_not_fit_is_refused(native_library: Any) -> None:
    bank = points("plain", 100, 8, 0)
    with pytest.raises(ValueError, match="for 9 channels"):
        open_search(native_library, {"keys": keys(bank)}, 9, 1)
    search = RowSearch(native_library, keys(bank), 1, instructions="plain C")
    with pytest.raises(BackendError, match="gave 7 channels, its memory bank has 8"):
        search.distances(np.zeros((3, 7), np.float32))
