"""Greedy k-centre selection against the obvious algorithm in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgead.features.coreset import coverage_radius, greedy_coreset


def brute_force(patches: NDArray[np.float64], first: int, size: int) -> list[int]:
    """Take the row farthest from all rows taken so far, every distance computed anew."""
    taken = [first]
    while len(taken) < size:
        distances = np.linalg.norm(patches[:, None] - patches[None, taken], axis=2)
        taken.append(int(distances.min(axis=1).argmax()))
    return taken


def random_patches(kind: str) -> Tensor:
    random = np.random.default_rng(0)
    patches = random.normal(size=(300, 24))
    if kind == "off centre":
        patches += 50.0
    elif kind == "anisotropic":
        patches *= np.geomspace(10, 0.01, 24)
    elif kind == "few channels":
        patches = patches[:, :3]
    elif kind == "one channel":
        patches = patches[:, :1]
    elif kind == "clusters":
        patches = 0.01 * patches + 5.0 * random.normal(size=(7, 24))[random.integers(0, 7, 300)]
    return torch.from_numpy(patches.astype(np.float32))


@pytest.mark.parametrize("kind", ["plain", "off centre", "anisotropic", "few channels", "one channel"])
def test_selection_equals_brute_force(kind: str) -> None:
    patches = random_patches(kind)
    selected = greedy_coreset(patches, 60, seed=3)
    assert selected.dtype == torch.int64
    assert selected.tolist() == brute_force(patches.numpy().astype(np.float64), int(selected[0]), 60)


def test_tight_clusters_are_covered_as_well_to_rounding() -> None:
    # Clusters 2000 times tighter than their distance from the mean: float32 may prefer another of near equals.
    patches = random_patches("clusters")
    selected = greedy_coreset(patches, 60, seed=3)
    exact = patches[brute_force(patches.numpy().astype(np.float64), int(selected[0]), 60)]
    assert coverage_radius(patches, patches[selected]) <= 1.05 * coverage_radius(patches, exact)


def test_a_smaller_coreset_is_the_beginning_of_a_larger_one() -> None:
    patches = random_patches("plain")
    large = greedy_coreset(patches, 100, seed=1)
    for size in (1, 2, 37):
        assert torch.equal(greedy_coreset(patches, size, seed=1), large[:size])


@pytest.mark.parametrize("size", [300, 301, 10_000])
def test_a_size_of_all_rows_or_more_takes_each_row_once(size: int) -> None:
    assert greedy_coreset(random_patches("plain"), size, seed=0).tolist() == list(range(300))


def test_the_seed_decides_and_the_input_stays() -> None:
    patches = random_patches("plain")
    before = patches.clone()
    runs = [greedy_coreset(patches, 20, seed=seed).tolist() for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]
    assert torch.equal(patches, before)


def test_a_projection_selects_in_the_projected_space_only() -> None:
    patches = random_patches("anisotropic")
    exact = greedy_coreset(patches, 50, seed=0).tolist()
    assert greedy_coreset(patches, 50, seed=0, projection=24).tolist() == exact  # no fewer dimensions: no projection
    projected = greedy_coreset(patches, 50, seed=0, projection=4)
    assert projected.tolist() != exact
    assert len(set(projected.tolist())) == 50


def test_rows_that_are_all_alike_do_no_harm() -> None:
    patches = torch.ones(40, 12)
    patches[7] = 2.0
    selected = greedy_coreset(patches, 5, seed=0)
    assert 7 in selected
    assert coverage_radius(patches, patches[selected]) == 0.0


def test_coverage_radius_and_its_bound() -> None:
    patches = random_patches("plain")
    bank = patches[greedy_coreset(patches, 40, seed=0)]
    distances = np.linalg.norm(patches.numpy()[:, None].astype(np.float64) - bank.numpy()[None], axis=2)
    expected = distances.min(axis=1).max()
    for chunk in (8192, 7):
        assert coverage_radius(patches, bank, chunk=chunk) == pytest.approx(expected, rel=1e-5)
    # Farthest-first covers better than as many random rows do.
    chosen = torch.from_numpy(np.random.default_rng(0).choice(300, 40, replace=False))
    assert coverage_radius(patches, bank) < coverage_radius(patches, patches[chosen])


def test_progress_ends_complete() -> None:
    steps: list[tuple[str, int, int]] = []
    greedy_coreset(random_patches("plain"), 200, seed=0, progress=lambda *step: steps.append(step), stage="bank")
    assert [step[0] for step in steps] == ["bank"] * len(steps)
    assert steps[-1] == ("bank", 200, 200)
    assert [step[1] for step in steps] == sorted(step[1] for step in steps)
