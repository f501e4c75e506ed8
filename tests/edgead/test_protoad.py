"""ProtoAD and its clustering against plain float64 computations."""

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
from edgead.detectors.protoad import PrototypeHead, cluster_means, finch, unit
from edgead.export.graph.lint import lint
from edgead.export.graph.tracing import export_onnx
from edgead.features.features import FeatureExtractor
from edgead.fitting import fit
from edgead.model.model import load_model
from edgead.runtime.backends import open_backend
from edgead.runtime.errors import ConfigError, DataError
from edgead.runtime.progress import silent

SEED = 3
COUNT = 11  # no multiple of the folds or of the batch
CHANNELS = 10
EVERY_PATCH = 60_000


class Filters(nn.Module):
    """A backbone of one layer, so that an export takes a second."""

    def __init__(self) -> None:
        super().__init__()
        self.channels = (CHANNELS,)
        self.convolution = nn.Conv2d(3, CHANNELS, 8, stride=8)
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            parameter.requires_grad_(False).normal_(generator=generator)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (self.convolution((images.to(torch.float32).permute(0, 3, 1, 2) - 127.5) / 500.0),)


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
    values = np.random.default_rng(seed).normal(size=(count, CHANNELS, *grid)) + 0.5
    return torch.from_numpy(values.astype(np.float32))


def head(features: Tensor, without: int | None = None, **settings: Any) -> PrototypeHead:
    plain = FeatureExtractor(Filters(), (features.shape[2], features.shape[3]))
    collector = create_detector("protoad", {"whiten": False} | settings).collector(len(features), plain, SEED)
    folds = assign_folds(len(features), SEED)
    for start in range(0, len(features), 4):
        collector.update(features[start : start + 4], folds[start : start + 4])
    made = collector.head(without, silent)
    assert isinstance(made, PrototypeHead)
    return made


def score(made: nn.Module, features: Tensor) -> NDArray[np.float64]:
    with torch.inference_mode():
        result: NDArray[np.float64] = made(features)[0].double().numpy()
    return result


def cosine_score(queries: NDArray[np.float64], bank: NDArray[np.float64]) -> NDArray[np.float64]:
    """``1 - max cos`` between features ``(n, C, gh, gw)`` and rows ``(K, C)``."""
    rows = queries.transpose(0, 2, 3, 1)
    products = rows @ bank.T
    return 1.0 - (products / np.linalg.norm(rows, axis=3)[..., None] / np.linalg.norm(bank, axis=1)).max(axis=3)


def patches_of(features: Tensor) -> NDArray[np.float64]:
    return features.double().numpy().transpose(0, 2, 3, 1).reshape(-1, features.shape[1])


# The score


def test_map_is_one_minus_the_largest_cosine_to_a_prototype() -> None:
    test = 7.0 * random_features(3, seed=1)
    test[0, :, 0, 0] = 0.0  # no direction at all: as far as orthogonal
    made = head(random_features(12), prototypes=20)
    assert made.prototypes.shape == (CHANNELS, 20)
    np.testing.assert_allclose(made.prototypes.norm(dim=0), np.ones(20), atol=1e-6)
    with np.errstate(invalid="ignore"):
        expected = cosine_score(test.double().numpy(), made.prototypes.double().numpy().T)
    expected[0, 0, 0] = 1.0
    np.testing.assert_allclose(score(made, test), expected, atol=1e-6)


def test_with_a_prototype_for_each_patch_it_is_the_nearest_training_patch() -> None:
    normals, test = random_features(12), random_features(3, seed=1)
    made = head(normals, prototypes=EVERY_PATCH)
    np.testing.assert_allclose(score(made, test), cosine_score(test.double().numpy(), patches_of(normals)), atol=1e-6)


def test_a_held_out_fold_has_no_part_in_its_model() -> None:
    normals, test, folds = random_features(12), random_features(3, seed=1), assign_folds(12, SEED)
    for fold in (0, 3):
        others = patches_of(normals[torch.from_numpy(folds != fold)])
        made = head(normals, without=fold, prototypes=EVERY_PATCH)
        np.testing.assert_allclose(score(made, test), cosine_score(test.double().numpy(), others), atol=1e-6)
    strange = normals.clone()
    strange[torch.from_numpy(folds == 3)] *= -1.0
    for settings in ({"prototypes": 10}, {"prototypes": None}):
        made, other = (head(features, without=3, **settings) for features in (normals, strange))
        assert torch.equal(made.prototypes, other.prototypes)


