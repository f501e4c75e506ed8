"""Scores of training images as if they had not been in the fit, against brute force; and groups of near-duplicates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgead.detectors import base, create_detector
from edgead.detectors.base import Fit, assign_folds, fit_closed_form
from edgead.features.backbones import BackboneSpec, build_backbone
from edgead.features.coreset import greedy_coreset
from edgead.features.features import FeatureExtractor, build_extractor
from edgead.runtime.errors import DataError
from edgead.runtime.progress import silent

SIZE = (64, 64)
COUNT = 12

# Pictures of so many tiles, and which of them are near-duplicates: of unequal number, and not beside each other.
CASES: dict[str, tuple[int, Sequence[int] | None]] = {
    "images": (1, None),
    "groups": (1, [7, 1, 2, 2, 3, 9, 1, 4, 5, 6, 8, 1]),
    "pairs": (1, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]),
    "tiles": (3, None),
    "groups of tiles": (2, [4, 1, 2, 4, 0, 3]),
}


class Images:
    """Noise around one pattern."""

    def __init__(self, count: int = COUNT, seed: int = 0) -> None:
        pattern = np.random.default_rng(99).integers(40, 216, (*SIZE, 3))
        noise = np.random.default_rng(seed).integers(-20, 21, (count, *SIZE, 3))
        self.pixels = (pattern + noise * np.linspace(0.3, 1.0, count)[:, None, None, None]).astype(np.uint8)

    def __len__(self) -> int:
        return len(self.pixels)

    def batches(self, size: int) -> Iterator[NDArray[np.uint8]]:
        for start in range(0, len(self.pixels), size):
            yield self.pixels[start : start + size]

    def select(self, indices: Sequence[int]) -> Images:
        chosen = Images(0)
        chosen.pixels = self.pixels[list(indices)]
        return chosen


@pytest.fixture(scope="module")
def extractor() -> FeatureExtractor:
    return build_extractor(build_backbone(BackboneSpec(), SIZE), SIZE)


@pytest.fixture(params=["kept", "computed twice"])
def _features_are(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param != "kept":
        monkeypatch.setattr(base, "_KEPT_BYTES", 0)


def fit(
    extractor: FeatureExtractor, name: str, images: Images, case: str = "images", seed: int = 0, **more: Any
) -> Fit:
    tiles, groups = CASES[case]
    detector = create_detector(name, {"smooth": False, **more})
    return fit_closed_form(
        detector,
        images,
        extractor,
        seed=seed,
        progress=silent,
        batch=4,
        tiles=tiles,
        groups=None if groups is None else np.array(groups),
    )


def features(extractor: FeatureExtractor, images: Images) -> NDArray[np.float64]:
    """``(n, P, C)``"""
    with torch.inference_mode():
        return extractor(torch.from_numpy(images.pixels)).flatten(2).transpose(1, 2).double().numpy()


def members(case: str) -> NDArray[np.int64]:
    """Return the group ``(n,)`` of each image, tiles of a picture together."""
    tiles, groups = CASES[case]
    return np.repeat(np.arange(COUNT // tiles) if groups is None else np.array(groups), tiles)


def expect(fitted: Fit, case: str, maps: NDArray[np.float64], rtol: float) -> None:
    """Compare with the maps ``(n, P)`` of each image without its group: one score a group, of its worst picture."""
    tiles = CASES[case][0]
    own = maps.max(axis=1).reshape(-1, tiles).max(axis=1)
    levels = maps.mean(axis=1).reshape(-1, tiles).mean(axis=1)
    groups = members(case)[::tiles]
    worst = [max(np.flatnonzero(groups == group), key=own.__getitem__) for group in np.unique(groups)]
    assert fitted.scored.tolist() == sorted(worst)
    np.testing.assert_allclose(fitted.normal_scores, own[fitted.scored], rtol=rtol)
    np.testing.assert_allclose(fitted.normal_levels, levels[fitted.scored], rtol=rtol)


def without_padim(patches: NDArray[np.float64], groups: NDArray[np.int64], ridge: float) -> NDArray[np.float64]:
    """Fit every Gaussian anew for each group, by its definition: ``(n, P)``."""
    result = np.empty(patches.shape[:2])
    for group in np.unique(groups):
        rest, own = patches[groups != group], patches[groups == group]
        for p in range(patches.shape[1]):
            deviation = rest[:, p] - rest[:, p].mean(axis=0)
            covariance = deviation.T @ deviation / max(len(rest) - 1, 1) + ridge * np.eye(patches.shape[2])
            away = own[:, p] - rest[:, p].mean(axis=0)
            result[groups == group, p] = np.sqrt(np.einsum("nc,cd,nd->n", away, np.linalg.inv(covariance), away))
    return result


@pytest.mark.usefixtures("_features_are")
@pytest.mark.parametrize("case", CASES)
def test_padim_without_an_image_is_padim_fitted_without_it(extractor: FeatureExtractor, case: str) -> None:
    fitted = fit(extractor, "padim", Images(), case, dimensions=20)
    patches = features(fitted.module.extractor, Images())
    expect(fitted, case, without_padim(patches, members(case), 0.01), 1e-5)


@pytest.mark.parametrize("ridge", [1e-4, 0.01, 1.0])
@pytest.mark.parametrize("dimensions", [4, 30])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_padim_whether_images_or_dimensions_are_more(
    extractor: FeatureExtractor, seed: int, dimensions: int, ridge: float
) -> None:
    images = Images(seed=seed)
    fitted = fit(extractor, "padim", images, seed=seed, dimensions=dimensions, regularisation=ridge)
    expect(fitted, "images", without_padim(features(fitted.module.extractor, images), members("images"), ridge), 1e-4)


@pytest.mark.parametrize("count", [2, 3])
def test_padim_of_two_and_three_images(extractor: FeatureExtractor, count: int) -> None:
    images = Images(count)
    fitted = fit(extractor, "padim", images, dimensions=20)
    expected = without_padim(features(fitted.module.extractor, images), np.arange(count), 0.01)
    np.testing.assert_allclose(fitted.normal_scores, expected.max(axis=1), rtol=1e-4)


def bank_and_owners(
    patches: NDArray[np.float64], size: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    rows = patches.reshape(-1, patches.shape[2])
    chosen = greedy_coreset(torch.from_numpy(rows).float(), size, seed=seed).numpy()
    return rows[chosen], chosen // patches.shape[1]


@pytest.mark.usefixtures("_features_are")
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("bank_size", [200, 100_000])
@pytest.mark.parametrize("case", CASES)
def test_patchcore_without_an_image_has_the_bank_without_its_rows(
    extractor: FeatureExtractor, case: str, bank_size: int, seed: int
) -> None:
    images = Images(seed=seed)
    fitted = fit(extractor, "patchcore", images, case, seed=seed, bank_size=bank_size)
    patches, groups = features(extractor, images), members(case)
    bank, owners = bank_and_owners(patches, bank_size, seed)
    apart = np.linalg.norm(patches[:, :, None] - bank, axis=3)
    apart[groups[:, None, None] == np.broadcast_to(groups[owners], apart.shape)] = np.inf
    expect(fitted, case, apart.min(axis=2), 1e-4)


@pytest.mark.parametrize("neighbours", [3, 64])
def test_the_neighbourhood_of_the_weight_has_no_own_rows_either(extractor: FeatureExtractor, neighbours: int) -> None:
    fitted = fit(extractor, "patchcore", Images(), bank_size=200, reweight=True, neighbours=neighbours)
    patches = features(extractor, Images())
    bank, owners = bank_and_owners(patches, 200, 0)
    for image, queries in enumerate(patches):
        rest = bank[owners != image]
        apart = np.linalg.norm(queries[:, None] - rest, axis=2)
        worst = apart.min(axis=1).argmax()
        row = apart[worst].argmin()
        around = np.linalg.norm(rest - rest[row], axis=1).argsort(kind="stable")[:neighbours]
        exponents = np.exp(apart[worst, around] - apart[worst, row])
        assert fitted.normal_scores[image] == pytest.approx((1 - 1 / exponents.sum()) * apart[worst, row], rel=1e-3)


@pytest.mark.parametrize("bank_size", [1, 150])
def test_a_bank_of_few_rows_an_image_is_made_anew_for_each_fold(extractor: FeatureExtractor, bank_size: int) -> None:
    fitted = fit(extractor, "patchcore", Images(), bank_size=bank_size)
    patches, folds = features(extractor, Images()), assign_folds(COUNT, 0)
    for fold in range(5):
        bank = bank_and_owners(patches[folds != fold], bank_size, 0)[0]
        apart = np.linalg.norm(patches[folds == fold][:, :, None] - bank, axis=3)
        np.testing.assert_allclose(fitted.normal_scores[folds == fold], apart.min(axis=2).max(axis=1), rtol=1e-4)


# Groups, whatever the detector


@pytest.mark.parametrize("name", ["fre", "protoad", "npad"])
@pytest.mark.parametrize("case", CASES)
def test_folds_hold_groups_together(extractor: FeatureExtractor, name: str, case: str) -> None:
    fitted = fit(extractor, name, Images(), case)
    groups = members(case)[:: CASES[case][0]]
    assert np.array_equal(np.sort(groups[fitted.scored]), np.unique(groups))
    assert len(fitted.normal_levels) == len(fitted.scored)
    assert np.isfinite(fitted.normal_scores).all()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_fold_splits_a_group(seed: int) -> None:
    groups = np.random.default_rng(seed).integers(0, 14, 40)
    groups = np.unique(groups, return_inverse=True)[1]
    folds = assign_folds(40, seed, groups=groups)
    assert all(len(np.unique(folds[groups == group])) == 1 for group in groups)
    sizes = np.bincount(folds)
    assert len(sizes) == 5
    assert sizes.max() - sizes.min() <= np.bincount(groups).max()
    assert np.array_equal(assign_folds(40, seed, groups=np.arange(40)), assign_folds(40, seed))


@pytest.mark.parametrize("name", ["patchcore", "padim", "fre"])
def test_images_that_are_all_alike_give_no_threshold(extractor: FeatureExtractor, name: str) -> None:
    detector = create_detector(name)
    with pytest.raises(DataError, match="no near-duplicates"):
        fit_closed_form(detector, Images(3), extractor, seed=0, progress=silent, groups=np.array([5, 5, 5]))


def test_a_copy_of_an_odd_image_does_not_hide_it(extractor: FeatureExtractor) -> None:
    images = Images()
    images.pixels[3] = images.pixels[8] = 255 - images.pixels[3]
    groups = np.array([0, 1, 2, 3, 4, 5, 6, 7, 3, 8, 9, 10])
    for name in ("patchcore", "padim"):
        detector = create_detector(name)
        alone, together = (
            fit_closed_form(detector, images, extractor, seed=0, progress=silent, groups=one) for one in (None, groups)
        )
        assert len(together.normal_scores) == 11
        assert together.normal_scores.max() > 1.3 * alone.normal_scores.max()
