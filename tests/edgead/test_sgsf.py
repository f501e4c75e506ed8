"""SGSF: the guide and the segmenter, their losses, retrieval, and sizes against the specification."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from edgead.detectors import create_detector
from edgead.detectors.learned import LearnedModule, load_learned
from edgead.detectors.losses import structural_similarity
from edgead.detectors.networks.sgsf_network import thumbnail_keys
from edgead.features.backbones import NO_BACKBONE, BackboneSpec
from edgead.runtime.errors import ConfigError

RANDOM = BackboneSpec("efficientnet_lite0", "random")
SIZE = (64, 64)


def make(**settings: Any) -> tuple[Any, Any]:
    detector = create_detector("sgsf", settings)
    spec = BackboneSpec() if detector.settings.encoder == "own" else RANDOM
    torch.manual_seed(0)
    return detector, detector.network(detector.backbone(spec), SIZE)


def pixels(count: int = 6) -> Any:
    return np.random.default_rng(0).integers(0, 256, (count, *SIZE, 3), dtype=np.uint8)


def test_the_full_network_has_the_size_of_the_specification() -> None:
    detector = create_detector("sgsf", {"profile": "full"})
    network = detector.network(NO_BACKBONE, (256, 256))
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(11.8e6, rel=0.05)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        _, grid = network.eval()(torch.zeros(1, 3, 256, 256))
    assert counter.get_total_flops() / 2 == pytest.approx(28.3e9, rel=0.05)
    assert grid.shape == (1, 256, 256)
    recipe = detector.stages(network, np.zeros((2, 256, 256, 3), np.uint8), 0)[0].recipe
    assert (recipe.steps, recipe.batch, recipe.optimiser, recipe.learning_rate) == (20_000, 16, "adam", 1e-4)
    assert (recipe.schedule, recipe.drops) == ("drops", (0.5, 0.7, 0.9))


@pytest.mark.slow
def test_the_full_network_takes_a_step_exports_and_judges_a_frame(step_and_export: Any) -> None:
    detector = create_detector("sgsf", {"profile": "full"})
    step_and_export(detector, detector.network(NO_BACKBONE, (256, 256)))


@pytest.mark.parametrize("encoder", ["backbone", "own"])
def test_the_image_score_is_the_largest_probability(encoder: str) -> None:
    _, network = make(encoder=encoder, width=4, smooth=False)
    network.eval()
    images = torch.rand(3, 3, *SIZE) * 255
    with torch.inference_mode():
        score, grid = network(images)
        logits = network.logits(images, network.guide_features(images)[0])
    torch.testing.assert_close(grid, torch.softmax(logits, 1)[:, 1])
    torch.testing.assert_close(score, grid.amax(dim=(1, 2)))
    _, smoothed = make(encoder=encoder, width=4)
    smoothed.load_state_dict(network.state_dict())
    with torch.inference_mode():
        score, smooth = smoothed.eval()(images)
    assert smooth.std() < grid.std()
    torch.testing.assert_close(score, smooth.amax(dim=(1, 2)))


@pytest.mark.parametrize("encoder", ["backbone", "own"])
def test_the_losses_are_their_formulas_and_the_focal_one_does_not_reach_the_guide(encoder: str) -> None:
    detector, network = make(encoder=encoder, width=4, batch=4, guide_weight=0.5, jitter=0.0)
    stage = detector.stages(network, pixels(), 0)[0]
    drawn = stage.batch(np.random.default_rng(1))
    assert drawn["mask"].any(axis=(1, 2)).tolist() == [True, True, True, False]  # 3 to 1
    tensors = {name: torch.from_numpy(value) for name, value in drawn.items()}
    network.eval().requires_grad_(True)
    graph = stage.losses(tensors)
    terms = {name: value.detach() for name, value in graph.items()}
    images, clean = (tensors[name].float().permute(0, 3, 1, 2) for name in ("image", "clean"))
    with torch.inference_mode():
        guides, restored = network.guide_features(images)
        chances = torch.softmax(network.logits(images, guides), 1)
    factor = 64 // restored.shape[2]
    wanted = F.avg_pool2d(clean / 255, factor) if factor > 1 else clean / 255
    target = F.avg_pool2d(tensors["mask"].float()[:, None], factor)[:, 0] if factor > 1 else tensors["mask"].float()
    hits = [-((1 - chances[:, c]) ** 2) * chances[:, c].log() for c in (0, 1)]
    assert float(terms["focal"]) == pytest.approx(float((hits[1] * target + hits[0] * (1 - target)).mean()), rel=1e-4)
    assert float(terms["L2"]) == pytest.approx(0.5 * float((restored - wanted).square().mean()), rel=1e-4)
    assert float(terms["SSIM"]) == pytest.approx(0.5 * (1 - float(structural_similarity(restored, wanted))), rel=1e-4)
    graph["focal"].backward()
    assert all(p.grad is None or not p.grad.any() for p in network.guide.parameters())
    assert any(p.grad is not None and p.grad.any() for p in network.segmenter.parameters())


def test_without_its_guide_the_segmenter_answers_otherwise() -> None:
    _, network = make(width=4)
    network.eval()
    images = torch.rand(1, 3, *SIZE) * 255
    with torch.inference_mode():
        guides, _ = network.guide_features(images)
        plain = network.logits(images, guides)
        other = network.logits(images, [torch.zeros_like(one) for one in guides])
    assert not torch.allclose(plain, other)


@pytest.mark.parametrize("encoder", ["backbone", "own"])
def test_retrieved_guidance_takes_the_most_similar_training_image(encoder: str) -> None:
    detector, network = make(encoder=encoder, width=4, guidance="retrieved", batch=4, smooth=False, jitter=0.0)
    stage = detector.stages(network, pixels(), 0)[0]
    drawn = stage.batch(np.random.default_rng(0))
    for guide, clean in zip(drawn["guide"], drawn["clean"], strict=True):
        assert any(np.array_equal(guide, image) for image in pixels())
        assert not np.array_equal(guide, clean)  # another image, never itself
    with torch.no_grad():
        losses = stage.losses({name: torch.from_numpy(values) for name, values in drawn.items()})
    assert np.isfinite([float(loss) for loss in losses.values()]).all()
    with torch.inference_mode():
        detector.complete(network.eval(), pixels(), pixels(2))
    assert len(network.codes) == len(network.keys) == 6
    noisy = np.clip(pixels().astype(int) + np.random.default_rng(1).integers(-9, 10, pixels().shape), 0, 255)
    images = torch.from_numpy(noisy.astype(np.uint8))
    assert (thumbnail_keys(images) @ network.keys.T).argmax(1).tolist() == list(range(6))
    with torch.inference_mode():
        x = images.float().permute(0, 3, 1, 2)
        guides, _ = network.guide_features(torch.from_numpy(pixels()).float().permute(0, 3, 1, 2))
        torch.testing.assert_close(network(x)[1], torch.softmax(network.logits(x, guides), 1)[:, 1])
    # What is stored depends on the number of images, and a saved state brings its own.
    module = LearnedModule(network, SIZE)
    spec = detector.backbone(BackboneSpec() if encoder == "own" else RANDOM)
    again = load_learned(create_detector("sgsf", detector.settings.model_dump()), spec, SIZE, module.state_dict())
    with torch.inference_mode():
        torch.testing.assert_close(again(images), module(images))


def test_a_network_of_its_own_takes_no_backbone() -> None:
    detector = create_detector("sgsf", {"profile": "full"})
    assert detector.backbone(BackboneSpec()) == NO_BACKBONE
    with pytest.raises(ConfigError, match="takes no backbone; omit --backbone resnet18"):
        detector.backbone(BackboneSpec("resnet18", "hub"))