def test_an_odd_training_image_is_scored_as_one_that_was_not_seen() -> None:
    images = Images(outlier=3)
    fitted = fit_closed_form(create_detector("protoad"), images, small(), seed=SEED, progress=silent, batch=4)
    assert fitted.normal_scores[3] > 1.3 * np.delete(fitted.normal_scores, 3).max()
    with torch.inference_mode():
        assert float(fitted.module(torch.from_numpy(images.pixels[3:4]))[0]) < 0.7 * fitted.normal_scores[3]


# Whitening


def test_whitened_it_is_the_cosine_in_the_scaled_principal_axes() -> None:
    normals, test = random_features(12), random_features(3, seed=1)
    patches = patches_of(normals)
    variances, axes = np.linalg.eigh(np.cov(patches, rowvar=False))
    matrix = axes / np.sqrt(variances + 0.05 * variances.mean())
    made = head(normals, prototypes=EVERY_PATCH, whiten=True)
    queries = np.einsum("nchw,cd->ndhw", test.double().numpy(), matrix)
    np.testing.assert_allclose(score(made, test), cosine_score(queries, patches @ matrix), atol=1e-5)


def test_what_changes_in_a_quiet_direction_is_seen_whitened() -> None:
    random = np.random.default_rng(0)
    spreads = np.full(CHANNELS, 0.1)
    spreads[:3] = 3.0
    values = 1.0 + random.normal(size=(20, CHANNELS, 6, 6)) * spreads[:, None, None]
    good = torch.from_numpy(values.astype(np.float32))
    defective = good[:5].clone()
    defective[:, -1, 2, 3] += 2.0
    for whiten in (False, True):
        made = head(good, prototypes=40, whiten=whiten)
        before, after = score(made, good[:5]), score(made, defective)
        assert (after[:, 2, 3] > before.max(axis=(1, 2))).all() == whiten


def test_a_held_out_fold_has_no_part_in_its_whitening() -> None:
    normals, folds = random_features(12), assign_folds(12, SEED)
    strange = normals.clone()
    strange[torch.from_numpy(folds == 3)] *= -3.0
    made, other = (head(features, without=3, prototypes=10, whiten=True) for features in (normals, strange))
    assert made.whitening is not None
    assert other.whitening is not None
    assert torch.equal(made.whitening, other.whitening)
    assert torch.equal(made.prototypes, other.prototypes)


def test_a_model_from_before_the_whitening_loads() -> None:
    made = head(random_features(12), prototypes=10)
    saved = made.state_dict()
    assert list(saved) == ["prototypes"]
    loaded = create_detector("protoad").empty_head(saved)
    loaded.load_state_dict(saved)
    test = random_features(3, seed=1)
    np.testing.assert_array_equal(score(loaded, test), score(made, test))


# The clustering


def first_neighbour_clusters(points: NDArray[np.float64]) -> NDArray[np.int64]:
    """One level of FINCH from the adjacency matrix of the paper (equation 1), components by flooding."""
    cosines = points @ points.T / np.linalg.norm(points, axis=1) / np.linalg.norm(points, axis=1)[:, None]
    np.fill_diagonal(cosines, -np.inf)
    nearest = cosines.argmax(axis=1)
    count = len(points)
    linked = np.zeros((count, count), bool)
    for i, j in np.ndindex(count, count):
        linked[i, j] = j == nearest[i] or nearest[j] == i or nearest[i] == nearest[j]
    labels = np.full(count, -1)
    for start in range(count):
        if labels[start] < 0:
            group = labels.max() + 1
            stack = [start]
            while stack:
                member = stack.pop()
                if labels[member] < 0:
                    labels[member] = group
                    stack.extend(np.flatnonzero(linked[member]))
    return labels


def same_partition(first: NDArray[np.int64], second: NDArray[np.int64]) -> bool:
    return bool(((first[:, None] == first) == (second[:, None] == second)).all())


def test_finch_is_the_first_neighbour_relation_level_by_level() -> None:
    points = unit(torch.from_numpy(np.random.default_rng(0).normal(size=(90, 5)).astype(np.float32)))
    levels = finch(points)
    counts = [int(labels.max()) + 1 for labels in levels]
    assert counts[-1] == 1
    assert counts == sorted(set(counts), reverse=True)
    expected = first_neighbour_clusters(points.double().numpy())
    assert same_partition(levels[0], expected)
    for level in range(1, len(levels)):
        means = np.stack(
            [points.double().numpy()[expected == group].mean(axis=0) for group in range(expected.max() + 1)]
        )
        expected = first_neighbour_clusters(means)[expected]
        assert same_partition(levels[level], expected)


