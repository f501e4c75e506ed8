"""Vision transformers as backbones: beside timm's own, in graphs, in half, and from a fit to a bundle."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from onnx import TensorProto
from safetensors.torch import save_file
from torch import Tensor

import edgead
from edgead.detectors import create_detector
from edgead.export.graph.lint import lint
from edgead.export.graph.partition import element_types
from edgead.export.graph.tracing import export_onnx
from edgead.export.precision.fp16 import convert_fp16
from edgead.export.precision.simulate_fp16 import SIMULATED
from edgead.features.backbones import DEFAULT_TAPS, BackboneSpec, build_backbone, input_statistics, size_step
from edgead.features.features import build_extractor
from edgead.runtime.device.check import check_bundle
from edgead.runtime.errors import ConfigError, DataError

TINY = "vit_tiny_patch16_224"
# Absolute positions; patches of 14; registers; rotary positions by halves; of each block its own; of neighbours, gated.
NAMES = [
    TINY,
    "vit_small_patch14_dinov2",
    "vit_small_patch14_reg4_dinov2",
    "vit_tiny_patch16_dinov3_qkvb",
    "vit_small_patch16_rope_mixed_ape_224",
    "eva02_tiny_patch14_224",
]
SMALL = "test_vit"


@cache
def state_of(name: str) -> dict[str, Tensor]:
    """Weights, biases, scales and tokens that all matter, in timm's layout for its own size."""
    generator = torch.Generator().manual_seed(3)
    state = timm.create_model(name, num_classes=0).state_dict()
    for key, value in state.items():
        if value.ndim > 1 and not key.endswith(("_token", "pos_embed", "freqs")):
            value.normal_(0, value[0].numel() ** -0.5, generator=generator)
        elif key.endswith(("norm.weight", "norm1.weight", "norm2.weight", "gamma")):
            value.uniform_(0.5, 1.5, generator=generator)
        elif not key.endswith("freqs"):
            value.normal_(0, 0.3, generator=generator)
    return {key: value.contiguous() for key, value in state.items()}


def pixels(size: tuple[int, int], count: int = 2) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, *size, 3), dtype=np.uint8))


def by_timm(name: str, taps: Sequence[int], images: Tensor) -> list[Tensor]:
    """timm's tokens, of positions that it resamples in the pass."""
    network = timm.create_model(name, num_classes=0, dynamic_img_size=True).eval()
    network.load_state_dict(state_of(name))
    mean, std = (torch.tensor(v)[:, None, None] for v in input_statistics(network, BackboneSpec(name, "random", ())))
    with torch.inference_mode():
        found: list[Tensor] = network.forward_intermediates(
            (images.permute(0, 3, 1, 2) - mean) / std,
            indices=[tap - 1 for tap in taps],
            norm=True,
            intermediates_only=True,
        )
    return found


def file_of(name: str, folder: Path) -> Path:
    save_file(state_of(name), folder / "weights.safetensors")
    return folder / "weights.safetensors"


