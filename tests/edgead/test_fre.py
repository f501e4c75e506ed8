"""FRE against plain float64 computations, local and global."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgead.data import load_images, open_category
from edgead.detectors import create_detector
from edgead.detectors.base import assign_folds, fit_closed_form
from edgead.detectors.fre import ResidualHead
from edgead.export.graph.lint import lint
from edgead.export.graph.tracing import export_onnx
from edgead.features.features import FeatureExtractor, build_extractor
from edgead.fitting import fit
from edgead.model.model import load_model
from edgead.runtime.backends import open_backend
from edgead.runtime.errors import ConfigError, DataError
from edgead.runtime.progress import silent

SEED = 3
COUNT = 11  # no multiple of the folds or of the batch
CHANNELS = 10


class Filters(nn.Module):
    """A backbone of two layers, so that an export takes a second."""

    def __init__(self) -> None:
        super().__init__()
        self.channels = (CHANNELS, 6)
        self.fine, self.coarse = nn.Conv2d(3, CHANNELS, 8, stride=8), nn.Conv2d(CHANNELS, 6, 2, stride=2)
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            parameter.requires_grad_(False).normal_(generator=generator)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        fine = self.fine((images.to(torch.float32).permute(0, 3, 1, 2) - 127.5) / 500.0)
        return fine, self.coarse(fine)


class Images:
    """Noise around one pattern; ``outlier`` shows another."""

    def __init__(self, count: int = COUNT, seed: int = 0, outlier: int | None = None) -> None:
        pattern, other = np.random.default_rng(9).integers(60, 196, (2, 64, 64, 3))
        noise = np.random.default_rng(seed).integers(-30, 31, (count, 64, 64, 3))
        self.pixels = np.stack([(other if i == outlier else pattern) + noise[i] for i in range(count)]).astype(np.uint8)

    def __len__(self) -> int:
        return len(self.pixels)

    def batches(self, size: int) -> Iterator[NDArray[np.uint8]]:
        for start in range(0, len(self.pixels), size):
            yield self.pixels[start : start + size]


def small() -> FeatureExtractor:
    return FeatureExtractor(Filters(), (8, 8)).eval()


def random_features(count: int, seed: int = 0, grid: tuple[int, int] = (3, 5)) -> Tensor:
    random = np.random.default_rng(seed)
    mixing = np.random.default_rng(77).normal(size=(CHANNELS, CHANNELS)) * np.geomspace(3, 0.05, CHANNELS)[:, None]
    means = np.random.default_rng(78).normal(size=(CHANNELS, *grid)) + 20.0
    values = np.einsum("nchw,cd->ndhw", random.normal(size=(count, CHANNELS, *grid)), mixing) + means
    return torch.from_numpy(values.astype(np.float32))


def head(features: Tensor, without: int | None = None, **settings: Any) -> ResidualHead:
    detector = create_detector("fre", settings)
    # The features are given as they are to be used, so the extractor is not adapted.
    plain = FeatureExtractor(Filters(), (features.shape[2], features.shape[3]))
    plain.channels = features.shape[1]
    collector = detector.collector(len(features), plain, SEED)
    folds = assign_folds(len(features), SEED)
    for start in range(0, len(features), 4):
        collector.update(features[start : start + 4], folds[start : start + 4])
    made = collector.head(without, silent)
    assert isinstance(made, ResidualHead)
    return made


def score(made: nn.Module, features: Tensor) -> NDArray[np.float64]:
    with torch.inference_mode():
        result: NDArray[np.float64] = made(features)[0].double().numpy()
    return result


def local_residual(queries: NDArray[np.float64], normals: NDArray[np.float64], kept: int) -> NDArray[np.float64]:
    mean = normals.mean(axis=0)
    patches = (normals - mean).transpose(0, 2, 3, 1).reshape(-1, CHANNELS)
    axes = np.linalg.svd(patches, full_matrices=False)[2][:kept].T
    deviation = (queries - mean).transpose(0, 2, 3, 1)
    return ((deviation - deviation @ axes @ axes.T) ** 2).sum(axis=3)


def global_residual(queries: NDArray[np.float64], normals: NDArray[np.float64], kept: int) -> NDArray[np.float64]:
    mean = normals.mean(axis=0)
    axes = np.linalg.svd((normals - mean).reshape(len(normals), -1), full_matrices=False)[2][:kept].T
    deviation = (queries - mean).reshape(len(queries), -1)
    residual = (deviation - deviation @ axes @ axes.T).reshape(queries.shape)
    return (residual**2).sum(axis=1)


RESIDUALS = {"local": local_residual, "global": global_residual}


@pytest.mark.parametrize("variant", RESIDUALS)
@pytest.mark.parametrize("components", [1, 3, 4, 9])
def test_map_is_the_squared_residual_of_the_principal_subspace(variant: str, components: int) -> None:
    normals, test = random_features(14), random_features(3, seed=1)
    made = head(normals, variant=variant, components=components)
    expected = RESIDUALS[variant](test.double().numpy(), normals.double().numpy(), components)
    np.testing.assert_allclose(score(made, test), expected, rtol=2e-3, atol=1e-4)


def test_local_keeps_the_least_components_that_hold_the_variance() -> None:
    normals = random_features(14)
    patches = (normals - normals.mean(0)).double().numpy().transpose(0, 2, 3, 1).reshape(-1, CHANNELS)
    share = np.cumsum(np.linalg.svd(patches)[1] ** 2)
    share /= share[-1]
    for variance in (0.5, 0.9, 0.999):
        kept = int((share < variance).sum()) + 1
        made = head(normals, variance=variance)
        size = made.kept.shape[1] if made.kept is not None else CHANNELS - _columns(made.rest)
        assert size == kept


def _columns(basis: Tensor | None) -> int:
    assert basis is not None
    return basis.shape[1]


@pytest.mark.parametrize(("components", "expected"), [(1, "kept"), (3, "kept"), (4, "rest"), (9, "rest")])
def test_local_takes_the_cheaper_of_two_equal_forms(components: int, expected: str) -> None:
    made = head(random_features(14), components=components)
    assert [name for name in ("kept", "rest") if name in made.state_dict()] == [expected]


def test_the_subspace_never_takes_all() -> None:
    local = head(random_features(14), components=500)
    assert _columns(local.rest) == 1
    normals = random_features(6)
    whole = head(normals, variant="global")  # the paper's 220, of which six images have five
    assert _columns(whole.kept) == 5
    assert score(whole, normals).max() < 1e-4 < score(whole, random_features(2, seed=1)).min()


def test_global_keeps_a_bounded_sample_of_images() -> None:
    made = head(random_features(30), variant="global", max_images=8)
    assert _columns(made.kept) == 7


@pytest.mark.parametrize("variant", RESIDUALS)
def test_a_held_out_fold_has_no_part_in_its_model(variant: str) -> None:
    normals, test = random_features(12), random_features(3, seed=1)
    exact, folds = normals.double().numpy(), assign_folds(12, SEED)
    for fold in (0, 3):
        made = head(normals, without=fold, variant=variant, components=3)
        expected = RESIDUALS[variant](test.double().numpy(), exact[folds != fold], 3)
        np.testing.assert_allclose(score(made, test), expected, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("variant", RESIDUALS)
def test_an_odd_training_image_is_scored_as_one_that_was_not_seen(variant: str) -> None:
    detector = create_detector("fre", {"variant": variant})
    images = Images(outlier=3)
    fitted = fit_closed_form(detector, images, small(), seed=SEED, progress=silent, batch=4)
    assert fitted.normal_scores[3] > 1.3 * np.delete(fitted.normal_scores, 3).max()
    with torch.inference_mode():
        assert float(fitted.module(torch.from_numpy(images.pixels[3:4]))[0]) < 0.9 * fitted.normal_scores[3]


@pytest.mark.parametrize("variant", RESIDUALS)
@pytest.mark.parametrize("count", [2, 3])
def test_few_or_equal_images_give_finite_scores(variant: str, count: int) -> None:
    for features in (random_features(count), torch.ones(count, CHANNELS, 3, 5)):
        for without in (*range(count), None):
            assert np.isfinite(score(head(features, without=without, variant=variant), features)).all()


@pytest.mark.parametrize("variant", RESIDUALS)
def test_features_that_are_not_finite_are_named(variant: str) -> None:
    normals = random_features(10)
    normals[7, 2, 1, 1] = float("nan")
    with pytest.raises(DataError, match="NaN or infinite"):
        head(normals, variant=variant)


def test_the_global_layer_is_one_pooled_tap() -> None:
    images = torch.from_numpy(Images(2).pixels)
    fine, coarse = Filters()(images)
    upsampled = torch.nn.functional.interpolate(coarse, size=(8, 8), mode="bilinear", align_corners=False)
    for layer, tap in ((0, fine), (1, upsampled), (-1, upsampled)):
        made = create_detector("fre", {"variant": "global", "layer": layer, "pool": 2}).extractor(small(), SEED)
        assert made.grid == (4, 4)
        expected = tap.reshape(2, tap.shape[1], 4, 2, 4, 2).mean((3, 5))
        torch.testing.assert_close(made(images), expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variant": "edge"}, "setting 'variant'"),
        ({"variance": 1.0}, "setting 'variance'"),
        ({"variant": "global", "layer": 2}, "the backbone has 2 taps"),
        ({"variant": "global", "pool": 5}, "at most 4"),
    ],
)
def test_a_wrong_setting_is_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        create_detector("fre", settings).extractor(small(), SEED)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("settings", [{}, {"components": 2}, {"variant": "global", "pool": 2}])
def test_every_form_exports_clean_and_scores_alike(settings: dict[str, Any], tmp_path: Path) -> None:
    fitted = fit_closed_form(create_detector("fre", settings), Images(), small(), seed=SEED, progress=silent)
    model = export_onnx(fitted.module, 64, 64)
    assert lint(model) == []
    assert not {node.op_type for node in model.graph.node} & {"Shape", "Expand", "ScatterND", "Where", "Identity"}
    onnx.save(model, tmp_path / "model.onnx")
    test = Images(5, seed=1).pixels
    with torch.inference_mode():
        expected = [value.numpy() for value in fitted.module(torch.from_numpy(test))]
    for backend in ("onnxruntime", "openvino"):
        found = open_backend(backend, tmp_path / "model.onnx", threads=1, batch=0).run(test)
        np.testing.assert_allclose(found.score, expected[0], rtol=1e-5)
        np.testing.assert_allclose(found.map, expected[1], rtol=1e-5, atol=1e-5 * expected[1].max())


@pytest.mark.parametrize("settings", [{}, {"components": 2}, {"variant": "global", "pool": 2}])
def test_a_saved_model_scores_the_same(settings: dict[str, Any], plate: Path, tmp_path: Path) -> None:
    model = fit([plate], detector="fre", settings=settings, size=64)
    model.save(tmp_path / "m")
    loaded = load_model(tmp_path / "m")
    assert loaded.card.grid == model.module.extractor.grid
    images = torch.from_numpy(np.stack(list(load_images(open_category(plate, train_only=True).train, 64, 64)))[:3])
    with torch.inference_mode():
        assert torch.equal(model.module(images)[1], loaded.module(images)[1])


def test_global_works_on_a_real_backbone(plate: Path) -> None:
    model = fit([plate], detector="fre", settings={"variant": "global"}, size=64)
    assert model.card.grid == (2, 2)
    assert build_extractor(model.module.extractor.backbone, (64, 64)).grid == (8, 8)
