"""ISSTAD: patches in their order, masks, losses, scores, public weights, and sizes against the specification."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from edgead.detectors import create_detector
from edgead.detectors.isstad import pixel_entropy
from edgead.detectors.losses import structural_similarity
from edgead.detectors.networks.isstad_network import MaskedAutoEncoder, draw_kept, masked_error
from edgead.detectors.networks.vit import (
    SIZES,
    Grid,
    VitEncoder,
    load_mae,
    patchify,
    sine_cosine,
    unpatchify,
)
from edgead.features.backbones import NO_BACKBONE, BackboneSpec
from edgead.runtime.errors import ConfigError, DataError
from edgead.training.training import train

SIZE = (64, 32)  # rows and columns differ, so that taking one for the other shows
TINY: dict[str, Any] = {
    "encoder": "own",
    "patch": 16,
    "decoder_width": 16,
    "batch": 3,
    "steps": 2,
    "pretraining_steps": 2,
    "map_stride": 1,
    "small": 0.0,
    "least_change": 0,
    "vary": False,
    "normal_weight": 3.0,
}


RANDOM = BackboneSpec("efficientnet_lite0", "random")


def make(size: tuple[int, int] = SIZE, **settings: Any) -> tuple[Any, Any]:
    detector = create_detector("isstad", {**TINY, **settings})
    torch.manual_seed(0)
    spec = RANDOM if detector.settings.encoder == "backbone" else NO_BACKBONE
    return detector, detector.network(detector.backbone(spec), size).eval()


def pixels(count: int = 5, size: tuple[int, int] = SIZE) -> Any:
    return np.random.default_rng(0).integers(0, 256, (count, *size, 3), dtype=np.uint8)


# Sizes


def test_the_full_network_has_the_size_of_the_specification() -> None:
    detector = create_detector("isstad", {"profile": "full"})
    with torch.device("meta"):
        network = detector.network(NO_BACKBONE, (224, 224)).to("meta")
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(342e6, rel=0.05)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        _, grid = network(torch.zeros(1, 3, 224, 224, device="meta"))
    assert counter.get_total_flops() / 2 == pytest.approx(70.3e9, rel=0.05)
    assert grid.shape == (1, 224, 224)
    first, second = detector.stages(network, np.zeros((2, 224, 224, 3), np.uint8), 0)
    assert (first.recipe.batch, first.recipe.betas, first.recipe.weight_decay) == (20, (0.9, 0.95), 0.05)
    assert first.recipe.learning_rate == pytest.approx(1e-3 * 20 / 256)
    assert first.recipe.warm_up == pytest.approx(first.recipe.steps * 40 / 300)
    rates = [second.recipe.rate(step) for step in range(second.recipe.steps)]
    period = second.recipe.steps * 30 // 200
    assert rates[0] == rates[2 * period] == 1e-3
    assert rates[period] == pytest.approx(1e-6)  # the floor, half a swing on


@pytest.mark.slow
def test_the_full_network_takes_a_step_exports_and_judges_a_frame(step_and_export: Any) -> None:
    detector = create_detector("isstad", {"profile": "full"})
    step_and_export(detector, detector.network(NO_BACKBONE, (224, 224)), 224)


@pytest.mark.parametrize("vit", ["tiny", "small", "base"])
def test_encoders_of_every_published_size_build(vit: str) -> None:
    millions = {"tiny": 5.7, "small": 22.1, "base": 86.6}  # of the classifiers, with a head of up to 0.8
    with torch.device("meta"):
        encoder = VitEncoder(SIZES[vit], Grid(16, 14, 14))
    assert sum(p.numel() for p in encoder.parameters()) == pytest.approx(1e6 * millions[vit], rel=0.05)


# Patches


def test_patches_keep_their_order_and_go_back_to_their_places() -> None:
    images = torch.rand(2, 3, *SIZE)
    grid = Grid.of(SIZE, 16)
    assert (grid.rows, grid.columns) == (4, 2)
    tokens = patchify(images, grid)
    for number in range(grid.count):
        row, column = divmod(number, grid.columns)
        patch = images[:, :, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
        assert torch.equal(tokens[:, number], patch.permute(0, 2, 3, 1).reshape(2, -1))
    assert torch.equal(unpatchify(tokens, grid), images)


def test_a_map_lies_over_the_patches_it_was_made_from() -> None:
    """The head of the last block paints each patch with its token's value."""
    _, network = make()
    blocks = torch.arange(8.0)[None, :, None].expand(1, 8, 16)
    with torch.no_grad():
        network.decoder.pixels.weight.fill_(1.0 / 16)
        network.decoder.pixels.bias.zero_()
    painted = network.map_logits(blocks)
    expected = torch.arange(8.0).reshape(4, 2).repeat_interleave(16, 0).repeat_interleave(16, 1)
    torch.testing.assert_close(painted[0, 0], expected)
    torch.testing.assert_close(painted[0, 1], expected)


