"""A backbone cut after its last tap, with padding, batch normalisation and the scale of pixels folded into weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from edgead.runtime.errors import ConfigError


class Backbone(nn.Module):
    """Cut and folded network: ``(N, 3, h, w)`` float32 (mean already subtracted, range 0 to 255) -> one map a tap.

    Args:
        body: the network.
        mean: ``(3,)`` in grey levels.
        channels: of each tap.
        tokens: the taps are a transformer's tokens, each of which has seen the whole image.
    """

    mean: Tensor

    def __init__(self, body: nn.Module, mean: Sequence[float], channels: Sequence[int], tokens: bool = False) -> None:
        super().__init__()
        self.body = body
        self.channels = tuple(channels)
        self.tokens = tokens
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).reshape(1, 3, 1, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Map ``images (N, h, w, 3)`` uint8 RGB to the taps ``(N, C_i, h_i, w_i)`` float32, finest first."""
        # Cast before Transpose: TensorRT's parser refuses a uint8 Transpose.
        pixels = images.to(torch.float32).permute(0, 3, 1, 2) - self.mean
        taps: tuple[Tensor, ...] = self.body(pixels)
        return taps


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
    fold_scale(conv, std)


def fold_scale(conv: nn.Conv2d, std: Sequence[float]) -> None:
    """Fold the division of its input by ``std (3,)`` into a convolution, in float64."""
    scale = torch.tensor(std, dtype=torch.float64).reshape(1, -1, 1, 1)
    conv.weight = nn.Parameter((conv.weight.double() / scale).float())
