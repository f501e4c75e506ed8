"""The closed-form detectors against plain float64 computations of what they are defined to be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import nn

from edgead.detectors import REGISTRY, create_detector
from edgead.detectors.base import Fit, assign_folds, fit_closed_form
from edgead.detectors.patchcore import NearestNeighbourHead
from edgead.features.backbones import BackboneSpec, build_backbone
from edgead.features.coreset import greedy_coreset
from edgead.features.features import FeatureExtractor, build_extractor
from edgead.features.scoring import GaussianSmoothing, ScoringModule
from edgead.runtime.errors import ConfigError
from edgead.runtime.progress import silent

SIZE = (64, 64)
COUNT = 11  # no multiple of the folds or of the batch
SEED = 5
EVERYTHING = {"bank_size": 10_000, "smooth": False}


class Images:
    """Noise around one pattern, so that images resemble each other as parts do; ``outlier`` shows another one."""

    def __init__(self, count: int = COUNT, outlier: int | None = None, seed: int = 0) -> None:
        pattern, other = np.random.default_rng(99).integers(40, 216, (2, *SIZE, 3))
        noise = np.random.default_rng(seed).integers(-12, 13, (count, *SIZE, 3))
        self.pixels = np.stack([(other if i == outlier else pattern) + noise[i] for i in range(count)]).astype(np.uint8)

    def __len__(self) -> int:
        return len(self.pixels)

    def batches(self, size: int) -> Iterator[NDArray[np.uint8]]:
        for start in range(0, len(self.pixels), size):
            yield self.pixels[start : start + size]


@pytest.fixture(scope="module")
def extractor() -> FeatureExtractor:
    return build_extractor(build_backbone(BackboneSpec(), SIZE), SIZE)


def fit(extractor: FeatureExtractor, name: str, images: Images, **settings: Any) -> Fit:
    return fit_closed_form(create_detector(name, settings), images, extractor, seed=SEED, progress=silent, batch=4)


def features(extractor: FeatureExtractor, images: Images) -> NDArray[np.float64]:
    """``(n, P, C)``, from the images one by one."""
    with torch.inference_mode():
        maps = [extractor(torch.from_numpy(image[None])) for image in images.pixels]
    return torch.cat(maps).flatten(2).transpose(1, 2).double().numpy()


def run(module: nn.Module, images: Images) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    with torch.inference_mode():
        score, grid = module(torch.from_numpy(images.pixels))
    return score.double().numpy(), grid.double().numpy()


def nearest(queries: NDArray[np.float64], bank: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.stack([np.linalg.norm(bank - query, axis=1).min() for query in queries.reshape(-1, queries.shape[-1])])


def mahalanobis(queries: NDArray[np.float64], normals: NDArray[np.float64]) -> NDArray[np.float64]:
    """PaDiM as the paper writes it, with an explicit inverse at each location: ``(n, P)``."""
    result = np.empty(queries.shape[:2])
    for p in range(normals.shape[1]):
        mean = normals[:, p].mean(axis=0)
        covariance = np.cov(normals[:, p], rowvar=False) + 0.01 * np.eye(normals.shape[2])
        deviation = queries[:, p] - mean
        result[:, p] = np.sqrt(np.einsum("nc,cd,nd->n", deviation, np.linalg.inv(covariance), deviation))
    return result


# PatchCore


def test_patchcore_is_the_distance_to_the_nearest_training_patch(extractor: FeatureExtractor) -> None:
    model = fit(extractor, "patchcore", Images(), **EVERYTHING).module
    test = Images(3, outlier=2, seed=1)
    score, grid = run(model, test)
    queries = features(extractor, test)
    expected = nearest(queries, features(extractor, Images()).reshape(-1, queries.shape[2])).reshape(3, -1)
    np.testing.assert_allclose(grid.reshape(3, -1), expected, rtol=1e-4)
    np.testing.assert_allclose(score, expected.max(axis=1), rtol=1e-4)


@pytest.mark.parametrize("offset", [0.0, 30.0])
@pytest.mark.parametrize("rows", [1, 2, 500])
def test_the_head_equals_brute_force_whatever_the_bank(rows: int, offset: float) -> None:
    random = np.random.default_rng(0)
    bank = (random.normal(size=(rows, 40)) + offset).astype(np.float32)
    queries = (random.normal(size=(2, 40, 6, 5)) + offset).astype(np.float32)
    grid, weight = NearestNeighbourHead(torch.from_numpy(bank))(torch.from_numpy(queries))
    assert weight is None
    expected = nearest(queries.transpose(0, 2, 3, 1).astype(np.float64), bank.astype(np.float64))
    np.testing.assert_allclose(grid.numpy().ravel(), expected, rtol=1e-4)


def test_the_bank_is_the_coreset_of_the_training_patches(extractor: FeatureExtractor) -> None:
    model = fit(extractor, "patchcore", Images(), bank_size=50).module
    patches = torch.from_numpy(features(extractor, Images())).flatten(0, 1).float()
    expected = patches[greedy_coreset(patches, 50, seed=SEED)]
    torch.testing.assert_close(model.head.bank, expected, rtol=1e-4, atol=1e-4)


def test_a_sample_of_patches_is_drawn_from_all_images(extractor: FeatureExtractor) -> None:
    model = fit(extractor, "patchcore", Images(), max_patches=200, bank_size=200).module
    patches = features(extractor, Images())
    distance = np.linalg.norm(model.head.bank.double().numpy()[:, None, None] - patches[None], axis=3)
    owners = distance.reshape(200, -1).argmin(axis=1)
    assert distance.reshape(200, -1).min(axis=1).max() < 1e-3
    assert len(set(owners)) == 200
    assert set(owners // patches.shape[1]) == set(range(COUNT))


@pytest.mark.parametrize("neighbours", [3, 9])
def test_reweighting_is_equation_7(extractor: FeatureExtractor, neighbours: int) -> None:
    settings = {"bank_size": 60, "smooth": False, "reweight": True, "neighbours": neighbours}
    model = fit(extractor, "patchcore", Images(), **settings).module
    test = Images(3, outlier=2, seed=1)
    score, grid = run(model, test)
    bank = model.head.bank.double().numpy()
    for image, queries in enumerate(features(extractor, test)):
        distances = np.linalg.norm(queries[:, None] - bank[None], axis=2)
        worst = distances.min(axis=1).argmax()
        row = distances[worst].argmin()
        around = np.linalg.norm(bank - bank[row], axis=1).argsort(kind="stable")[:neighbours]
        exponents = np.exp(distances[worst, around] - distances[worst, around].max())
        own = np.exp(distances[worst, row] - distances[worst, around].max())
        assert score[image] == pytest.approx((1 - own / exponents.sum()) * distances[worst, row], rel=1e-3)
        assert grid[image].max() == pytest.approx(distances[worst, row], rel=1e-4)  # the map keeps its scale


def test_reweighting_with_fewer_rows_than_neighbours(extractor: FeatureExtractor) -> None:
    model = fit(extractor, "patchcore", Images(), bank_size=4, reweight=True, neighbours=9).module
    assert np.isfinite(run(model, Images(2))[0]).all()


# PaDiM


def test_padim_is_the_mahalanobis_distance_at_each_location(extractor: FeatureExtractor) -> None:
    model = fit(extractor, "padim", Images(), dimensions=20, smooth=False).module
    test = Images(3, outlier=2, seed=1)
    score, grid = run(model, test)
    expected = mahalanobis(features(model.extractor, test), features(model.extractor, Images()))
    np.testing.assert_allclose(grid.reshape(3, -1), expected, rtol=1e-5)
    np.testing.assert_allclose(score, expected.max(axis=1), rtol=1e-5)


def test_padim_takes_a_seeded_selection_of_the_features(extractor: FeatureExtractor) -> None:
    everything = features(extractor, Images(2))
    chosen = []
    for seed in (0, 0, 1):
        reduced = create_detector("padim", {"dimensions": 20}).extractor(extractor, seed)
        assert reduced.channels == 20
        part = features(reduced, Images(2))
        distance = np.abs(part[..., :, None] - everything[..., None, :]).max(axis=(0, 1))
        assert distance.min(axis=1).max() < 1e-4 * np.abs(everything).max()  # selecting first or last is the same
        chosen.append(distance.argmin(axis=1).tolist())
        assert chosen[-1] == sorted(set(chosen[-1]))
    assert chosen[0] == chosen[1] != chosen[2]


def test_padim_keeps_all_channels_where_there_are_no_more(extractor: FeatureExtractor) -> None:
    assert create_detector("padim", {"dimensions": 4000}).extractor(extractor, 0) is extractor


# Every closed-form detector


SMALL: dict[str, dict[str, Any]] = {"patchcore": {"bank_size": 256}, "padim": {"dimensions": 16}}


@pytest.mark.parametrize("name", SMALL)
def test_an_odd_training_image_is_scored_as_one_that_was_not_seen(name: str, extractor: FeatureExtractor) -> None:
    images = Images(outlier=3)
    fitted = fit(extractor, name, images, **SMALL[name])
    rest = np.delete(fitted.normal_scores, 3)
    assert fitted.normal_scores[3] > 1.3 * rest.max()
    # The final model knows it, which is why its own scores would make a threshold that is too low.
    assert run(fitted.module, images)[0][3] < 0.7 * fitted.normal_scores[3]


@pytest.mark.parametrize("name", SMALL)
def test_two_images_are_enough(name: str, extractor: FeatureExtractor) -> None:
    fitted = fit(extractor, name, Images(2), **SMALL[name])
    assert np.isfinite(fitted.normal_scores).all()
    assert np.isfinite(run(fitted.module, Images(3))[0]).all()


@pytest.mark.parametrize("name", SMALL)
def test_a_score_depends_on_its_image_alone(name: str, extractor: FeatureExtractor) -> None:
    model = fit(extractor, name, Images(), **SMALL[name]).module
    images = Images(5)
    together = run(model, images)
    for index in range(5):
        with torch.inference_mode():
            score, grid = model(torch.from_numpy(images.pixels[index : index + 1]))
        np.testing.assert_allclose(score.numpy()[0], together[0][index], rtol=1e-5)
        np.testing.assert_allclose(grid.numpy()[0], together[1][index], rtol=1e-4, atol=1e-4 * together[1].max())


@pytest.mark.parametrize("name", SMALL)
def test_the_same_seed_gives_the_same_model(name: str, extractor: FeatureExtractor) -> None:
    first, second = (fit(extractor, name, Images(), **SMALL[name]) for _ in range(2))
    assert np.array_equal(first.normal_scores, second.normal_scores)
    for (key, value), other in zip(first.module.state_dict().items(), second.module.state_dict().values(), strict=True):
        assert torch.equal(value, other), key


@pytest.mark.parametrize("name", SMALL)
def test_progress_of_each_stage_ends_complete(name: str, extractor: FeatureExtractor) -> None:
    stages: dict[str, tuple[int, int]] = {}
    detector = create_detector(name, SMALL[name])

    def progress(stage: str, done: int, total: int) -> None:
        assert done >= stages.get(stage, (0, 0))[0]
        stages[stage] = (done, total)

    fit_closed_form(detector, Images(), extractor, seed=SEED, progress=progress, batch=4)
    assert stages["features"] == stages["held-out scores"] == (COUNT, COUNT)
    assert all(done == total for done, total in stages.values())


@pytest.mark.parametrize(("count", "folds"), [(2, 2), (4, 4), (5, 5), (11, 5), (80, 5)])
def test_folds_are_balanced_and_seeded(count: int, folds: int) -> None:
    sizes = np.bincount(assign_folds(count, 0))
    assert len(sizes) == folds
    assert sizes.sum() == count
    assert sizes.max() - sizes.min() <= 1
    assert np.array_equal(assign_folds(count, 7), assign_folds(count, 7))
    assert count < 11 or not np.array_equal(assign_folds(count, 0), assign_folds(count, 1))


# The scoring module


@pytest.mark.parametrize(("shape", "sigma"), [((32, 32), 0.5), ((56, 56), 0.875), ((8, 8), 0.125), ((24, 40), 2.0)])
def test_smoothing_is_scipys_gaussian(shape: tuple[int, int], sigma: float) -> None:
    maps = np.random.default_rng(0).random((2, *shape)).astype(np.float32)
    smooth = GaussianSmoothing(sigma)
    assert smooth.radius >= 3 * sigma  # what is cut off is below 0.3 % of the weight
    expected = [gaussian_filter(one.astype(np.float64), sigma, mode="mirror", radius=smooth.radius) for one in maps]
    np.testing.assert_allclose(smooth(torch.from_numpy(maps)).numpy(), np.stack(expected), atol=1e-6)


@pytest.mark.parametrize("smooth", [True, False])
def test_the_score_is_the_largest_cell_of_the_map_that_comes_out(extractor: FeatureExtractor, smooth: bool) -> None:
    raw = fit(extractor, "patchcore", Images(), bank_size=64, smooth=False).module
    model = ScoringModule(extractor, raw.head, smooth=smooth).eval()
    score, grid = run(model, Images(3))
    assert np.array_equal(score, grid.max(axis=(1, 2)))
    plain = run(raw, Images(3))[1]
    sigma = 4 * extractor.grid[0] / 256
    expected = [gaussian_filter(one, sigma, mode="mirror", radius=1) for one in plain] if smooth else plain
    np.testing.assert_allclose(grid, expected, rtol=1e-5)


# Names and settings


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("patchcor", {}, "Did you mean 'patchcore'?"),
        ("xyz", {}, "Known: "),
        ("patchcore", {"bank_sise": 4}, "Did you mean 'bank_size'?"),
        ("padim", {"bank_size": 4}, "detector 'padim' has no setting 'bank_size'"),
        ("patchcore", {"bank_size": "0"}, "setting 'bank_size' of detector 'patchcore'"),
        ("patchcore", {"bank_size": "many"}, "'many'"),
        ("padim", {"regularisation": 0.0}, "setting 'regularisation'"),
        ("padim", {"regularisation": "nan"}, "setting 'regularisation'"),
        ("padim", {"regularisation": "inf"}, "setting 'regularisation'"),
        ("patchcore", {"reweight": "perhaps"}, "setting 'reweight'"),
    ],
)
def test_a_wrong_name_or_setting_is_one_line(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        create_detector(name, settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_settings_come_as_text_from_the_command_line() -> None:
    settings = create_detector("patchcore", {"bank_size": "128", "reweight": "true", "projection": "32"}).settings
    assert (settings.bank_size, settings.reweight, settings.projection) == (128, True, 32)


@pytest.mark.parametrize("name", REGISTRY)
def test_every_registered_name_is_the_detectors_own(name: str) -> None:
    assert create_detector(name).name == name


def test_a_selection_may_leave_out_a_whole_tap(extractor: FeatureExtractor) -> None:
    first = extractor.backbone.channels[0]
    images = torch.from_numpy(Images(2).pixels)
    with torch.inference_mode():
        whole = extractor(images)
        for kept in ([0, first - 1], [first, first + 3]):
            torch.testing.assert_close(extractor.select(np.array(kept))(images), whole[:, kept])