def test_positions_are_those_of_the_released_code() -> None:
    grid = Grid(16, 4, 2)
    found = sine_cosine(16, grid)
    assert found.shape == (1, 9, 16)
    assert not found[0, 0].any()
    for row in range(4):
        for column in range(2):
            expected = []
            for place in (column, row):
                angles = [place / 10000 ** (i / 4) for i in range(4)]
                expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            np.testing.assert_allclose(found[0, 1 + 2 * row + column], expected, atol=1e-6)


def test_attention_and_blocks_are_their_formulas() -> None:
    _, network = make()
    block = network.encoder.blocks[0].double()
    x = torch.rand(2, 5, 192, dtype=torch.float64)

    def norm(layer: Any, values: Any) -> Any:
        away = values - values.mean(-1, keepdims=True)
        return away / np.sqrt((away**2).mean(-1, keepdims=True) + 1e-6) * layer.weight.numpy() + layer.bias.numpy()

    def linear(layer: Any, values: Any) -> Any:
        return values @ layer.weight.numpy().T + layer.bias.numpy()

    with torch.no_grad():
        found = block(x).numpy()
        for image in range(2):
            rows = x[image].numpy()
            qkv = linear(block.attn.qkv, norm(block.norm1, rows))
            mixed = np.empty_like(rows)
            for head in range(3):
                query, key, value = (qkv[:, 192 * part + 64 * head : 192 * part + 64 * head + 64] for part in range(3))
                weights = np.exp(query @ key.T / 8.0)
                mixed[:, 64 * head : 64 * head + 64] = weights / weights.sum(1, keepdims=True) @ value
            rows = rows + linear(block.attn.proj, mixed)
            hidden = linear(block.mlp.fc1, norm(block.norm2, rows))
            hidden = hidden * 0.5 * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
            np.testing.assert_allclose(found[image], rows + linear(block.mlp.fc2, hidden), atol=1e-10)


# Stage 1


def test_a_quarter_of_the_patches_is_seen_in_their_order() -> None:
    kept = draw_kept(50, 64, np.random.default_rng(0))
    assert kept.shape == (50, 16)
    assert (np.diff(kept, axis=1) > 0).all()
    assert len({tuple(row) for row in kept}) == 50
    assert len(np.unique(kept)) == 64


def test_seen_tokens_return_to_their_places_and_the_others_hold_the_mask() -> None:
    _, network = make()
    masked = MaskedAutoEncoder(network)
    images, keep = torch.rand(2, 3, *SIZE) * 255, torch.tensor([[1, 6], [0, 3]])
    encoder, decoder = network.encoder, network.decoder
    with torch.no_grad():
        found = masked(network, images, keep)
        for image in range(2):
            patches = encoder.embed(network.normalise(images[image : image + 1]))
            embedded = decoder.embed(encoder.encode(patches[:, keep[image]]))
            row = [masked.mask_token[0, 0]] * 8
            for place, token in zip(keep[image].tolist(), embedded[0, 1:], strict=True):
                row[place] = token
            x = torch.stack([embedded[0, 0], *row])[None] + decoder.pos_embed
            for block in decoder.blocks[:2]:  # the first half of four
                x = block(x)
            torch.testing.assert_close(found[image], masked.pixels(decoder.norm(x))[0, 1:])
    changed = images.clone()
    changed[:, :, :16, 16:] = 0.0  # patch 1, which the first image shows and the second does not
    with torch.no_grad():
        again = masked(network, changed, keep)
    assert not torch.equal(again[0], found[0])
    assert torch.equal(again[1], found[1])


