"""SLSG: the graph layer against loops, losses and score against their formulas, sizes against the specification."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from edgead.detectors import create_detector
from edgead.detectors.losses import anomaly_probability, focal, structural_similarity
from edgead.detectors.networks.blocks import ConvNorm, fold_batch_norm
from edgead.detectors.networks.encoders import TapEncoder
from edgead.detectors.networks.graph_layer import GraphLayer, sine_cosine
from edgead.detectors.networks.slsg_network import Gate, Hypersphere
from edgead.features.backbones import BackboneSpec
from edgead.runtime.errors import ConfigError

RANDOM = BackboneSpec("efficientnet_lite0", "random")
RESNET = BackboneSpec("resnet18", "random")


def shake(network: nn.Module) -> nn.Module:
    """Give every normalisation statistics and weights of its own, so that folding has something to fold."""
    generator = torch.Generator().manual_seed(3)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 1.5, generator=generator)
            for tensor in (module.bias.data, module.running_mean):
                tensor.uniform_(-0.3, 0.3, generator=generator)
    return network.eval()


# The graph layer


def slow_graph(layer: GraphLayer, features: Any, *, neighbours: int, stride: int, sign: float) -> Any:
    """What the specification says, node by node, in float64."""
    layer = layer.double()

    def point(conv: ConvNorm, x: Any) -> Any:
        return conv.norm(F.conv2d(x, conv.conv.weight, groups=conv.conv.groups))

    channels, height, width = features.shape
    x = point(layer.node, features[None])
    keys = point(layer.key, x)[0].flatten(1).T
    nodes = x[0].flatten(1).T
    count = len(nodes)
    values = layer.value(x)[0].flatten(1).T
    context = torch.empty(count, channels, dtype=torch.float64)
    relative = torch.empty(count, channels, dtype=torch.float64)
    positions = sine_cosine(channels, (height, width)).double()
    for i in range(count):
        logits = torch.tensor([float(keys[i] @ keys[j]) for j in range(count)], dtype=torch.float64)
        weights = torch.exp(logits - logits.max())
        context[i] = sum(w * v for w, v in zip(weights / weights.sum(), values, strict=True))
        likeness = []
        for j in range(count):
            cosine = float(keys[i] @ keys[j] / keys[i].norm() / keys[j].norm())
            likeness.append(cosine + sign * 2.0 / channels * float(positions[i] @ positions[j]))
        order = sorted(range(count), key=lambda j, likeness=likeness: -likeness[j])[: neighbours * stride : stride]
        relative[i] = torch.stack([nodes[j] - nodes[i] for j in order]).max(0).values
    first = (nodes + layer.context(context.T.reshape(1, channels, height, width))[0].flatten(1).T).T
    pairs = torch.stack([first, relative.T], dim=1).reshape(1, 2 * channels, height, width)
    merged = F.gelu(point(layer.merge, pairs))
    return point(layer.out, merged)[0] + features


@pytest.mark.parametrize(("favour_distant", "sign"), [(True, -1.0), (False, 1.0)])
@pytest.mark.parametrize(("grid", "neighbours", "stride"), [((6, 6), 9, 3), ((4, 5), 9, 1)])
def test_the_graph_layer_is_what_the_loops_say(
    favour_distant: bool, sign: float, grid: tuple[int, int], neighbours: int, stride: int
) -> None:
    torch.manual_seed(0)
    layer = shake(GraphLayer(16, grid, favour_distant=favour_distant))
    features = torch.randn(2, 16, *grid)
    with torch.inference_mode():
        fast = layer(features)
        for place in range(2):
            slow = slow_graph(layer, features[place].double(), neighbours=neighbours, stride=stride, sign=sign)
            torch.testing.assert_close(fast[place].double(), slow, rtol=1e-4, atol=1e-4)
            layer.float()


def test_the_quirk_that_is_kept_favours_distant_nodes() -> None:
    # Equal features: what is left of the similarity is the place alone.
    keys = torch.ones(1, 64, 8)
    far, near = (GraphLayer(64, (8, 8), favour_distant=kept).neighbours(keys)[0] for kept in (True, False))
    rows, columns = torch.arange(64)[:, None] // 8, torch.arange(64)[:, None] % 8

    def mean_distance(nodes: Any) -> float:
        return float(torch.hypot((nodes // 8 - rows).float(), (nodes % 8 - columns).float()).mean())

    assert mean_distance(far) > mean_distance(near) + 1
    assert near[:, 0].tolist() == list(range(64))  # itself first
    assert not (far == torch.arange(64)[:, None]).any()


def test_positions_are_told_apart_and_their_product_falls_with_distance() -> None:
    embedding = sine_cosine(32, (5, 7))
    assert embedding.shape == (35, 32)
    products = embedding @ embedding.T
    assert torch.allclose(products.diagonal(), torch.full((35,), 16.0))
    assert products[0, 1] > products[0, 3]
    assert products[0, 7] > products[0, 21]


# Blocks and losses


def test_the_gate_is_its_formula() -> None:
    torch.manual_seed(1)
    gate, x = Gate(6).eval(), torch.randn(2, 6, 9, 9)
    with torch.inference_mode():
        near = F.conv2d(x, gate.near.weight, gate.near.bias, padding=1, groups=6)
        far = F.conv2d(near, gate.far.weight, gate.far.bias, padding=3, dilation=3, groups=6)
        expected = x + gate.out(torch.relu(x * gate.mix(far)))
        torch.testing.assert_close(gate(x), expected)


def test_the_focal_loss_is_its_formula_and_l1_weighs_what_it_says() -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(2, 2, 3, 3), (torch.rand(2, 3, 3) > 0.5).float()
    chances = torch.softmax(logits.double(), 1)
    hit = torch.where(target.bool(), chances[:, 1], chances[:, 0])
    expected = float((-((1 - hit) ** 4) * hit.log()).mean())
    assert float(focal(logits, target, 4.0)) == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(anomaly_probability(logits), torch.softmax(logits, 1)[:, 1])


def test_structural_similarity_is_one_for_equals_and_the_definition_in_between() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.rand(1, 2, 11, 11, generator=generator), torch.rand(1, 2, 11, 11, generator=generator)
    assert float(structural_similarity(first, first)) == pytest.approx(1.0, abs=1e-5)
    offsets = np.arange(11) - 5
    line = np.exp(-0.5 * (offsets / 1.5) ** 2)
    window = np.outer(line, line) / np.outer(line, line).sum()
    values = []
    for x, y in zip(first[0].double().numpy(), second[0].double().numpy(), strict=True):
        mx, my = (window * x).sum(), (window * y).sum()
        vx, vy = (window * x * x).sum() - mx**2, (window * y * y).sum() - my**2
        vxy = (window * x * y).sum() - mx * my
        c1, c2 = 0.01**2, 0.03**2
        values.append((2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    assert float(structural_similarity(first, second)) == pytest.approx(np.mean(values), abs=1e-5)


def test_the_hypersphere_pulls_normal_nodes_and_pushes_forged_ones() -> None:
    sphere = Hypersphere(2, margin=2.0, keep=0.5)
    nodes = torch.tensor([[1.0, 3.0, 1.0], [0.0, 0.0, 0.0]]).reshape(1, 2, 1, 3)
    share = torch.tensor([[[0.0, 0.0, 1.0]]])
    sphere.train()
    # The centre starts at the first mean of the normal nodes, (2, 0): both lie 1 away, the forged one 1 short of 2.
    assert float(sphere(nodes, share)) == pytest.approx(1.0 + 1.0)
    assert sphere.center.tolist() == [2.0, 0.0]
    sphere(nodes + 2.0 * torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1), share)
    assert sphere.center.tolist() == [3.0, 0.0]
    sphere.eval()
    assert float(sphere(nodes, torch.full_like(share, 0.3))) == 0.0  # neither normal nor forged


def test_folding_changes_nothing() -> None:
    network = shake(create_detector("slsg").network(create_detector("slsg").backbone(RANDOM), (64, 64)))
    pixels = torch.rand(2, 3, 64, 64) * 255
    with torch.inference_mode():
        before = network(pixels)
        fold_batch_norm(network)
        after = network(pixels)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    torch.testing.assert_close(before[1], after[1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(before[0], after[0], atol=1e-5, rtol=1e-4)


# The network


def test_the_score_is_the_mean_of_the_largest_values_in_proportion_to_the_grid() -> None:
    for side, largest in ((64, 2), (128, 6), (256, 25)):  # of grids of half the side; 100 at 256 x 256
        detector = create_detector("slsg", {"one_class": False})
        network = detector.network(detector.backbone(RANDOM), (side, side)).eval()
        assert network.largest == largest
        with torch.inference_mode():
            score, grid = network(torch.rand(2, 3, side, side) * 255)
        assert grid.shape == (2, side // 2, side // 2)
        expected = np.sort(grid.numpy().reshape(2, -1))[:, -largest:].mean(1)
        np.testing.assert_allclose(score.numpy(), expected, rtol=1e-5)


def test_without_its_graph_the_deepest_features_are_decoded_as_they_are() -> None:
    detector = create_detector("slsg", {"graph": False})
    network = detector.network(detector.backbone(RANDOM), (64, 64)).eval()
    pixels = torch.rand(1, 3, 64, 64) * 255
    with torch.inference_mode():
        torch.testing.assert_close(network.logits(pixels)[2], network.encoder(pixels)[-1], atol=0.0, rtol=0.0)
    assert not any(isinstance(module, GraphLayer) for module in network.modules())


def full() -> tuple[Any, Any]:
    detector = create_detector("slsg", {"profile": "full"})
    return detector, detector.network(detector.backbone(RESNET), (256, 256))


def test_the_full_network_has_the_size_of_the_specification() -> None:
    detector, network = full()
    assert network.encoder.strides == (2, 2, 4, 8, 16)
    assert network.largest == 100
    parameters = sum(p.numel() for p in network.parameters())
    assert parameters == pytest.approx(20.4e6, rel=0.05)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        _, grid = network.eval()(torch.zeros(1, 3, 256, 256))
    assert grid.shape == (1, 256, 256)
    assert counter.get_total_flops() / 2 == pytest.approx(23.1e9, rel=0.05)
    assert (detector.settings.steps, detector.settings.learning_rate, detector.settings.batch) == (7001, 0.04, 8)
    recipe = detector.stages(network, np.zeros((2, 256, 256, 3), np.uint8), 0)[1].recipe
    assert (recipe.optimiser, recipe.momentum, recipe.weight_decay, recipe.schedule) == ("sgd", 0.9, 3e-5, "cosine")


def test_the_full_profile_names_the_backbone_it_needs() -> None:
    detector = create_detector("slsg", {"profile": "full"})
    with pytest.raises(ConfigError, match="profile=full of detector 'slsg' is a ResNet18, not efficientnet_lite0"):
        detector.backbone(BackboneSpec())
    with pytest.raises(ConfigError, match="has no max-pool to omit"):
        TapEncoder(BackboneSpec("efficientnet_lite0", "random", (8, 16)), (64, 64), pool=False)


@pytest.mark.slow
def test_the_full_network_takes_a_step_exports_and_judges_a_frame(step_and_export: Any) -> None:
    step_and_export(*full())


def test_training_draws_half_of_its_images_forged_and_pretraining_starts_from_disturbed_ones() -> None:
    detector = create_detector("slsg", {"batch": 6, "steps": 3, "pretraining_steps": 2})
    network = detector.network(detector.backbone(RANDOM), (64, 64))
    pixels = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    first, second = detector.stages(network, pixels, 0)
    assert [stage.name for stage in (first, second)] == ["pre-training", "training"]
    assert network.encoder in first.trained
    assert network.encoder not in second.trained
    drawn = second.batch(np.random.default_rng(0))
    assert drawn["mask"].any(axis=(1, 2)).tolist() == [True] * 3 + [False] * 3
    pair = first.batch(np.random.default_rng(0))
    assert (pair["image"] != pair["clean"]).any(axis=(1, 2, 3)).all()
    assert len(create_detector("slsg", {"pretraining_steps": 0}).stages(network, pixels, 0)) == 1
    names = {"focal", "L1", "auxiliary"}
    tensors = {name: torch.from_numpy(value) for name, value in drawn.items()}
    assert set(second.losses(tensors)) == names
    spherical = create_detector("slsg", {"batch": 6, "hypersphere": 0.1}).stages(network, pixels, 0)[-1]
    assert set(spherical.losses(tensors)) == {*names, "hypersphere"}
    assert spherical.helper is not None


def test_the_loss_is_the_codes_sum() -> None:
    detector = create_detector("slsg", {"batch": 2})
    network = detector.network(detector.backbone(RANDOM), (64, 64)).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    stage = detector.stages(network, pixels, 0)[-1]
    tensors = {name: torch.from_numpy(value) for name, value in stage.batch(np.random.default_rng(2)).items()}
    with torch.inference_mode():
        terms = stage.losses(tensors)
        logits, auxiliary, _ = network.logits(tensors["image"].float().permute(0, 3, 1, 2))
    target = F.avg_pool2d(tensors["mask"].float()[:, None], 2)[:, 0]
    chances, own = torch.softmax(logits, 1), torch.softmax(auxiliary, 1)
    per_pixel = [-((1 - chances[:, c]) ** 4) * chances[:, c].log() for c in (0, 1)]
    expected = {
        "focal": 0.4 * (per_pixel[1] * target + per_pixel[0] * (1 - target)).mean(),
        "L1": 0.6 * (chances[:, 1] - target).abs().mean(),
        "auxiliary": 0.3 * (own[:, 1] - target).abs().mean(),
    }
    for name, value in expected.items():
        assert float(terms[name]) == pytest.approx(float(value), rel=1e-4)
