"""The native search in a memory bank against every distance in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgead.runtime.search import LACKING, RowSearch

Floats = NDArray[np.float32]


@pytest.fixture(scope="module")
def library(native_library: Any) -> Any:
    if not RowSearch.supported(native_library):
        pytest.skip(f"this processor lacks {LACKING}")
    return native_library


def keys(rows: Floats) -> Floats:
    """The constant of the graph's matrix product."""
    return np.concatenate([-2 * rows, (rows.astype(np.float64) ** 2).sum(1, keepdims=True)], axis=1).T.astype(
        np.float32
    )


def nearest(queries: Floats, rows: Floats) -> NDArray[np.float64]:
    wide = rows.astype(np.float64)
    return np.array([np.linalg.norm(wide - query.astype(np.float64), axis=1).min() for query in queries])


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


@pytest.mark.parametrize("kind", ["plain", "clusters", "heavy tails", "one large channel", "tiny"])
@pytest.mark.parametrize(("rows", "channels"), [(1500, 152), (64, 4), (65, 17), (1, 3), (3000, 33)])
def test_distances_are_exact(library: Any, kind: str, rows: int, channels: int) -> None:
    bank, queries = points(kind, rows, channels, 0), points(kind, 50, channels, 1)
    found = RowSearch(library, keys(bank), 1).distances(queries)
    np.testing.assert_allclose(found, nearest(queries, bank), rtol=3e-6)


def test_queries_far_from_every_row_and_rows_themselves(library: Any) -> None:
    bank = points("plain", 2000, 152, 0)
    queries = np.concatenate([bank[[3, 1999]], 1e4 * points("plain", 5, 152, 2), np.zeros((1, 152), np.float32)])
    found = RowSearch(library, keys(bank), 1).distances(queries)
    assert found[:2].tolist() == [0.0, 0.0]  # a difference of squares would leave some thousandths
    np.testing.assert_allclose(found[2:], nearest(queries[2:], bank), rtol=3e-6)


def test_a_bank_of_zeros(library: Any) -> None:
    queries = points("plain", 5, 8, 0)
    found = RowSearch(library, keys(np.zeros((70, 8), np.float32)), 1).distances(queries)
    np.testing.assert_allclose(found, np.linalg.norm(queries, axis=1), rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_query_that_is_not_finite_is_nan_and_spoils_no_other(library: Any, bad: float) -> None:
    bank, queries = points("plain", 700, 20, 0), points("plain", 20, 20, 1)
    spoiled = queries.copy()
    spoiled[4, 7] = bad
    search = RowSearch(library, keys(bank), 1)
    whole, found = search.distances(queries), search.distances(spoiled)
    assert not np.isfinite(found[4])
    others = np.arange(20) != 4
    np.testing.assert_array_equal(found[others], whole[others])


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_threads_share_the_queries(library: Any, threads: int) -> None:
    bank, queries = points("plain", 500, 24, 0), points("plain", 5, 24, 1)
    search = RowSearch(library, keys(bank), threads)
    np.testing.assert_allclose(search.distances(queries), nearest(queries, bank), rtol=3e-6)
    search.close()