def test_the_error_counts_what_was_hidden() -> None:
    restored, patches = torch.rand(2, 6, 5), torch.rand(2, 6, 5)
    keep = torch.tensor([[0, 4], [2, 3]])
    terms = [
        float(((restored[n, t] - patches[n, t]) ** 2).mean())
        for n in range(2)
        for t in range(6)
        if t not in keep[n].tolist()
    ]
    assert float(masked_error(restored, patches, keep)) == pytest.approx(np.mean(terms), rel=1e-5)


# Stage 2


def test_normal_pixels_weigh_as_much_as_was_asked_for() -> None:
    logits, mask = torch.randn(2, 2, 3, 4), torch.randint(0, 2, (2, 3, 4))
    total = weight = 0.0
    for n in range(2):
        for i in range(3):
            for j in range(4):
                chances = torch.softmax(logits[n, :, i, j], 0)
                own = 1.0 if mask[n, i, j] else 3.0
                total -= own * math.log(float(chances[mask[n, i, j]]))
                weight += own
    assert float(pixel_entropy(logits, mask, 3.0)) == pytest.approx(total / weight, rel=1e-4)


@pytest.mark.parametrize("target", ["clean", "input"])
def test_the_losses_are_their_formulas_and_the_target_is_what_was_asked_for(target: str) -> None:
    detector, network = make(recon_target=target, batch=12)
    images = pixels()
    stage = detector.stages(network, images, 0)[1]
    drawn = stage.batch(np.random.default_rng(3))
    forged = drawn["mask"].any(axis=(1, 2))
    assert 4 < forged.sum() < 12  # two of three
    known = {image.tobytes() for image in images}
    assert [image.tobytes() in known for image in drawn["image"]] == [not one for one in forged]
    if target == "clean":
        assert all(image.tobytes() in known for image in drawn["target"])
    else:
        assert np.array_equal(drawn["target"], drawn["image"])
    # What is not masked is untouched.
    assert np.array_equal(drawn["image"][~drawn["mask"]], drawn["target"][~drawn["mask"]])

    tensors = {name: torch.from_numpy(value) for name, value in drawn.items()}
    with torch.no_grad():
        terms = {name: float(value) for name, value in stage.losses(tensors).items()}
        given, wanted = (tensors[name].float().permute(0, 3, 1, 2) for name in ("image", "target"))
        mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
        x = network.encoder((given - mean[:, None, None]) / std[:, None, None])
        blocks = network.decoder(x)
        assert len(blocks) == 4
        entropies = [
            F.cross_entropy(network.map_logits(block), tensors["mask"].long(), torch.tensor([3.0, 1.0]))
            for block in blocks
        ]
        restored = network.repaired(blocks)
    assert terms["entropy"] == pytest.approx(float(sum(entropies)) / 4, rel=1e-5)
    wanted_normalised = (wanted - mean[:, None, None]) / std[:, None, None]
    assert terms["L2"] == pytest.approx(0.5 * float(F.mse_loss(restored, wanted_normalised)), rel=1e-4)
    shown = (restored * std[:, None, None] + mean[:, None, None]) / 255
    similarity = float(structural_similarity(shown, wanted / 255))
    assert terms["SSIM"] == pytest.approx(0.1 * (1 - similarity), rel=1e-3)


def test_varied_images_are_moved_and_toned_together_with_their_masks_and_targets() -> None:
    """A bright square on grey: forged in place, it stays where its mask is, and its target is the square untouched."""
    flat = np.full((3, 64, 64, 3), 120, np.uint8)
    flat[:, 20:40, 24:44] = 200
    detector, network = make(size=(64, 64), vary=True, batch=24)
    drawn = detector.stages(network, flat, 0)[1].batch(np.random.default_rng(1))
    places, tones = set(), set()
    for image, target, mask in zip(drawn["image"], drawn["target"], drawn["mask"], strict=True):
        assert np.array_equal(image[~mask], target[~mask])
        rows, columns = (np.flatnonzero((target[..., 0] > target[0, 0, 0]).any(axis)) for axis in (1, 0))
        assert len(rows) == len(columns) == 20
        places.add((rows[0] - 20, columns[0] - 24))
        tones.add(int(target[0, 0, 0]))
    assert {abs(step) for place in places for step in place} == {0, 1, 2}  # 8 of 256 pixels
    assert len(tones) > 8


