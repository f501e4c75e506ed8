"""N-pad against plain float64 computations of its specification, its cheaper forms against its exact one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from edgead.data import load_images, open_category
from edgead.detectors import create_detector
from edgead.detectors.base import Collector, assign_folds, fit_closed_form
from edgead.detectors.feature_statistics import LocationStatistics, random_orthonormal, whiten
from edgead.detectors.heads import NPadHead
from edgead.export.graph.external_weights import split_weights
from edgead.export.graph.lint import lint
from edgead.export.graph.tracing import export_onnx
from edgead.export.ops.nodes import inline_nodes
from edgead.features.features import FeatureExtractor
from edgead.features.scoring import ScoringModule
from edgead.fitting import fit
from edgead.model.model import load_model
from edgead.runtime.backends import open_backend
from edgead.runtime.errors import ConfigError, DataError
from edgead.runtime.progress import silent

SEED = 3
COUNT = 11  # no multiple of the folds or of the batch
CHANNELS = 12
EVERY_PATCH = 60_000
# The paper's forms by themselves: features as they are, exact covariances with PaDiM's ridge, both distances alike.
PLAIN: dict[str, Any] = {"projection": "pca", "regularisation": 0.01, "rank": None, "centroid_weight": 1.0}


class Filters(nn.Module):
    """A backbone of one layer, so that an export takes a second."""

    def __init__(self, channels: int = CHANNELS) -> None:
        super().__init__()
        self.channels = (channels,)
        self.convolution = nn.Conv2d(3, channels, 8, stride=8)
        generator = torch.Generator().manual_seed(0)
        for parameter in self.convolution.parameters():
            parameter.requires_grad_(False).normal_(generator=generator)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (self.convolution((images.to(torch.float32).permute(0, 3, 1, 2) - 127.5) / 500.0),)


class Images:
    """Noise around one smooth pattern."""

    def __init__(self, count: int = COUNT, size: tuple[int, int] = (56, 72), seed: int = 0) -> None:
        pattern = gaussian_filter(np.random.default_rng(9).normal(size=(*size, 3)), (6, 6, 0))
        noise = np.random.default_rng(seed).normal(size=(count, *size, 3))
        self.pixels = np.clip(127 + 700 * pattern + 40 * noise, 0, 255).astype(np.uint8)

    def __len__(self) -> int:
        return len(self.pixels)

    def batches(self, size: int) -> Iterator[NDArray[np.uint8]]:
        for start in range(0, len(self.pixels), size):
            yield self.pixels[start : start + size]


def extractor(grid: tuple[int, int] = (7, 9), channels: int = CHANNELS) -> FeatureExtractor:
    return FeatureExtractor(Filters(channels), grid).eval()


def random_features(count: int, channels: int, grid: tuple[int, int], seed: int = 0, offset: float = 0.0) -> Tensor:
    """Correlated channels with another mean at each location, as real features have."""
    random = np.random.default_rng(seed)
    mixing = np.random.default_rng(77).normal(size=(channels, channels)) * np.geomspace(2, 0.05, channels)[:, None]
    means = np.random.default_rng(78).normal(size=(channels, *grid))
    values = np.einsum("nchw,cd->ndhw", random.normal(size=(count, channels, *grid)), mixing) + means + offset
    return torch.from_numpy(values.astype(np.float32))


def gather(features: Tensor, settings: dict[str, Any], name: str = "npad") -> tuple[Collector, NDArray[np.int64]]:
    count, channels, height, width = features.shape
    detector = create_detector(name, settings)
    plain = detector.extractor(extractor((height, width), channels), SEED)
    collector = detector.collector(count, plain, SEED)
    folds = assign_folds(count, SEED)
    for start in range(0, count, 4):
        collector.update(features[start : start + 4], folds[start : start + 4])
    return collector, folds


def head(features: Tensor, without: int | None = None, **settings: Any) -> NPadHead:
    made = gather(features, PLAIN | settings)[0].head(without, silent)
    assert isinstance(made, NPadHead)
    return made


def score(made: nn.Module, features: Tensor) -> NDArray[np.float64]:
    with torch.inference_mode():
        result: NDArray[np.float64] = made(features)[0].double().numpy()
    return result


# Plain float64 computations


def window_of(cell: tuple[int, int], grid: tuple[int, int], side: int) -> list[tuple[int, int]]:
    reach = side // 2
    rows = range(max(0, cell[0] - reach), min(grid[0], cell[0] + reach + 1))
    return [(i, j) for i in rows for j in range(max(0, cell[1] - reach), min(grid[1], cell[1] + reach + 1))]


def neighbours(features: NDArray[np.float64], cell: tuple[int, int], side: int) -> NDArray[np.float64]:
    """All features of all images in the window around a cell, ``(n k, C)``: what the code never copies together."""
    grid = (features.shape[2], features.shape[3])
    return np.concatenate([features[:, :, i, j] for i, j in window_of(cell, grid, side)])


def mahalanobis(
    queries: NDArray[np.float64], normals: NDArray[np.float64], side: int, search: int = 1
) -> NDArray[np.float64]:
    """``(n, gh, gw)``, each Gaussian from its materialised neighbours, inverted explicitly."""
    grid = (queries.shape[2], queries.shape[3])
    gaussians = {}
    for cell in np.ndindex(*grid):
        around = neighbours(normals, cell, side)
        covariance = np.cov(around, rowvar=False) + 0.01 * np.eye(around.shape[1])
        gaussians[cell] = (around.mean(axis=0), np.linalg.inv(covariance))
    result = np.empty((len(queries), *grid))
    for cell in np.ndindex(*grid):
        candidates = []
        for other in window_of(cell, grid, search):
            deviation = queries[:, :, cell[0], cell[1]] - gaussians[other][0]
            candidates.append(np.einsum("nc,cd,nd->n", deviation, gaussians[other][1], deviation))
        result[:, cell[0], cell[1]] = np.sqrt(np.min(candidates, axis=0))
    return result


def nearest(queries: NDArray[np.float64], bank: NDArray[np.float64]) -> NDArray[np.float64]:
    """``(n, gh, gw)``, distance to the nearest feature of ``bank (n, C, gh, gw)``."""
    rows = queries.transpose(0, 2, 3, 1)
    keys = bank.transpose(0, 2, 3, 1).reshape(-1, bank.shape[1])
    return np.array([np.linalg.norm(keys - row, axis=1).min() for row in rows.reshape(-1, rows.shape[-1])]).reshape(
        rows.shape[:3]
    )


# Gaussians of neighbourhoods


@pytest.mark.parametrize("grid", [(5, 7), (9, 3), (1, 4), (23, 11)])
@pytest.mark.parametrize("side", [1, 3, 5])
@pytest.mark.parametrize("dimensions", [None, 2])
def test_box_filtered_statistics_are_those_of_the_neighbours(
    grid: tuple[int, int], side: int, dimensions: int | None
) -> None:
    features = random_features(6, 5, grid, offset=40.0)
    statistics = LocationStatistics(3, grid[0] * grid[1], 5, torch.float64)
    rows, folds = features.flatten(2).transpose(1, 2), np.array([0, 1, 2, 0, 1, 1])
    for start in (0, 4):
        statistics.update(rows[start : start + 4], folds[start : start + 4])
    basis = None if dimensions is None else random_orthonormal(5, dimensions, 0)
    for used in ([0, 1, 2], [0, 2]):
        kept = features.double().numpy()[np.isin(folds, used)]
        if basis is not None:
            kept = np.einsum("nchw,cd->ndhw", kept, basis.numpy())
        seen = 0
        for part, means, covariances in statistics.window_gaussians(used, grid, side, basis):
            assert part.start == seen
            for place, mean, covariance in zip(range(part.start, part.stop), means, covariances, strict=True):
                around = neighbours(kept, (place // grid[1], place % grid[1]), side)
                np.testing.assert_allclose(mean, around.mean(axis=0), rtol=0, atol=1e-9)
                np.testing.assert_allclose(covariance, np.cov(around, rowvar=False), rtol=0, atol=1e-9)
            seen = part.stop
        assert seen == grid[0] * grid[1]


@pytest.mark.parametrize("settings", [{"dimensions": CHANNELS}, {"dimensions": 5, "projection": "select"}])
def test_without_window_and_centroids_it_is_padim(settings: dict[str, Any]) -> None:
    images, plain = Images(), extractor()
    common = {"smooth": True, "dimensions": settings["dimensions"]}
    ours = create_detector("npad", {**PLAIN, **settings, "smooth": True, "window": 1, "fusion": "mahalanobis"})
    results = [
        fit_closed_form(detector, images, plain, seed=SEED, progress=silent, batch=4)
        for detector in (ours, create_detector("padim", common))
    ]
    test = torch.from_numpy(Images(4, seed=1).pixels)
    with torch.inference_mode():
        maps = [result.module(test)[1].numpy() for result in results]
    np.testing.assert_allclose(maps[0], maps[1], rtol=1e-5)


@pytest.mark.parametrize("search", [1, 3])
@pytest.mark.parametrize("side", [1, 3])
def test_mahalanobis_map_is_the_specification(side: int, search: int) -> None:
    normals, test = random_features(9, 6, (5, 4)), 2.0 * random_features(3, 6, (5, 4), seed=1)
    made = head(normals, dimensions=6, window=side, evaluation_window=search, fusion="mahalanobis")
    expected = mahalanobis(test.double().numpy(), normals.double().numpy(), side, search)
    np.testing.assert_allclose(score(made, test), expected, rtol=1e-4)


def test_a_projection_is_one_orthonormal_map_before_everything() -> None:
    normals, test = random_features(9, 10, (5, 4)), random_features(2, 10, (5, 4), seed=1)
    settings = {"dimensions": 4, "window": 3, "fusion": "mahalanobis"}
    patches = normals.double().numpy().transpose(0, 2, 3, 1).reshape(-1, 10)
    leading = np.linalg.eigh(np.cov(patches, rowvar=False))[1][:, ::-1][:, :4]
    bases = {"pca": leading, "random": random_orthonormal(10, 4, SEED).numpy()}
    for projection, basis in bases.items():
        made = head(normals, projection=projection, **settings)
        assert made.projection is not None
        own = made.projection.double().numpy()
        np.testing.assert_allclose(own @ own.T, basis @ basis.T, atol=1e-5)  # the same subspace
        reduced = [np.einsum("nchw,cd->ndhw", part.double().numpy(), own) for part in (test, normals)]
        np.testing.assert_allclose(score(made, test), mahalanobis(*reduced, 3), rtol=1e-4)
    different = random_orthonormal(10, 4, SEED + 1).numpy()
    assert np.abs(different @ different.T - bases["random"] @ bases["random"].T).max() > 0.1


def test_whitening_gives_every_axis_about_one_variance() -> None:
    normals, test = random_features(9, 10, (5, 4)), random_features(2, 10, (5, 4), seed=1)
    made = head(normals, projection="whitened", dimensions=7, window=3, fusion="mahalanobis")
    assert made.projection is not None
    patches = normals.double().numpy().transpose(0, 2, 3, 1).reshape(-1, 10)
    variances = np.linalg.eigvalsh(np.cov(patches, rowvar=False))[::-1]
    own = made.projection.double().numpy()
    expected = np.diag(variances[:7] / (variances[:7] + variances.mean()))
    np.testing.assert_allclose(np.cov(patches @ own, rowvar=False), expected, atol=1e-4)
    reduced = [np.einsum("nchw,cd->ndhw", part.double().numpy(), own) for part in (test, normals)]
    np.testing.assert_allclose(score(made, test), mahalanobis(*reduced, 3), rtol=1e-3)


def test_what_changes_in_a_quiet_direction_counts_more_whitened() -> None:
    random = np.random.default_rng(0)
    spreads = np.array([10.0, 7.0, 5.0, 0.3, 0.3, 0.3])
    good = torch.from_numpy((random.normal(size=(20, 6, 6, 6)) * spreads[:, None, None]).astype(np.float32))
    defective = good[:5].clone()
    defective[:, 4, 2, 3] += 9.0  # thirty standard deviations, and less than one of the loudest direction
    rise = {}
    for projection in ("pca", "whitened"):
        made = head(good, projection=projection, dimensions=6, centroids=24, fusion="centroid")
        rise[projection] = score(made, defective)[:, 2, 3] / score(made, good[:5]).max(axis=(1, 2))
    assert (rise["whitened"] > 1.1 * rise["pca"]).all(), rise


def test_a_wide_backbone_is_projected_before_the_statistics() -> None:
    features = random_features(9, 40, (5, 4))
    made = head(features, dimensions=4, max_channels=16, centroids=8)
    assert made.projection is not None
    assert made.projection.shape == (40, 4)
    np.testing.assert_allclose(made.projection.T @ made.projection, np.eye(4), atol=1e-5)
    assert np.isfinite(score(made, features)).all()


# Fusion


def test_every_fusion_is_its_formula_on_held_out_scales() -> None:
    normals, test = random_features(10, 6, (4, 3)), random_features(3, 6, (4, 3), seed=1)
    exact, queries = normals.double().numpy(), test.double().numpy()
    settings = {"dimensions": 6, "centroids": EVERY_PATCH, "window": 3}
    expected = {"mahalanobis": mahalanobis(queries, exact, 3), "centroid": nearest(queries, exact)}
    expected["product"] = expected["mahalanobis"] * expected["centroid"]
    # Each normal judged by what was made without its fold.
    folds = assign_folds(10, SEED)
    held_out: list[list[NDArray[np.float64]]] = [[], []]
    for fold in range(5):
        inside, outside = exact[folds == fold], exact[folds != fold]
        held_out[0].append(mahalanobis(inside, outside, 3).ravel())
        held_out[1].append(nearest(inside, outside).ravel())
    values = [np.concatenate(part) for part in held_out]
    expected["zscore"] = sum(
        (expected[name] - value.mean()) / value.std(ddof=1)
        for name, value in zip(("mahalanobis", "centroid"), values, strict=True)
    )
    for fusion, wanted in expected.items():
        made = head(normals, fusion=fusion, **settings)
        np.testing.assert_allclose(score(made, test), wanted, rtol=1e-3, atol=1e-3)
        assert (made.gaussians is None) == (fusion == "centroid")
        assert (made.centroids is None) == (fusion == "mahalanobis")


@pytest.mark.parametrize("weight", [0.25, 3.0])
def test_the_distance_to_the_centroids_counts_as_much_as_its_weight_says(weight: float) -> None:
    normals, test = random_features(10, 6, (4, 3)), random_features(3, 6, (4, 3), seed=1)
    settings = {"dimensions": 6, "centroids": EVERY_PATCH}
    made, alike = head(normals, centroid_weight=weight, **settings), head(normals, **settings)
    assert made.zscore is not None
    assert alike.zscore is not None
    with torch.inference_mode():
        found = torch.stack(made.distances(test.flatten(2).transpose(1, 2), (4, 3)))
    scores = (found - alike.zscore[:, :1, None]) / alike.zscore[:, 1:, None]
    expected = (scores[0] + weight * scores[1]).reshape(-1, 4, 3)
    np.testing.assert_allclose(score(made, test), expected, rtol=1e-4, atol=1e-4)


def test_a_held_out_model_takes_its_scale_from_others_too() -> None:
    normals = random_features(10, 6, (4, 3))
    exact, folds = normals.double().numpy(), assign_folds(10, SEED)
    settings = {"dimensions": 6, "centroids": EVERY_PATCH, "window": 3}
    for fold, other in ((0, 1), (1, 0), (3, 2), (4, 0)):
        inside, outside = exact[folds == other], exact[(folds != fold) & (folds != other)]
        wanted = [(v.mean(), v.std(ddof=1)) for v in (mahalanobis(inside, outside, 3), nearest(inside, outside))]
        zscore = head(normals, without=fold, **settings).zscore
        assert zscore is not None
        np.testing.assert_allclose(zscore, wanted, rtol=1e-3)


def test_the_final_scale_is_the_same_after_the_held_out_models_as_alone() -> None:
    normals = random_features(10, 6, (4, 3))
    settings = {"dimensions": 4, "centroids": EVERY_PATCH}
    collector, folds = gather(normals, PLAIN | settings)
    for fold in range(folds.max() + 1):
        collector.head(fold, silent)
    alone, after = head(normals, **settings), collector.head(None, silent)
    assert alone.state_dict().keys() == after.state_dict().keys()
    for key, value in alone.state_dict().items():
        assert torch.equal(value, after.state_dict()[key]), key


def test_a_held_out_fold_has_no_part_in_its_model() -> None:
    normals = random_features(12, 6, (4, 3))
    folds = assign_folds(12, SEED)
    strange = normals.clone()
    strange[torch.from_numpy(folds == 2)] *= -3.0
    for settings in ({"projection": "random"}, {"projection": "pca", "centroids": EVERY_PATCH}):
        found = [
            head(features, without=2, **{"dimensions": 4, "centroids": 20, **settings}).state_dict()
            for features in (normals, strange)
        ]
        assert found[0].keys() == found[1].keys()
        for key, value in found[0].items():
            torch.testing.assert_close(value, found[1][key], rtol=1e-4, atol=1e-4, msg=key)
        whole = [head(features, dimensions=4, centroids=20).zscore for features in (normals, strange)]
        assert whole[0] is not None
        assert whole[1] is not None
        assert (whole[0] - whole[1]).abs().max() > 0.1  # the comparison above could have failed


def test_centroids_are_capped_and_cover_better_with_more() -> None:
    features = random_features(10, 6, (6, 5))
    spread = []
    for count in (1, 8, 64):
        made = head(features, dimensions=6, centroids=count, fusion="centroid")
        assert made.centroids is not None
        assert made.centroids.bank.shape == (count, 6)
        spread.append(score(made, features).mean())
    assert spread == sorted(spread, reverse=True)
    made = head(features, dimensions=6, centroids=EVERY_PATCH, fusion="centroid")
    assert made.centroids is not None
    assert made.centroids.bank.shape == (300, 6)
    assert score(made, features).max() < 1e-2
    limited = head(features, dimensions=6, centroids=EVERY_PATCH, max_patches=50, fusion="centroid")
    assert limited.centroids is not None
    assert limited.centroids.bank.shape == (50, 6)


# What it is for


def shifted(count: int, reach: int, seed: int) -> Tensor:
    """Maps of one smooth part, moved by up to ``reach`` cells, each with its own noise."""
    channels, side, margin = 6, 15, 4
    part = gaussian_filter(
        np.random.default_rng(5).normal(size=(channels, side + 2 * margin, side + 2 * margin)), (0, 2, 2)
    )
    part /= part.std()
    random = np.random.default_rng(seed)
    maps = []
    for _ in range(count):
        down, right = margin + random.integers(-reach, reach + 1, 2)
        maps.append(
            part[:, down : down + side, right : right + side] + 0.3 * random.normal(size=(channels, side, side))
        )
    return torch.from_numpy(np.stack(maps).astype(np.float32))


def test_a_window_forgives_parts_that_lie_elsewhere() -> None:
    normals, moved = shifted(100, 0, seed=1), shifted(200, 2, seed=2)
    above = {}  # share of pairs in which the moved part scores higher than the other, which its model has not seen
    for window, search in ((1, 1), (3, 1), (3, 3)):
        settings = {"dimensions": 6, "window": window, "evaluation_window": search, "fusion": "mahalanobis"}
        collector, folds = gather(normals, settings)
        plain = extractor((15, 15), 6)
        models = {k: ScoringModule(plain, collector.head(k, silent), smooth=False) for k in (0, 1, 2, 3, 4, None)}
        with torch.inference_mode():
            own = [models[int(fold)].score_features(one[None])[0] for one, fold in zip(normals, folds, strict=True)]
            score = models[None].score_features(moved)[0]
        above[window, search] = float((score[:, None] > torch.cat(own)).double().mean())
    assert above[3, 1] < above[1, 1] - 0.02
    assert above[3, 3] < above[3, 1]


# Cheaper forms


def test_whitening_is_stored_packed_and_halved() -> None:
    features, test = random_features(30, 16, (5, 4)), random_features(5, 16, (5, 4), seed=1)
    settings = {"dimensions": 16, "fusion": "mahalanobis"}
    whole, half = (head(features, storage=storage, **settings) for storage in ("fp32", "fp16"))
    for made, dtype in ((whole, torch.float32), (half, torch.float16)):
        packed = made.state_dict()["gaussians.form.packed"]
        assert (packed.shape, packed.dtype) == ((20, 16 * 17 // 2), dtype)
        assert sum(value.numel() for value in made.state_dict().values()) == packed.numel() + 20 * 16 + 2
    exact, rounded = score(whole, test), score(half, test)
    error = np.abs(rounded - exact).max() / exact.mean()
    assert 1e-6 < error < 2e-3


@pytest.mark.parametrize("rank", [1, 4, 15])
def test_low_rank_is_its_formula(rank: int) -> None:
    normals, test = random_features(30, 16, (3, 2)), random_features(4, 16, (3, 2), seed=1)
    made = head(normals, dimensions=16, fusion="mahalanobis", rank=rank)
    expected = np.empty((4, 3, 2))
    for cell in np.ndindex(3, 2):
        around = neighbours(normals.double().numpy(), cell, 3)
        variances, axes = np.linalg.eigh(np.cov(around, rowvar=False) + 0.01 * np.eye(16))
        variances, axes = variances[::-1], axes[:, ::-1]
        deviation = test.double().numpy()[:, :, cell[0], cell[1]] - around.mean(axis=0)
        along = (deviation @ axes) ** 2
        kept = (along[:, :rank] / variances[:rank]).sum(axis=1)
        expected[:, cell[0], cell[1]] = np.sqrt(kept + along[:, rank:].sum(axis=1) / variances[rank:].mean())
    np.testing.assert_allclose(score(made, test), expected, rtol=1e-3)


def test_low_rank_comes_closer_with_rank_and_ends_exact() -> None:
    normals, test = random_features(30, 16, (3, 2)), random_features(4, 16, (3, 2), seed=1)
    settings: dict[str, Any] = {"dimensions": 16, "fusion": "mahalanobis"}
    exact = score(head(normals, **settings), test)
    errors = [np.abs(score(head(normals, rank=rank, **settings), test) / exact - 1).mean() for rank in (2, 8, 15, 16)]
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < 1e-3  # all but one direction kept: that one is exact as well
    assert errors[3] == 0.0
    half = score(head(normals, rank=8, storage="fp16", **settings), test)
    np.testing.assert_allclose(half, score(head(normals, rank=8, **settings), test), rtol=1e-2)
    stored = head(normals, rank=8, **settings).state_dict()
    assert stored["gaussians.form.factors"].shape == (6, 8, 16)


# Numbers that go wrong


def test_the_condition_number_is_that_of_the_worst_covariance() -> None:
    normals = random_features(30, 6, (3, 2))
    made = head(normals, dimensions=6, window=1, fusion="mahalanobis")
    worst = max(
        np.linalg.cond(np.cov(neighbours(normals.double().numpy(), cell, 1), rowvar=False) + 0.01 * np.eye(6))
        for cell in np.ndindex(3, 2)
    )
    assert float(made.condition) == pytest.approx(worst, rel=1e-3)
    assert float(made.jitter) == 0.0


def test_a_covariance_that_rounding_broke_gets_jitter() -> None:
    broken = torch.tensor([[1e8, 1e8], [1e8, 1e8 - 0.5]], dtype=torch.float64)
    healthy = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    whitening, jitter = whiten(torch.stack([healthy, broken]))
    torch.testing.assert_close(whitening[0].T @ whitening[0], torch.linalg.inv(healthy))
    assert torch.isfinite(whitening).all()
    assert 0.0 < jitter < 1e3
    assert whiten(healthy[None])[1] == 0.0


@pytest.mark.parametrize("settings", [{}, {"rank": 2}, {"fusion": "centroid"}, {"projection": "random"}])
def test_features_that_are_not_finite_are_named(settings: dict[str, Any]) -> None:
    normals = random_features(10, 6, (4, 3))
    normals[7, 2, 1, 1] = float("nan")
    with pytest.raises(DataError, match="NaN or infinite"):
        head(normals, **{"dimensions": 4, "centroids": 10, **settings})


def test_half_precision_that_overflows_is_refused() -> None:
    with pytest.raises(ConfigError, match="raise regularisation"):
        head(torch.ones(10, 4, 3, 3), dimensions=4, storage="fp16", regularisation=1e-12)


@pytest.mark.parametrize("count", [2, 3, 6])
def test_few_or_equal_images_give_finite_scores(count: int) -> None:
    for features in (random_features(count, 6, (4, 3)), torch.ones(count, 6, 4, 3)):
        collector, folds = gather(features, {"dimensions": 4, "centroids": 5})
        for without in (*range(folds.max() + 1), None):
            assert np.isfinite(score(collector.head(without, silent), features)).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 2}, "odd"),
        ({"evaluation_window": "4"}, "odd"),
        ({"fusion": "sum"}, "setting 'fusion'"),
        ({"storage": "int8"}, "setting 'storage'"),
        ({"centroid": 5}, "Did you mean 'centroids'?"),
    ],
)
def test_a_wrong_setting_is_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        create_detector("npad", settings)
    assert "\n" not in str(caught.value)


# To the device


FORMS: Sequence[dict[str, Any]] = (
    {},
    {"rank": 4},
    {"projection": "pca", "rank": None},
    {"storage": "fp16", "evaluation_window": 3},
    {"rank": 4, "storage": "fp16", "projection": "random", "fusion": "mahalanobis"},
    {"projection": "select", "fusion": "product"},
)


@pytest.mark.parametrize("settings", FORMS)
def test_every_form_exports_clean_and_scores_alike(settings: dict[str, Any], tmp_path: Path) -> None:
    detector = create_detector("npad", {"dimensions": 8, "centroids": 30, **settings})
    module = fit_closed_form(detector, Images(), extractor(), seed=SEED, progress=silent).module
    traced = export_onnx(module, 56, 72)
    assert lint(traced) == []
    model = inline_nodes(traced)
    assert not {node.op_type for node in model.graph.node} & {"Shape", "Expand", "ScatterND", "Where", "Identity"}
    onnx.save(model, tmp_path / "model.onnx")
    test = Images(5, seed=1).pixels
    with torch.inference_mode():
        expected = [value.numpy() for value in module(torch.from_numpy(test))]
    for backend in ("onnxruntime", "openvino"):
        found = open_backend(backend, tmp_path / "model.onnx", threads=1, batch=0).run(test)
        assert np.abs(found.score - expected[0]).max() < 1e-4
        assert np.abs(found.map - expected[1]).max() < 1e-4


def test_half_storage_halves_what_is_shipped() -> None:
    normals, plain, sizes = random_features(6, 64, (12, 12)), extractor((12, 12), 64), {}
    for storage in ("fp32", "fp16"):
        module = ScoringModule(plain, head(normals, dimensions=64, storage=storage, fusion="mahalanobis"))
        data, files = split_weights(export_onnx(module.eval(), 96, 96))
        sizes[storage] = sum(map(len, files.values()))
        assert len(data) < 1 << 20
    assert sizes == {"fp32": 144 * 64 * 64 * 4, "fp16": 144 * 64 * 64 * 2}


@pytest.mark.parametrize(
    "settings", [{}, {"storage": "fp16"}, {"rank": 3, "projection": "select", "fusion": "product"}]
)
def test_a_saved_model_scores_the_same(settings: dict[str, Any], plate: Path, tmp_path: Path) -> None:
    model = fit([plate], detector="npad", settings={"dimensions": 8, "centroids": 16, **settings}, size=64)
    model.save(tmp_path / "m")
    loaded = load_model(tmp_path / "m")
    images = torch.from_numpy(np.stack(list(load_images(open_category(plate, train_only=True).train, 64, 64)))[:3])
    with torch.inference_mode():
        assert torch.equal(model.module(images)[1], loaded.module(images)[1])