def test_finch_does_not_mix_clear_clusters() -> None:
    random = np.random.default_rng(1)
    centers = random.normal(size=(7, 30))
    owners = random.integers(0, 7, 400)
    points = unit(torch.from_numpy((centers[owners] + 0.3 * random.normal(size=(400, 30))).astype(np.float32)))
    finest = finch(points)[0]
    assert 7 < finest.max() + 1 < 200
    assert all(len(set(owners[finest == group])) == 1 for group in range(finest.max() + 1))
    cosines = cluster_means(points, finest).double().numpy() @ (centers / np.linalg.norm(centers, axis=1)[:, None]).T
    assert cosines.max(axis=1).min() > 0.9


def test_finch_takes_a_point_or_equal_points() -> None:
    assert finch(torch.ones(1, 4))[0].tolist() == [0]
    assert finch(unit(torch.ones(9, 4)))[-1].tolist() == [0] * 9


def test_without_a_cap_finch_decides_and_levels_grow_coarser() -> None:
    normals = random_features(12)
    sizes = [head(normals, prototypes=None, level=level).prototypes.shape[1] for level in (0, 1, 99)]
    assert 180 / 2 >= sizes[0] > sizes[1] > sizes[2] == 1  # every cluster of the first level has two patches at least
    partition = finch(unit(torch.from_numpy(patches_of(normals)).float()))[0]
    assert sizes[0] == partition.max() + 1


def test_samples_are_bounded() -> None:
    normals = random_features(12)
    assert head(normals, prototypes=EVERY_PATCH, max_patches=50).prototypes.shape[1] == 50
    assert head(normals, prototypes=None, finch_patches=20).prototypes.shape[1] <= 10


# Numbers that go wrong


@pytest.mark.parametrize("prototypes", [5, None])
@pytest.mark.parametrize("count", [2, 3])
def test_few_or_equal_images_give_finite_scores(prototypes: int | None, count: int) -> None:
    for features in (random_features(count), torch.ones(count, CHANNELS, 3, 5), torch.zeros(count, CHANNELS, 3, 5)):
        for without in (*range(count), None):
            assert np.isfinite(score(head(features, without=without, prototypes=prototypes), features)).all()


@pytest.mark.parametrize("prototypes", [5, None])
def test_features_that_are_not_finite_are_named(prototypes: int | None) -> None:
    normals = random_features(10)
    normals[7, 2, 1, 1] = float("nan")
    with pytest.raises(DataError, match="NaN or infinite"):
        head(normals, prototypes=prototypes)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"prototypes": 0}, "setting 'prototypes'"), ({"prototype": 5}, "Did you mean 'prototypes'?")],
)
def test_a_wrong_setting_is_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        create_detector("protoad", settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# To the device


@pytest.mark.parametrize(("whiten", "products"), [(True, 2), (False, 1)])
def test_the_graph_is_clean_and_scores_alike(whiten: bool, products: int, tmp_path: Path) -> None:
    detector = create_detector("protoad", {"prototypes": 40, "whiten": whiten})
    module = fit_closed_form(detector, Images(), small(), seed=SEED, progress=silent).module
    model = export_onnx(module, 64, 64)
    assert lint(model) == []
    kinds = [node.op_type for node in model.graph.node]
    assert not set(kinds) & {"Shape", "Expand", "ScatterND", "Where", "Identity"}
    assert kinds.count("MatMul") == products
    onnx.save(model, tmp_path / "model.onnx")
    test = Images(5, seed=1).pixels
    with torch.inference_mode():
        expected = [value.numpy() for value in module(torch.from_numpy(test))]
    for backend in ("onnxruntime", "openvino"):
        found = open_backend(backend, tmp_path / "model.onnx", threads=1, batch=0).run(test)
        assert np.abs(found.score - expected[0]).max() < 1e-5
        assert np.abs(found.map - expected[1]).max() < 1e-5


def test_a_saved_model_scores_the_same(plate: Path, tmp_path: Path) -> None:
    model = fit([plate], detector="protoad", settings={"prototypes": "30"}, size=64)
    model.save(tmp_path / "m")
    loaded = load_model(tmp_path / "m")
    images = torch.from_numpy(np.stack(list(load_images(open_category(plate, train_only=True).train, 64, 64)))[:3])
    with torch.inference_mode():
        assert torch.equal(model.module(images)[1], loaded.module(images)[1])
