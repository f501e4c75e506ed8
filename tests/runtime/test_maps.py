"""`resize_map` equals torch's bilinear interpolation and keeps what it must."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgead.runtime.errors import ConfigError
from edgead.runtime.imaging.anomaly_map import find_regions, resize_map

SIDES = st.integers(1, 70)


@settings(deadline=None, max_examples=60)
@given(SIDES, SIDES, SIDES, SIDES, st.integers(0, 2**32 - 1))
def test_equals_torch_in_float64(rows: int, columns: int, height: int, width: int, seed: int) -> None:
    torch = pytest.importorskip("torch")
    maps = np.random.default_rng(seed).random((2, rows, columns), np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(maps)[:, None].double(), size=(height, width), mode="bilinear", align_corners=False
    )[:, 0].numpy()
    np.testing.assert_allclose(resize_map(maps, height, width), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("grid", "size"), [((32, 32), (256, 256)), ((28, 28), (224, 224)), ((14, 20), (224, 320))])
def test_usual_sizes_equal_torch_in_float32(grid: tuple[int, int], size: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    maps = np.random.default_rng(5).random((3, *grid), np.float32)
    batch = torch.from_numpy(maps)[:, None]
    expected = torch.nn.functional.interpolate(batch, size=size, mode="bilinear", align_corners=False)[:, 0].numpy()
    np.testing.assert_allclose(resize_map(maps, *size), expected, rtol=0, atol=1e-6)


def test_one_map_is_a_batch_of_one() -> None:
    anomaly_map = np.random.default_rng(1).random((7, 5), np.float32)
    one = resize_map(anomaly_map, 20, 33)
    assert one.shape == (20, 33)
    assert one.dtype == np.float32
    assert one.flags.c_contiguous
    np.testing.assert_array_equal(one, resize_map(anomaly_map[None], 20, 33)[0])


def test_a_constant_map_stays_constant_to_the_bit() -> None:
    value = np.float32(0.1)
    assert (resize_map(np.full((9, 9), value), 100, 71) == value).all()


def test_same_size_is_the_same_map_but_a_copy() -> None:
    anomaly_map = np.random.default_rng(2).random((8, 8), np.float32)
    result = resize_map(anomaly_map, 8, 8)
    np.testing.assert_array_equal(result, anomaly_map)
    result[:] = 0
    assert anomaly_map.any()


def test_a_bad_value_is_not_hidden() -> None:
    anomaly_map = np.zeros((4, 4), np.float32)
    anomaly_map[2, 2] = np.nan
    assert np.isnan(resize_map(anomaly_map, 64, 64)).any()


@pytest.mark.parametrize("shape", [(4,), (0, 4), (1, 2, 3, 4)])
def test_refuses_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="shape"):
        resize_map(np.zeros(shape, np.float32), 8, 8)


def test_refuses_an_empty_target() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        resize_map(np.zeros((2, 2), np.float32), 0, 8)


def test_regions_are_those_of_scipy() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    random = np.random.default_rng(6)
    for density in (0.0, 0.05, 0.3, 0.5, 0.8, 1.0):
        rows, columns = (int(size) for size in random.integers(1, 50, 2))
        values = np.where(random.random((rows, columns)) < density, 1.0 + random.random((rows, columns)), 0.25)
        anomaly_map = values.astype(np.float32)
        labels, count = ndimage.label(anomaly_map > 1.0, np.ones((3, 3)))
        expected = []
        for number, (down, across) in enumerate(ndimage.find_objects(labels), 1):
            inside = labels == number
            first = int(np.flatnonzero(inside.ravel())[0])
            box = (down.start, across.start, down.stop, across.stop, float(anomaly_map[inside].max()))
            expected.append((first, box))
        found = find_regions(anomaly_map, 1.0)
        assert len(found) == count
        assert [tuple(region) for region in found] == [box for _, box in sorted(expected)]


def test_what_is_not_above_is_in_no_region() -> None:
    anomaly_map = np.array([[np.nan, 1.0], [0.5, -np.inf]], np.float32)
    assert find_regions(anomaly_map, 1.0) == []
    assert find_regions(np.full((2, 2), np.inf, np.float32), 1.0) == [(0, 0, 2, 2, np.inf)]
    with pytest.raises(ConfigError, match="has shape"):
        find_regions(anomaly_map[None], 0.5)
