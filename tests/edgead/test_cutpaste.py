"""CutPaste: classes and their loss, Gaussians and windows against plain computations, and a ResNet that is timm's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from edgead.detectors import create_detector
from edgead.detectors.cutpaste import balanced_entropy, window_labels
from edgead.detectors.gaussian import GaussianDensity, shrunk_moments
from edgead.detectors.networks.blocks import fold_batch_norm
from edgead.detectors.networks.resnet import ResNet18
from edgead.features.backbones import NO_BACKBONE, BackboneSpec
from edgead.runtime.errors import ConfigError
from edgead.training.training import train

RANDOM = BackboneSpec("efficientnet_lite0", "random")
SIZE = (64, 96)


def make(**settings: Any) -> tuple[Any, Any]:
    detector = create_detector("cutpaste", {"width": 8, "kept": 4, "batch": 3, **settings})
    torch.manual_seed(0)
    return detector, detector.network(detector.backbone(RANDOM), SIZE).eval()


def pixels(count: int = 6) -> Any:
    return np.random.default_rng(0).integers(0, 256, (count, *SIZE, 3), dtype=np.uint8)


def planes(images: Any) -> Tensor:
    return torch.from_numpy(images).float().permute(0, 3, 1, 2)


# The full profile


def test_the_full_network_is_a_resnet_18_trained_as_the_paper_does() -> None:
    detector = create_detector("cutpaste", {"profile": "full"})
    network = detector.network(NO_BACKBONE, (256, 256)).eval()
    assert sum(p.numel() for p in network.parameters()) == 11_176_512  # torchvision's, without its classifier
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        _, grid = network(torch.zeros(1, 3, 256, 256))
    assert counter.get_total_flops() / 2 == pytest.approx(1.82e9 * (256 / 224) ** 2, rel=0.02)
    assert grid.shape == (1, 8, 8)
    recipe = detector.stages(network, np.zeros((2, 256, 256, 3), np.uint8), 0)[0].recipe
    assert (recipe.optimiser, recipe.learning_rate, recipe.momentum) == ("sgd", 0.03, 0.9)
    assert (recipe.weight_decay, recipe.steps, recipe.schedule) == (3e-5, 256 * 256, "cosine")


def test_weights_in_a_file_give_the_features_that_timm_gives(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    theirs = timm.create_model("resnet18").eval()
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # statistics as of a trained network, else layers are alike
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2.0)
    torch.save(theirs.state_dict(), tmp_path / "resnet18.pth")
    ours = ResNet18(BackboneSpec("resnet18", str(tmp_path / "resnet18.pth"), (32,))).eval()
    images = torch.rand(2, 3, 64, 64) * 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.inference_mode():
        expected = theirs.forward_features((images / 255 - mean[:, None, None]) / std[:, None, None])
        torch.testing.assert_close(ours(images), expected, atol=1e-3, rtol=1e-4)
        fold_batch_norm(ours)
        torch.testing.assert_close(ours(images), expected, atol=1e-3, rtol=1e-4)


def test_the_profile_says_what_the_network_is_made_of() -> None:
    full, small = create_detector("cutpaste", {"profile": "full"}), create_detector("cutpaste")
    assert full.backbone(BackboneSpec()) == NO_BACKBONE
    assert full.backbone(BackboneSpec("resnet18", "random")).strides == (32,)
    with pytest.raises(ConfigError, match="trains its own network and takes no backbone"):
        full.backbone(BackboneSpec("wide_resnet50_2", "random"))
    assert small.backbone(BackboneSpec("mobilenetv3_large_100", "random")).strides == (8, 16)
    with pytest.raises(ConfigError, match="kept belongs to the small and medium profiles"):
        create_detector("cutpaste", {"profile": "full", "kept": 64})
    with pytest.raises(ConfigError, match="width belongs to the small and medium profiles"):
        create_detector("cutpaste", {"profile": "full", "width": 64})


@pytest.mark.slow
def test_the_full_network_takes_a_step_exports_and_judges_a_frame(step_and_export: Any) -> None:
    detector = create_detector("cutpaste", {"profile": "full"})
    step_and_export(detector, detector.network(NO_BACKBONE, (256, 256)))


# Training


def test_each_image_comes_as_it_is_with_a_paste_and_with_a_scar() -> None:
    detector, network = make(batch=5)
    flat = np.broadcast_to(np.arange(6, dtype=np.uint8)[:, None, None, None] * 40, (6, *SIZE, 3)).copy()
    flat[:, 20:30, 20:50] = 255  # what a patch can bring along
    drawn = detector.stages(network, flat, 0)[0].batch(np.random.default_rng(0))
    assert drawn["label"].tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert drawn["image"].shape == (15, *SIZE, 3)
    assert drawn["mask"].shape == (15, *SIZE)
    assert not drawn["mask"][:5].any()
    assert drawn["mask"][5:].any()
    bright = (drawn["image"].max(3) > 200).sum((1, 2))
    assert (bright[:5] >= 0.9 * 300).all()
    again = detector.stages(network, flat, 0)[0].batch(np.random.default_rng(0))
    assert all(np.array_equal(again[name], drawn[name]) for name in drawn)


@pytest.mark.parametrize("score", ["image", "patch"])
def test_the_loss_is_the_cross_entropy_of_what_is_scored(score: str) -> None:
    detector, network = make(score=score)
    network.window = 3  # as at 128 pixels; here it would be a cell
    stage = detector.stages(network, pixels(), 0)[0]
    tensors = {name: torch.from_numpy(value) for name, value in stage.batch(np.random.default_rng(0)).items()}
    terms = stage.losses(tensors)
    with torch.no_grad():
        features = network.encoder(tensors["image"].float().permute(0, 3, 1, 2))[:, :8]  # what is learned
        if score == "image":
            expected = F.cross_entropy(stage.helper(features.mean((2, 3))), tensors["label"])
        else:
            labels = window_labels(tensors["label"], tensors["mask"], network.cells, network.window).flatten()
            chances = torch.softmax(stage.helper(network.windows(features).flatten(0, 1)), 1)
            assert set(labels.tolist()) == {-100, 0, 1, 2}
            expected = sum(-torch.log(chances[labels == number, number]).mean() for number in range(3)) / 3
    assert list(terms) == ["classes"]
    assert float(terms["classes"].detach()) == pytest.approx(float(expected), rel=1e-5)
    # The backbone stays as it is.
    assert not any(module is network.encoder.backbone for module in stage.trained)


def test_a_window_is_of_the_class_that_reaches_its_middle_and_counts_not_where_it_is_touched_beside_it() -> None:
    masks = torch.zeros(2, 40, 48, dtype=torch.bool)
    masks[1, 17, 23] = True  # in cell (2, 2) of 5 x 6
    found = window_labels(torch.tensor([0, 2]), masks, (5, 6), 3).reshape(2, 5, 6)
    expected = np.zeros((2, 5, 6), int)
    expected[1, 1:4, 1:4] = -100
    expected[1, 2, 2] = 2
    assert np.array_equal(found.numpy(), expected)


def test_every_class_weighs_the_same_and_one_that_is_not_there_nothing() -> None:
    logits, labels = torch.randn(9, 3), torch.tensor([0] * 5 + [2] * 3 + [-100])
    logs = torch.log_softmax(logits, 1)
    expected = -(logs[:5, 0].mean() + logs[5:8, 2].mean()) / 2
    assert float(balanced_entropy(logits, labels)) == pytest.approx(float(expected), rel=1e-5)


def test_probes_are_judged_with_gaussians_of_the_features_as_they_are() -> None:
    detector, network = make(steps=3, evaluations=1)
    stages = detector.stages(network, pixels(), 0)
    seen = []

    def judge(judged: Any) -> float:
        seen.append(judged.patch_density.whitening.clone())
        judged.measure(pixels())
        assert torch.equal(judged.patch_density.whitening, seen[-1])
        return float(len(seen))

    train(network, stages, seed=0, judge=judge, device="cpu")
    assert len(seen) == 2
    assert not torch.equal(*seen)


def test_kept_channels_are_the_taps_of_mean_0_and_variance_1_turned_and_never_learned() -> None:
    detector, network = make(steps=2, evaluations=1)
    stages = detector.stages(network, pixels(), 0)
    stages[0].start()
    images = planes(pixels())
    with torch.no_grad():
        fine, coarse = network.encoder.backbone(images)
        whole = torch.cat([fine, F.interpolate(coarse, scale_factor=2, mode="bilinear")], 1)
        deviation, mean = torch.std_mean(whole, (0, 2, 3), correction=0, keepdim=True)
        expected = torch.einsum("nchw,kc->nkhw", (whole - mean) / deviation, network.encoder.turn[:, :, 0, 0])
        torch.testing.assert_close(network.encoder(images)[:, 8:], expected, atol=1e-3, rtol=1e-2)
        before = network.encoder(images)
    train(network, stages, seed=0, device="cpu")
    with torch.no_grad():
        after = network.encoder(images)
    assert torch.equal(after[:, 8:], before[:, 8:])
    assert not torch.equal(after[:, :8], before[:, :8])


# Score


def test_distances_are_mahalanobis() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(200, 4)) @ rng.normal(size=(4, 4)) + 3
    density = GaussianDensity(4)
    mean, covariance = rows.mean(0), np.cov(rows.T)
    density.fit(torch.from_numpy(mean), torch.from_numpy(covariance))
    inverse = np.linalg.inv(covariance)
    expected = [float(np.sqrt((row - mean) @ inverse @ (row - mean))) for row in rows[:9]]
    np.testing.assert_allclose(density(torch.from_numpy(rows[:9]).float()).numpy(), expected, rtol=1e-4)


def test_few_embeddings_of_many_channels_have_a_density() -> None:
    rows = np.random.default_rng(0).normal(size=(5, 20))
    mean, covariance = shrunk_moments(rows)
    assert np.linalg.eigvalsh(covariance.numpy()).min() > 0
    np.testing.assert_allclose(mean.numpy(), rows.mean(0), atol=1e-12)
    density = GaussianDensity(20)
    density.fit(mean, covariance)
    alike = shrunk_moments(np.ones((4, 6)))
    dead = GaussianDensity(6)
    dead.fit(*alike)
    assert torch.isfinite(dead(torch.ones(1, 6))).all()


@pytest.mark.parametrize("score", ["image", "patch"])
def test_score_and_map_are_distances_of_the_image_and_of_its_windows(score: str) -> None:
    detector, network = make(score=score, smooth=False)
    network.window = 3
    images = pixels(7)
    with torch.inference_mode():
        detector.complete(network, images[:5], images[5:])
        found, grid = network(planes(images[5:]))
        features = network.encoder(planes(images)).double().numpy()
    rows, columns = features.shape[2:]
    assert grid.shape[1:] == (rows, columns) == (8, 12)
    reach = network.window // 2
    windows = np.empty((7, rows, columns, 12))
    for i in range(rows):
        for j in range(columns):
            cut = features[:, :, max(0, i - reach) : i + reach + 1, max(0, j - reach) : j + reach + 1]
            windows[:, i, j] = cut.mean((2, 3))

    def distances(train: Any, test: Any) -> Any:
        from sklearn.covariance import LedoitWolf

        fitted = LedoitWolf().fit(train)
        covariance = fitted.covariance_ + 0.05 * np.trace(fitted.covariance_) / 12 * np.eye(12)
        away = test - fitted.location_
        return np.sqrt(np.einsum("ni,ij,nj->n", away, np.linalg.inv(covariance), away))

    expected = distances(windows[:5].reshape(-1, 12), windows[5:].reshape(-1, 12)).reshape(2, rows, columns)
    np.testing.assert_allclose(grid.numpy(), expected, rtol=1e-3)
    whole = features.mean((2, 3))
    wanted = expected.max((1, 2)) if score == "patch" else distances(whole[:5], whole[5:])
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-3)