@pytest.mark.parametrize("name", NAMES)
def test_tokens_are_those_of_timm_at_another_size(name: str, tmp_path: Path) -> None:
    size = (224, 448) if "patch14" in name else (64, 96)
    spec = BackboneSpec.parse(f"{name}@{file_of(name, tmp_path)}", (5, 12))
    images = pixels(size)
    backbone = build_backbone(spec, size)
    with torch.inference_mode():
        taps = backbone(images)
    patch = 14 if "patch14" in name else 16
    for tap, wanted in zip(taps, by_timm(name, (5, 12), images), strict=True):
        assert tap.shape == (2, wanted.shape[1], size[0] // patch, size[1] // patch)
        assert float((tap - wanted).abs().max()) <= 1e-4 * float(wanted.abs().max())
    assert backbone.channels == tuple(tap.shape[1] for tap in taps)
    assert not any(value.requires_grad for value in backbone.parameters())


def test_only_blocks_up_to_the_last_tap_are_left_and_needed(tmp_path: Path) -> None:
    later = ("blocks.4", "blocks.5", "blocks.6", "blocks.7", "blocks.8", "blocks.9", "blocks.10", "blocks.11")
    part = {key: value for key, value in state_of(TINY).items() if not key.startswith(later)}
    torch.save({"model": {**part, "head.weight": torch.zeros(10, 192)}}, tmp_path / "part.pth")
    images = pixels((64, 64))
    backbone = build_backbone(BackboneSpec.parse(f"{TINY}@{tmp_path / 'part.pth'}", (2, 4)), (64, 64))
    assert len(backbone.body.blocks) == 4  # type: ignore[arg-type]
    with torch.inference_mode():
        taps = backbone(images)
    for tap, wanted in zip(taps, by_timm(TINY, (2, 4), images), strict=True):
        assert float((tap - wanted).abs().max()) <= 1e-4 * float(wanted.abs().max())
    with pytest.raises(DataError, match=r"blocks\.4"):
        build_backbone(BackboneSpec.parse(f"{TINY}@{tmp_path / 'part.pth'}", (5,)), (64, 64))


def test_the_file_that_dinov2_publishes_is_translated(tmp_path: Path) -> None:
    name = "vit_small_patch14_reg4_dinov2"
    state = dict(state_of(name))
    # Theirs has a position for the class token, which timm keeps in the token.
    own = torch.randn(state["cls_token"].shape, generator=torch.Generator().manual_seed(0))
    state["pos_embed"] = torch.cat([own, state["pos_embed"]], dim=1)
    state["cls_token"] = state["cls_token"] - own
    state |= {"register_tokens": state.pop("reg_token"), "mask_token": torch.zeros(1, 384)}
    torch.save(state, tmp_path / "dinov2_vits14_reg4_pretrain.pth")
    images = pixels((224, 224), 1)
    spec = BackboneSpec.parse(f"{name}@{tmp_path / 'dinov2_vits14_reg4_pretrain.pth'}")
    with torch.inference_mode():
        (tap,) = build_backbone(spec, (224, 224))(images)
    (wanted,) = by_timm(name, (12,), images)
    assert float((tap - wanted).abs().max()) <= 1e-4 * float(wanted.abs().max())


def test_tokens_are_taken_as_they_are_where_cells_of_convolutions_are_averaged() -> None:
    backbone = build_backbone(BackboneSpec.parse(f"{SMALL}@random", (2, 6)), (64, 64))
    extractor = build_extractor(backbone, (64, 64))
    images = pixels((64, 64))
    with torch.inference_mode():
        assert torch.equal(extractor(images), torch.cat(backbone(images), dim=1))
        kept = np.array([1, 70])
        assert torch.equal(extractor.select(kept)(images), extractor(images)[:, kept])


def test_without_taps_the_last_block_is_taken() -> None:
    assert BackboneSpec.parse(f"{TINY}@random").strides == (12,)
    assert BackboneSpec.parse("vit_large_patch14_dinov2@random").strides == (24,)
    assert BackboneSpec.parse("resnet18@random").strides == BackboneSpec().strides == DEFAULT_TAPS
    assert [size_step(name) for name in ("resnet18", TINY, "vit_small_patch14_dinov2")] == [32, 32, 224]


@pytest.mark.parametrize("name", [SMALL, "vit_tiny_patch16_dinov3_qkvb", "eva02_tiny_patch14_224"])
def test_the_graph_asks_for_no_shape(name: str) -> None:
    size = (224, 224) if "patch14" in name else (64, 96)
    backbone = build_backbone(BackboneSpec.parse(f"{name}@random", (2,)), size)
    model = export_onnx(backbone, *size, ["tokens"])
    assert lint(model, ["tokens"]) == []
    kinds = [node.op_type for node in model.graph.node]
    assert kinds[0] == "Cast"
    assert kinds.count("Conv") == 1
    assert not {"Shape", "Expand", "ConstantOfShape", "Range", "Resize", "Cos", "Sin"} & set(kinds)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    for count in (1, 3):
        images = pixels(size, count)
        with torch.inference_mode():
            wanted = backbone(images)[0].numpy()
        found = session.run(None, {"images": images.numpy()})[0]
        assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()


def test_half_takes_matrix_products_and_leaves_normalisations_and_softmax() -> None:
    model = export_onnx(build_backbone(BackboneSpec.parse(f"{SMALL}@random", (2,)), (64, 64)), 64, 64, ["tokens"])
    half = convert_fp16(model)
    assert lint(half, ["tokens"], "fp16") == []
    types = element_types(half)
    kinds: dict[str, set[int]] = {}
    for node in half.graph.node:
        kinds.setdefault(node.op_type, set()).add(types[node.output[0]])
    for kind in ("MatMul", "Erf", "Conv"):
        assert kinds[kind] == {TensorProto.FLOAT16}
    for kind in ("LayerNormalization", "Softmax"):
        assert kinds[kind] == {TensorProto.FLOAT}


@pytest.mark.parametrize(
    ("text", "taps", "size", "message"),
    [
        (f"{TINY}@random", (8, 16), 64, "numbers of its blocks, 1 to 12, rising; got 8,16"),
        (f"{TINY}@random", (0,), 64, "1 to 12"),
        (f"{TINY}@random", (4, 2), 64, "rising"),
        (f"{TINY}@random", (), 64, "got none"),
        ("vit_small_patch14_dinov2@random", None, 256, "multiples of 224 (224, 448, …), got 256x256"),
        ("vit_base_patch16_18x2_224@random", (12,), 64, "attention of a kind that is not known here"),
        ("vit_dlittle_patch16_reg1_gap_256@random", None, 64, "attention of a kind that is not known here"),
        ("vit_relpos_small_patch16_224@random", None, 64, "no tap of stride 8"),
        (f"{TINY}@package", None, 64, f"{TINY}@hub or {TINY}@FILE"),
    ],
)
def test_what_does_not_go_together_is_one_line(
    text: str, taps: tuple[int, ...] | None, size: int, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        build_backbone(BackboneSpec.parse(text, taps), (size, size))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong", ["another network", "other shapes", "no names"])
def test_wrong_weights_are_one_line(wrong: str, tmp_path: Path) -> None:
    state = dict(state_of(TINY))
    if wrong == "another network":
        state = {key.replace("blocks", "layers"): value for key, value in state.items()}
    elif wrong == "other shapes":
        state["norm.weight"] = torch.zeros(3)
    else:
        state = {"layer": torch.zeros(3)}
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(DataError) as caught:
        build_backbone(BackboneSpec.parse(f"{TINY}@{tmp_path / 'w.safetensors'}"), (64, 64))
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "w.safetensors") in str(caught.value)


def test_a_detector_that_trains_a_network_wants_a_convolutional_one() -> None:
    with pytest.raises(ConfigError, match="takes convolutional backbones only"):
        create_detector("slsg", {"profile": "small"}).backbone(BackboneSpec.parse(f"{TINY}@random"))


@pytest.mark.parametrize("detector", ["fre", "patchcore", "padim", "protoad"])
def test_from_a_fit_to_a_bundle(detector: str, made_images: Path, tmp_path: Path) -> None:
    plate = made_images / "plate"
    settings = {"dimensions": 20} if detector == "padim" else {}
    model = edgead.fit(plate, detector=detector, settings=settings, size=96, backbone=f"{SMALL}@random")
    assert model.card.backbone == {"name": SMALL, "weights": "random", "strides": [6]}
    assert model.card.grid == (6, 6)
    images = sorted((plate / "test" / "good").iterdir())[:2]
    model.save(tmp_path / "model")
    again = edgead.load_model(tmp_path / "model")
    assert [one.score for one in again.predict(images)] == [one.score for one in model.predict(images)]
    assert again.evaluate(plate).image_auroc is not None
    bundle = tmp_path / "m.edgead"
    report = again.export(bundle, fp16=detector == "fre", images=images)
    assert report.passed
    assert check_bundle(bundle).passed
    if detector == "fre":
        half = report.parity["model.fp16.onnx"][SIMULATED]
        assert half.drop is not None
        assert half.drop < 0.05
        assert half.half_margin is not None
        assert half.half_margin > 2
        with pytest.raises(ConfigError, match=r"a vision transformer has one, its patch embedding"):
            again.export(bundle, int8=True)
    with zipfile.ZipFile(bundle) as archive:
        assert json.loads(archive.read("manifest.json"))["provenance"]["random_weights"] is True
        graph = onnx.load_from_string(archive.read("model.fp32.onnx")).graph
    assert sum(node.op_type == "Softmax" for node in graph.node) >= 6
