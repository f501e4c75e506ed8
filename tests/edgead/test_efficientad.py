"""EfficientAD-S: the networks' sizes and grids, distillation, the three losses, and how two maps become one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from edgead.detectors import create_detector
from edgead.detectors.efficientad import hard_mean, scale_maps
from edgead.detectors.networks.efficientad_network import AutoEncoder, Describer, PatchDescriber, compress
from edgead.detectors.networks.encoders import TapEncoder
from edgead.features.backbones import BackboneSpec
from edgead.runtime.errors import ConfigError
from edgead.synthesis import open_textures

RANDOM = BackboneSpec("efficientnet_lite0", "random")
SIZE = (64, 96)


def make(**settings: Any) -> tuple[Any, Any]:
    detector = create_detector("efficientad", {"width": 0.1, "channels": 8, "batch": 3, **settings})
    torch.manual_seed(0)
    return detector, detector.network(detector.backbone(RANDOM), SIZE).eval()


def pixels(count: int = 6) -> Any:
    return np.random.default_rng(0).integers(0, 256, (count, *SIZE, 3), dtype=np.uint8)


def planes(images: Any) -> Tensor:
    return torch.as_tensor(images).float().permute(0, 3, 1, 2)


# Sizes


def test_the_full_network_has_the_size_of_the_specification() -> None:
    detector = create_detector("efficientad", {"profile": "full"})
    with torch.device("meta"):
        network = detector.network(RANDOM, (256, 256)).eval().to("meta")
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(8.1e6, rel=0.05)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        _, grid = network(torch.zeros(1, 3, 256, 256, device="meta"))
    assert counter.get_total_flops() / 2 == pytest.approx(38.0e9, rel=0.05)
    assert grid.shape == (1, 64, 64)
    recipe = detector._recipe(detector.settings.steps, detector.settings.batch, 20)
    assert (recipe.steps, recipe.batch, recipe.optimiser, recipe.learning_rate) == (70_000, 1, "adam", 1e-4)
    assert [recipe.rate(step) for step in (0, 66_499)] == [1e-4, 1e-4]
    assert recipe.rate(66_500) == pytest.approx(1e-5)


@pytest.mark.slow
def test_the_full_network_takes_a_step_exports_and_judges_a_frame(step_and_export: Any) -> None:
    detector = create_detector("efficientad", {"profile": "full"})
    step_and_export(detector, detector.network(detector.backbone(RANDOM), (256, 256)))


def test_a_patch_describer_sees_33_pixels_a_side_and_no_padding() -> None:
    torch.manual_seed(0)
    describer = PatchDescriber((4, 5, 6), 7).double()
    images = torch.rand(1, 3, 64, 96, dtype=torch.float64, requires_grad=True)
    found = describer(images)
    assert found.shape == (1, 7, 8, 16)
    (gradient,) = torch.autograd.grad(found[0, :, 3, 5].abs().sum(), images)
    rows, columns = (gradient[0].abs().sum(0).sum(axis).nonzero().flatten() for axis in (1, 0))
    assert rows.min() >= 4 * 3
    assert rows.max() <= 4 * 3 + 32
    assert columns.min() >= 4 * 5
    assert columns.max() <= 4 * 5 + 32


@pytest.mark.parametrize("size", [(64, 64), (128, 64), (96, 160)])
def test_the_auto_encoder_answers_on_the_same_grid_through_one_vector(size: tuple[int, int]) -> None:
    network = AutoEncoder(8, 5, size).eval()
    images = torch.rand(2, 3, *size)
    assert network(images).shape == (2, 5, size[0] // 4 - 8, size[1] // 4 - 8)
    deep = images
    for layer in network.encoder:
        deep = F.relu(layer(deep))
    assert network.bottleneck(deep).shape == (2, 16, 1, 1)


def test_images_that_leave_no_grid_are_refused() -> None:
    detector = create_detector("efficientad")
    with pytest.raises(ConfigError, match="at least 64 pixels a side, got 96x32"):
        detector.network(RANDOM, (32, 96))


# The teacher


def test_the_teacher_is_taught_channels_of_mean_0_and_variance_1() -> None:
    torch.manual_seed(0)
    describer = Describer(TapEncoder(BackboneSpec("efficientnet_lite0", "random", (4, 8, 16)), SIZE), 12)
    matrix = describer.turn.weight[:, :, 0, 0].detach().double().clone()
    describer.eval().measure(pixels(5))
    with torch.no_grad():
        target = describer(planes(pixels(5)))
    assert target.shape == (5, 12, 8, 16)
    assert target.mean((0, 2, 3)).abs().max() < 1e-3
    torch.testing.assert_close(target.std((0, 2, 3), correction=0), torch.ones(12), atol=1e-3, rtol=0)
    # By hand: average, resize, standardise, turn, standardise.
    with torch.no_grad():
        taps = [F.avg_pool2d(tap, 3, 1, 1) for tap in describer.encoder(planes(pixels(5)))]
        whole = torch.cat([F.interpolate(tap, (16, 24), mode="bilinear") for tap in taps], 1)[:, :, 4:-4, 4:-4].double()
    whole = (whole - whole.mean((0, 2, 3), keepdim=True)) / whole.std((0, 2, 3), correction=0, keepdim=True)
    turned = torch.einsum("nchw,dc->ndhw", whole, matrix)
    expected = (turned - turned.mean((0, 2, 3), keepdim=True)) / turned.std((0, 2, 3), correction=0, keepdim=True)
    torch.testing.assert_close(target.double(), expected, atol=1e-2, rtol=1e-2)


def test_the_teachers_answers_are_standardised_before_it_is_followed() -> None:
    _, network = make(teacher="distilled")
    images = pixels(4)
    with torch.no_grad():
        before = network.taught(planes(images))
        network.standardise_teacher(images)
        after = network.taught(planes(images))
    mean, std = before.mean((0, 2, 3), keepdim=True), before.std((0, 2, 3), correction=0, keepdim=True)
    torch.testing.assert_close(after, (before - mean) / std, atol=1e-3, rtol=1e-3)


def test_the_backbone_itself_may_teach() -> None:
    detector, network = make(teacher="backbone")
    stages = detector.stages(network, pixels(), 0)
    assert [stage.name for stage in stages] == ["training"]
    stages[0].start()
    with torch.no_grad():
        answers = network.taught(planes(pixels()))
    assert answers.mean((0, 2, 3)).abs().max() < 1e-3
    torch.testing.assert_close(answers.std((0, 2, 3), correction=0), torch.ones(8), atol=1e-3, rtol=0)
    assert not any(module is network.teacher for module in stages[0].trained)


def test_distillation_shows_parts_textures_and_both() -> None:
    detector, network = make(distillation_batch=6, teacher="distilled")
    images = np.full((4, *SIZE, 3), 90, np.uint8)
    stages = detector.stages(network, images, 0)
    assert [stage.name for stage in stages] == ["distillation", "training"]
    drawn = stages[0].batch(np.random.default_rng(0))["image"]
    assert len(drawn) == 6
    untouched = [float((image == 90).mean()) for image in drawn]
    assert untouched[0] == untouched[3] == 1.0
    assert max(untouched[1], untouched[4]) < 0.5
    assert all(0 < share < 1 for share in (untouched[2], untouched[5]))


# Student and auto-encoder


def test_the_hardest_differences_count() -> None:
    values = torch.rand(4, 5, 6, 7)
    ordered = np.sort(values.numpy().ravel())
    assert float(hard_mean(values, 0.99)) == pytest.approx(ordered[-8:].mean())
    assert float(hard_mean(values, 0.0)) == pytest.approx(ordered.mean(), rel=1e-5)
    assert float(hard_mean(values[:1, :1, :1, :2], 0.999)) == pytest.approx(float(values[0, 0, 0, :2].max()))


@pytest.mark.parametrize("strange_images", ["images", "both"])
def test_the_losses_are_their_formulas(strange_images: str) -> None:
    detector, network = make(hard=0.9, strange=strange_images)
    stage = detector.stages(network, pixels(), 0)[-1]
    tensors = {name: torch.from_numpy(value) for name, value in stage.batch(np.random.default_rng(0)).items()}
    assert set(tensors) == {"image", "shifted", "strange", "mask"}
    assert tensors["mask"].all(dim=1).all(dim=1).tolist() == [True, strange_images == "images", True]
    assert not torch.equal(tensors["image"], tensors["shifted"])
    with torch.no_grad():
        terms = {name: float(value) for name, value in stage.losses(tensors).items()}
        clean, shifted, strange = (network.normalise(planes(tensors[n])) for n in ("image", "shifted", "strange"))
        taught = [network.taught(planes(tensors[name])) for name in ("image", "shifted")]
        first = ((taught[0] - network.student(clean)[:, :8]) ** 2).numpy()
        rebuilt = network.autoencoder(shifted)
        energy = total = 0.0
        answers = network.student(strange)[:, :8]
        for n in range(3):
            for i in range(8):
                for j in range(16):
                    cell = tensors["mask"][n, 4 * i + 16 : 4 * i + 20, 4 * j + 16 : 4 * j + 20]
                    energy += float(cell.float().mean()) * float((answers[n, :, i, j] ** 2).mean())
                    total += float(cell.float().mean())
        expected = {
            "student": np.sort(first.ravel())[-round(0.1 * first.size) :].mean(),
            "strange": energy / total,
            "auto-encoder": float(((taught[1] - rebuilt) ** 2).mean()),
            "second student": float(((rebuilt - network.student(shifted)[:, 8:]) ** 2).mean()),
        }
    assert terms == pytest.approx(expected, rel=1e-4)
    assert not any(module is network.teacher for module in stage.trained)


def test_strange_images_come_from_the_folder_that_was_given(tmp_path: Path) -> None:
    Image.new("RGB", (80, 70), (255, 0, 0)).save(tmp_path / "red.png")
    detector, network = make(textures=str(tmp_path), strange="images")
    photos = open_textures(str(tmp_path), *SIZE, grey=False)
    drawn = detector.stages(network, pixels(), 0)[-1].batch(np.random.default_rng(4))["strange"]
    # One colour stays one colour, whatever is done to it; procedural textures have many.
    assert all(np.ptp(image.reshape(-1, 3), axis=0).max() == 0 for image in (*drawn, photos(np.random.default_rng(0))))
    assert detector.settings.stated().textures == tmp_path.name


# Score


def test_held_out_quantiles_put_both_maps_on_one_scale() -> None:
    detector, network = make(smooth=False)
    images = pixels(6)
    with torch.inference_mode():
        detector.complete(network, images[:2], images[2:])
        local, overall = (one.double().numpy() for one in network.maps(planes(images[2:])))
        score, grid = network(planes(images[2:]))
    scaled = []
    for one in (local, overall):
        low, high = np.quantile(one, [0.9, 0.995])
        scaled.append(0.1 * (one - low) / (high - low))
    mean = (scaled[0] + scaled[1]) / 2
    mean = np.where(mean > 0, 0.1 * np.log1p(np.maximum(mean, 0) / 0.1), mean)
    expected = np.pad(mean, ((0, 0), (4, 4), (4, 4)), mode="edge")
    assert grid.shape == (4, 16, 24)
    np.testing.assert_allclose(grid.numpy(), expected, atol=1e-3)
    np.testing.assert_allclose(score.numpy(), expected.max((1, 2)), atol=1e-3)


def test_large_values_are_compressed_and_keep_their_order() -> None:
    values = torch.linspace(-2, 50, 1001)
    found = compress(values)
    assert (found.diff() > 0).all()
    assert torch.equal(found[values <= 0], values[values <= 0])
    assert found.max() < 1
    assert float(compress(torch.tensor(1e-3))) == pytest.approx(1e-3, rel=0.01)


def test_both_maps_are_scaled_alike_on_normals() -> None:
    _, network = make()
    network.eval()
    images = np.random.default_rng(0).integers(0, 256, (5, SIZE[0], SIZE[1], 3), dtype=np.uint8)
    scale_maps(network, images)
    with torch.no_grad():
        maps = network.maps(torch.from_numpy(images).permute(0, 3, 1, 2).float())
    for which, values in enumerate(maps):
        scaled = (values.double().numpy() - float(network.low[which])) * float(network.gain[which])
        np.testing.assert_allclose(np.quantile(scaled, (0.9, 0.995)), (0.0, 0.1), atol=1e-4)
