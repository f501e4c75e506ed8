"""The composition of an image: against sklearn in float64, and on scenes with a part too few or too many."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.covariance import OAS
from torch.nn.functional import softplus

from edgead.detectors import create_detector
from edgead.detectors.networks.one_class import Composition, Judgement
from edgead.features.backbones import BackboneSpec
from edgead.metrics.metrics import image_auroc


def test_the_distance_is_the_shrunk_mahalanobis_distance_of_the_standardised_means() -> None:
    rng = np.random.default_rng(0)
    composition = Composition([2, 3], [(4, 4), (2, 2)])
    for count in (9, 200):  # fewer images than dimensions, and more
        normal = rng.normal(size=(count, 20)) @ rng.normal(size=(20, 20)) + rng.normal(size=20)
        normal[:, 7] = 2.5  # a channel that never answers
        composition.fit(normal.astype(np.float32))
        features = [torch.from_numpy(rng.normal(size=(5, c, s, s)).astype(np.float32)) for c, s in ((2, 4), (3, 2))]
        means = composition.means(features).double().numpy()
        used = np.arange(20) != 7
        values = (normal[:, used] - normal[:, used].mean(0)) / normal[:, used].std(0)
        # The silent channel counts as a dimension, which the shrinkage knows of.
        wide = np.zeros((count, 20))
        wide[:, used] = values
        covariance = OAS(assume_centered=True).fit(wide).covariance_
        centred = np.zeros((5, 20))
        centred[:, used] = (means[:, used] - normal[:, used].mean(0)) / normal[:, used].std(0)
        expected = np.einsum("ni,ij,nj->n", centred, np.linalg.inv(covariance), centred) / 20
        np.testing.assert_allclose(composition(features).numpy(), expected, rtol=1e-3)


def test_the_means_are_of_quarters_whose_odd_middle_is_in_both() -> None:
    composition = Composition([1], [(3, 4)])
    grid = torch.arange(12.0).reshape(1, 1, 3, 4)
    expected = [
        grid[..., rows, columns].mean() for rows in (slice(0, 2), slice(1, 3)) for columns in (slice(0, 2), slice(2, 4))
    ]
    assert composition.means([grid])[0].tolist() == pytest.approx([float(one) for one in expected])


def test_the_score_is_the_larger_of_both_in_the_unit_of_the_held_out_normals() -> None:
    judgement = Judgement()
    of_maps, distances = np.linspace(0.01, 0.02, 20, dtype=np.float32), np.linspace(1.0, 3.0, 20, dtype=np.float32)
    judgement.fit(of_maps, distances)
    for values, place in ((of_maps, 0), (distances, 1)):
        logarithms = np.log(values.astype(np.float64) + 1e-6)
        assert float(judgement.middle[place]) == pytest.approx(float(np.median(logarithms)), rel=1e-5)
        high = float(judgement.middle[place] + judgement.reach[place])
        assert high == pytest.approx(float(logarithms[-2:].mean()), rel=1e-4)
    middle, reach = judgement.middle.tolist(), judgement.reach.tolist()
    usual, strange = math.exp(middle[0]), math.exp(middle[1] + 5 * reach[1])
    grid = torch.full((1, 2, 2), 0.5)
    score, shown = judgement(torch.tensor([usual]), torch.tensor([strange]), grid)
    assert float(score) == pytest.approx(float(softplus(torch.tensor(5.0))), rel=1e-3)
    alone, _ = judgement(torch.tensor([0.5]), torch.tensor([1.0]), grid)
    assert float(alone) == pytest.approx(float(shown[0, 0, 0]), rel=1e-6)  # a map and its score are in one unit


def scenes(count: int, parts: int, rng: np.random.Generator) -> np.ndarray:
    """Return grey images with so many dark squares, each in a cell of its own, anywhere."""
    images = np.full((count, 64, 64, 3), 180, np.uint8)
    for image in images:
        for cell in rng.permutation(16)[:parts]:
            y, x = 16 * (cell // 4) + rng.integers(0, 6), 16 * (cell % 4) + rng.integers(0, 6)
            image[y : y + 9, x : x + 9] = rng.integers(40, 60)
        image += rng.integers(0, 6, image.shape).astype(np.uint8)
    return images


def test_a_part_too_few_or_too_many_is_found_though_every_patch_of_it_is_normal() -> None:
    rng = np.random.default_rng(1)
    detector = create_detector("slsg")
    network = detector.network(detector.backbone(BackboneSpec()), (64, 64)).eval()
    with torch.inference_mode():
        detector.complete(network, scenes(60, 6, rng), scenes(20, 6, rng))

        def distances(images: np.ndarray) -> np.ndarray:
            # Without the map, which nothing trained here.
            features = network.parts(torch.from_numpy(images).float().permute(0, 3, 1, 2))[2]
            return network.composition(features).numpy()

        good = distances(scenes(30, 6, rng))
        for wrong in (3, 9):
            scores = np.concatenate([good, distances(scenes(30, wrong, rng))])
            assert image_auroc(scores, np.arange(60) >= 30, bootstrap=0).value > 0.95