def test_the_encoder_learns_in_the_first_stage_only() -> None:
    detector, network = make(evaluations=1)
    stages = detector.stages(network, pixels(), 0)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    train(network, stages[:1], seed=0, device="cpu")
    after = {name: value.clone() for name, value in network.state_dict().items()}
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert "encoder.patch_embed.proj.weight" in moved
    assert "decoder.blocks.1.mlp.fc1.weight" in moved
    assert not any(name.startswith(("decoder.blocks.2", "decoder.blocks.3", "decoder.pixels")) for name in moved)
    train(network, stages[1:], seed=0, device="cpu")
    moved = {name for name, value in network.state_dict().items() if not torch.equal(value, after[name])}
    assert "decoder.blocks.3.mlp.fc1.weight" in moved
    assert "decoder.pixels.weight" in moved
    assert not any(name.startswith("encoder") for name in moved)


def test_a_backbones_cells_are_tokens_of_mean_0_and_variance_1_in_their_order() -> None:
    detector, network = make(encoder="backbone", patch=8)
    images = pixels(4)
    stages = detector.stages(network, images, 0)
    planes = torch.from_numpy(images).float().permute(0, 3, 1, 2)
    with torch.no_grad():
        tokens = network.encoder(network.encoder_input(planes))
        finest, fine, coarse = network.encoder.backbone(planes)
    assert tokens.shape == (4, 1 + 8 * 4, 4 * 24 + 40 + 112)
    assert not tokens[:, 0].any()
    rows = tokens[:, 1:].flatten(0, 1)
    assert rows.mean(0).abs().max() < 1e-3
    torch.testing.assert_close(rows.std(0, correction=0), torch.ones(248), atol=1e-2, rtol=0)
    # Each token holds the four cells of the finest tap in its patch, channel by channel.
    cells = finest.reshape(4, 24, 8, 2, 4, 2).permute(0, 1, 3, 5, 2, 4).reshape(4, 96, 8, 4)
    whole = torch.cat([cells, fine, F.interpolate(coarse, scale_factor=2, mode="bilinear")], 1)
    deviation, mean = torch.std_mean(whole, (0, 2, 3), correction=0)
    expected = (whole[1, :, 6, 2] - mean) / deviation
    torch.testing.assert_close(tokens[1, 1 + 4 * 6 + 2], expected, atol=1e-3, rtol=1e-2)
    before = {name: value.clone() for name, value in network.encoder.state_dict().items()}
    train(network, stages, seed=0, device="cpu")
    assert all(torch.equal(value, before[name]) for name, value in network.encoder.state_dict().items())


# Score


def test_the_map_and_the_scores_are_their_formulas() -> None:
    images = torch.rand(2, 3, *SIZE) * 255
    torch.manual_seed(1)
    for score in ("product", "probability", "extended"):
        _, network = make(score=score)
        blur = network.smoothing
        with torch.inference_mode():
            found, grid = network(images)
            x = network.normalise(images)
            blocks = network.decoder(network.encoder(x))
            p = torch.stack([torch.softmax(network.map_logits(block), 1)[:, 1] for block in blocks]).mean(0)
            r = ((network.repaired(blocks) - x) ** 2).mean(1)
            product = blur(blur(p) * blur(r))
        expected = blur(p) if score == "probability" else product
        torch.testing.assert_close(grid, expected, atol=1e-6, rtol=1e-5)
        if score == "product":
            wanted = product.mean((1, 2))
        elif score == "probability":
            wanted = blur(p).amax((1, 2))
        else:
            tenth = round(0.1 * 64 * 32)
            high = [one.flatten(1).sort(1, descending=True).values[:, :tenth].mean(1) for one in (p, r)]
            wanted = (1 + high[0]) * (1 + high[1])
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)


