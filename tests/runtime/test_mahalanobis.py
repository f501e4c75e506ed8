"""Native distances to the Gaussians of locations against float64."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from edgead.runtime.backends.native.mahalanobis import LANES, LocationDistances, open_gaussians
from edgead.runtime.errors import BackendError

Floats = NDArray[np.float32]

# Locations, rows, channels: less than a vector, whole vectors, and a rest of each.
SIZES = [(1, 1, 1), (5, 3, 3), (64, 12, 12), (37, 13, 13), (100, 50, 50), (17, 101, 101)]


class Case(NamedTuple):
    queries: Floats
    mean: Floats
    factors: Floats
    precision: Floats | None

    @property
    def expected(self) -> NDArray[np.float64]:
        deviation = self.queries.astype(np.float64) - self.mean
        squared = (np.einsum("prc,npc->npr", self.factors.astype(np.float64), deviation) ** 2).sum(2)
        if self.precision is not None:
            squared = (deviation**2).sum(2) * self.precision - squared
        return np.sqrt(squared)


def make(locations: int, rows: int, channels: int, *, triangular: bool, low_rank: bool = False) -> Case:
    random = np.random.default_rng(locations + channels)
    factors = random.normal(size=(locations, rows, channels)).astype(np.float32)
    precision = None
    if triangular:
        # Rows of such matrices differ much in size.
        factors = np.tril(factors * 10.0 ** random.uniform(-3, 1, (locations, rows, 1))).astype(np.float32)
    if low_rank:
        precision = (2.0 * (factors.astype(np.float64) ** 2).sum((1, 2))).astype(np.float32)
    queries = random.normal(3.0, 2.0, (3, locations, channels)).astype(np.float32)
    mean = random.normal(3.0, 1.0, (locations, channels)).astype(np.float32)
    return Case(queries, mean, factors, precision)


def distances(library: Any, case: Case, threads: int = 1, **how: Any) -> Floats:
    native = LocationDistances(library, case.mean, case.factors, case.precision, threads, **how)
    # As a network gives them, locations side by side, and the other way round.
    found = native.distances(np.ascontiguousarray(case.queries.transpose(0, 2, 1)).transpose(0, 2, 1))
    np.testing.assert_array_equal(found, native.distances(case.queries))
    native.close()
    return found


@pytest.fixture(params=LANES)
def lanes(request: pytest.FixtureRequest, native_library: Any) -> int:
    if not native_library.edgead_gaussians_supported(request.param):
        pytest.skip(f"this processor has no vectors of {request.param}")
    return int(request.param)


@pytest.mark.parametrize("size", SIZES)
def test_triangles(native_library: Any, lanes: int, size: tuple[int, int, int]) -> None:
    case = make(*size, triangular=True)
    found = distances(native_library, case, triangular=True, lanes=lanes)
    np.testing.assert_allclose(found, case.expected, rtol=1e-5)
    # What lies above the diagonal is not even looked at.
    upper = case._replace(factors=case.factors + np.triu(np.full_like(case.factors, 9.0), 1))
    np.testing.assert_array_equal(found, distances(native_library, upper, triangular=True, lanes=lanes))


@pytest.mark.parametrize("size", SIZES)
def test_triangles_in_16_bits(native_library: Any, lanes: int, size: tuple[int, int, int]) -> None:
    case = make(*size, triangular=True)
    found = distances(native_library, case, triangular=True, bits=16, lanes=lanes)
    # Each entry is off by up to 2^-16 of its row's largest; a distance adds up many such errors, of both signs.
    np.testing.assert_allclose(found, case.expected, rtol=2e-4)
    if case.factors.size > 1000:
        assert np.abs(found / case.expected - 1.0).max() > 1e-7  # it is what was asked for


@pytest.mark.parametrize("size", [(37, 5, 13), (16, 64, 64), (5, 1, 1)])
@pytest.mark.parametrize("low_rank", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_other_factors(
    native_library: Any, lanes: int, size: tuple[int, int, int], low_rank: bool, dtype: type[np.generic]
) -> None:
    case = make(*size, triangular=False, low_rank=low_rank)
    case = case._replace(factors=case.factors.astype(dtype))
    np.testing.assert_allclose(distances(native_library, case, lanes=lanes), case.expected, rtol=1e-5)


def test_a_low_rank_form_never_gives_the_root_of_a_negative_number(native_library: Any, lanes: int) -> None:
    case = make(20, 4, 8, triangular=False)._replace(precision=np.zeros(20, np.float32))
    assert not distances(native_library, case, lanes=lanes).any()


@pytest.mark.parametrize("bits", [32, 16])
def test_a_row_of_zeros_counts_nothing(native_library: Any, lanes: int, bits: int) -> None:
    case = make(9, 6, 6, triangular=True)
    case.factors[:, 3] = 0.0
    found = distances(native_library, case, triangular=True, bits=bits, lanes=lanes)
    np.testing.assert_allclose(found, case.expected, rtol=1e-4)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("bits", [32, 16])
def test_a_feature_that_is_not_finite_spoils_no_other_location(
    native_library: Any, lanes: int, bad: float, bits: int
) -> None:
    case = make(37, 12, 12, triangular=True)
    whole = distances(native_library, case, triangular=True, bits=bits, lanes=lanes)
    case.queries[1, 20, 7] = bad
    with np.errstate(invalid="ignore"):
        found = distances(native_library, case, triangular=True, bits=bits, lanes=lanes)
    assert not np.isfinite(found[1, 20])
    others = np.ones(found.shape, np.bool_)
    others[1, 20] = False
    np.testing.assert_array_equal(found[others], whole[others])


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_threads_share_the_locations(native_library: Any, lanes: int, threads: int) -> None:
    case = make(37, 12, 12, triangular=True)
    found = distances(native_library, case, threads, triangular=True, lanes=lanes)
    np.testing.assert_array_equal(found, distances(native_library, case, triangular=True, lanes=lanes))


def test_the_widest_vectors_are_taken(native_library: Any) -> None:
    case = make(64, 12, 12, triangular=True)
    widest = next(count for count in LANES if native_library.edgead_gaussians_supported(count))
    found = distances(native_library, case, triangular=True)
    np.testing.assert_array_equal(found, distances(native_library, case, triangular=True, lanes=widest))
    assert native_library.edgead_gaussians_supported(5) == 0


@pytest.mark.parametrize("queries", [(1, 5, 12), (1, 6, 11)])
def test_features_of_another_shape_are_refused(native_library: Any, queries: tuple[int, int, int]) -> None:
    case = make(6, 12, 12, triangular=True)
    native = LocationDistances(native_library, case.mean, case.factors, None, 1, triangular=True)
    with pytest.raises(BackendError, match="its Gaussians are for"):
        native.distances(np.zeros(queries, np.float32))


@pytest.mark.parametrize(
    "constants",
    [
        {"mean": (6, 11)},
        {"mean": (5, 12)},
        {"factors": (6, 12, 11)},
        {"factors": (6, 11, 12)},
        {"factors": (6, 144)},
        {"precision": (5,)},
    ],
)
def test_constants_that_do_not_fit_are_refused(native_library: Any, constants: dict[str, tuple[int, ...]]) -> None:
    shapes = {"mean": (6, 12), "factors": (6, 12, 12)} | constants
    given = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    with pytest.raises(ValueError, match="for 6 locations of 12 channels"):
        open_gaussians(native_library, given, (6, 12), 1, triangular=True, bits=32)
