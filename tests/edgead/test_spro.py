"""sPRO against a count by hand, and the scenes of the logical benchmark."""

from __future__ import annotations

import numpy as np
import pytest

from edgead.metrics.spro import spro
from edgead.runtime.errors import DataError


def by_hand(maps, regions, limit: float) -> float:
    """Threshold by threshold, the way the paper states it."""
    normal = np.concatenate(
        [
            grid[~np.any([m for m, _ in wrong], axis=0)] if wrong else grid.ravel()
            for grid, wrong in zip(maps, regions, strict=True)
        ]
    )
    points = [(0.0, 0.0)]
    for threshold in np.unique(np.concatenate([grid.ravel() for grid in maps]))[::-1]:
        rate = float((normal >= threshold).mean())
        shares = [
            min((grid[mask] >= threshold).sum() / area, 1.0)
            for grid, wrong in zip(maps, regions, strict=True)
            for mask, area in wrong
        ]
        points.append((rate, float(np.mean(shares))))
    rates, overlaps = np.array(points).T
    at = np.linspace(0.0, limit, 4000)
    # The best that is reached at or below a rate.
    reached = [overlaps[rates <= rate].max() for rate in at]
    return float(np.trapezoid(reached, at) / limit)


def test_it_is_what_the_paper_says() -> None:
    random = np.random.default_rng(0)
    maps, regions = [], []
    for number in range(6):
        grid = random.random((16, 20)).astype(np.float32)
        wrong = []
        if number % 2:
            mask = np.zeros((16, 20), bool)
            mask[3:8, 4:12] = True
            grid[mask] += 0.5
            wrong.append((mask, 20))  # half of it is enough
            other = np.zeros((16, 20), bool)
            other[10:14, 2:6] = True
            grid[other] += 0.2
            wrong.append((other, 16))
        maps.append(grid)
        regions.append(wrong)
    for limit in (0.05, 0.3, 1.0):
        assert spro(maps, regions, (16, 20), limit) == pytest.approx(by_hand(maps, regions, limit), abs=0.01)


def test_enough_of_a_region_is_all_of_it() -> None:
    grid = np.zeros((10, 10), np.float32)
    mask = np.zeros((10, 10), bool)
    mask[:4, :5] = True
    grid[0, :5] = 1.0  # five of its twenty pixels
    assert spro([grid], [[(mask, 5)]], (10, 10)) == 1.0
    assert spro([grid], [[(mask, 20)]], (10, 10)) == pytest.approx(0.25, abs=1e-3)


def test_without_a_region_there_is_nothing_to_find() -> None:
    grid = np.zeros((4, 4), np.float32)
    with pytest.raises(DataError, match="needs a region at least"):
        spro([grid], [[]], (4, 4))
    with pytest.raises(DataError, match="needs normal pixels"):
        spro([grid], [[(np.ones((4, 4), bool), 3)]], (4, 4))


def test_each_rule_that_a_scene_breaks_has_its_region_and_a_seed_decides_all() -> None:
    from benchmarks.logical.cutouts import CutOut
    from benchmarks.logical.scenes import LOGICAL, SIDE, STRUCTURAL, KitMaker

    random = np.random.default_rng(0)
    parts = {
        kind: [
            CutOut(random.integers(0, 120, (*size, 3), dtype=np.uint8), np.full(size, 255, np.uint8)) for _ in range(3)
        ]
        for kind, size in (("screw", (120, 30)), ("figure", (90, 60)), ("plate", (60, 70)))
    }
    first, second = KitMaker(parts, 5), KitMaker(parts, 5)
    assert np.array_equal(first.normal().image, second.normal().image)
    assert first.normal().regions == []
    for rule in LOGICAL:
        scene, same = first.logical(rule), KitMaker(parts, 5).logical(rule)
        assert scene.image.shape == (SIDE, SIDE, 3)
        assert len(scene.regions) == (2 if rule == "order-swapped" else 1)
        for mask, saturation in scene.regions:
            assert 0 < saturation <= mask.sum()
        assert same.regions[0][0].shape == (SIDE, SIDE)
    for kind in STRUCTURAL:
        ((mask, saturation),) = first.structural(kind).regions
        assert saturation == mask.sum()
        assert saturation > 5