def test_a_coarser_map_holds_the_means_of_the_finer_one() -> None:
    images = torch.rand(1, 3, *SIZE) * 255
    _, fine = make(score="probability", smooth=False)
    _, coarse = make(score="probability", smooth=False, map_stride=4)
    coarse.load_state_dict(fine.state_dict())
    with torch.inference_mode():
        torch.testing.assert_close(coarse(images)[1], F.avg_pool2d(fine(images)[1], 4))


def test_scoring_is_repeatable() -> None:
    """The released code shuffles tokens at inference, so that two runs differ."""
    _, network = make()
    images = torch.rand(2, 3, *SIZE) * 255
    with torch.inference_mode():
        assert all(torch.equal(a, b) for a, b in zip(network(images), network(images), strict=True))


# Public weights


def released(encoder: VitEncoder, path: Path, **changes: Any) -> Path:
    """Write random weights as the auto-encoder's authors do: under "model", with a decoder behind the encoder."""
    generator = torch.Generator().manual_seed(5)
    state = {name: torch.randn(value.shape, generator=generator) for name, value in encoder.state_dict().items()}
    state |= {"mask_token": torch.zeros(1, 1, 8), "decoder_blocks.0.norm1.weight": torch.ones(8), **changes}
    torch.save({"model": {name: value for name, value in state.items() if value is not None}}, path)
    return path


def test_public_weights_load_from_a_file(tmp_path: Path) -> None:
    encoder = VitEncoder(SIZES["mini"], Grid(16, 4, 2))
    wanted = {"cls_token", "patch_embed.proj.weight", "blocks.5.attn.qkv.bias", "blocks.0.mlp.fc2.weight", "norm.bias"}
    assert wanted <= set(encoder.state_dict())
    path = released(encoder, tmp_path / "mae.pth")
    detector, network = make(mae_weights=str(path))
    saved = torch.load(path, weights_only=True)["model"]
    assert all(torch.equal(value, saved[name]) for name, value in network.encoder.state_dict().items())
    assert detector.settings.stated().mae_weights == "mae.pth"  # no folder of this machine
    # At another size the positions are the formula's.
    _, larger = make(size=(64, 64), mae_weights=str(path))
    np.testing.assert_array_equal(larger.encoder.pos_embed.numpy(), sine_cosine(192, Grid(16, 4, 4)))


def test_a_saved_model_does_not_need_the_file_again(tmp_path: Path) -> None:
    detector = create_detector("isstad", {**TINY, "mae_weights": str(tmp_path / "gone.pth")})
    detector.network(NO_BACKBONE, SIZE, load_weights=False)
    with pytest.raises(DataError, match="no weights at"):
        detector.network(NO_BACKBONE, SIZE)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    encoder = VitEncoder(SIZES["mini"], Grid(16, 4, 2))
    with pytest.raises(DataError, match=r"'norm\.weight' is not in it"):
        load_mae(encoder, released(encoder, tmp_path / "a.pth", **{"norm.weight": None}))
    with pytest.raises(DataError, match=r"'cls_token' is \(1, 1, 384\) and should be \(1, 1, 192\)"):
        load_mae(encoder, released(encoder, tmp_path / "b.pth", cls_token=torch.zeros(1, 1, 384)))
    with pytest.raises(DataError, match="an encoder of 7 blocks, wanted are 6"):
        load_mae(encoder, released(encoder, tmp_path / "c.pth", **{"blocks.6.norm1.weight": torch.ones(192)}))


def test_sizes_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ConfigError, match="an image of 96x64 is no multiple of patch=28"):
        make(size=(64, 96), patch=28)
    with pytest.raises(ConfigError, match="mae_weights are a transformer's"):
        create_detector("isstad", {"mae_weights": "mae.pth"})
    with pytest.raises(ConfigError, match="decoder_width=48 is no multiple of decoder_heads=5"):
        create_detector("isstad", {"decoder_width": 48, "decoder_heads": 5})
