"""The network of SLSG, and what only its pre-training needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edgead.detectors.losses import anomaly_probability
from edgead.detectors.networks.blocks import ConvNorm, Depthwise, double, upsample
from edgead.detectors.networks.encoders import TapEncoder
from edgead.detectors.networks.graph_layer import GraphLayer
from edgead.detectors.networks.one_class import Composition, Judgement
from edgead.features.scoring import GaussianSmoothing

_AUXILIARY = 32
_WIDTHS = (256, 128, 64, 64)  # of the decoder's levels, coarsest first
_LARGEST = 100  # map values of 256 x 256 whose mean is the image score


class SlsgNetwork(nn.Module):
    """Pixels ``(N, 3, h, w)`` from 0 to 255 to score ``(N,)`` and map ``(N, gh, gw)``, see `LearnedDetector`.

    Args:
        encoder: taps finest first, each at most twice as coarse as the one before; the first is the stem.
        settings: filled.
        size: of the input.
    """

    def __init__(self, encoder: TapEncoder, settings: Any, size: tuple[int, int]) -> None:
        super().__init__()
        self.encoder = encoder
        channels, strides = encoder.channels, encoder.strides
        deepest, coarsest = channels[-1], strides[-1]
        grid = (size[0] // coarsest, size[1] // coarsest)
        self.graph: nn.Module = nn.Identity()
        if settings.graph:
            self.graph = GraphLayer(deepest, grid, favour_distant=settings.favour_distant)
        self.gates = nn.ModuleList(Gate(c) for c in channels[1:-1])
        self.auxiliary = nn.Sequential(ConvNorm(deepest, deepest // 2), ConvNorm(deepest // 2, _AUXILIARY))
        self.auxiliary_out = nn.Conv2d(_AUXILIARY, 2, 1)
        self.decoder = _Decoder(channels, strides, settings.output_stride, settings.width)
        self.enlarge = coarsest // settings.output_stride
        cells = (size[0] // settings.output_stride, size[1] // settings.output_stride)
        self.smoothing = GaussianSmoothing(4.0 * min(cells) / 256.0) if settings.smooth else nn.Identity()
        self.largest = max(1, round(_LARGEST * cells[0] * cells[1] / 65536))
        self.composition: Composition | None = None
        if settings.one_class:
            grids = [(size[0] // stride, size[1] // stride) for stride in strides]
            self.composition, self.judgement = Composition(channels, grids), Judgement()

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        of_map, raw, features = self.parts(pixels)
        if self.composition is None:
            return of_map, raw
        judged: tuple[Tensor, Tensor] = self.judgement(of_map, self.composition(features), raw)
        return judged

    def parts(self, pixels: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return the map's own score ``(N,)``, the map from 0 to 1, and the features whose composition is judged."""
        taps = self.encoder(pixels)
        logits, _, nodes = self._decode(taps)
        raw: Tensor = self.smoothing(anomaly_probability(logits))
        return torch.topk(raw.flatten(1), self.largest, dim=1).values.mean(1), raw, [*taps[:-1], nodes]

    def logits(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the logits and the auxiliary head's ``(N, 2, gh, gw)``, and the graph's nodes ``(N, C, h, w)``."""
        return self._decode(self.encoder(pixels))

    def _decode(self, taps: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        stem, *inner, deepest = taps
        skips = [stem, *(gate(one) for gate, one in zip(self.gates, inner, strict=True))]
        nodes = self.graph(deepest)
        auxiliary = self.auxiliary(nodes)
        own = upsample(self.auxiliary_out(auxiliary), self.enlarge)
        return self.decoder(nodes, skips, auxiliary) + own, own, nodes


class Gate(nn.Module):
    """``x + PW(ReLU(x * PW(DW3x3, dilation 3 (DW3x3(x)))))``: what of a skip goes on [C]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.near = Depthwise(channels, channels, 3, padding=1, groups=channels)
        self.far = Depthwise(channels, channels, 3, padding=3, dilation=3, groups=channels)
        self.mix = nn.Conv2d(channels, channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        attention = self.mix(self.far(self.near(features)))
        gated: Tensor = self.out(torch.relu(features * attention))
        return features + gated


class _Decoder(nn.Module):
    """From the nodes up: at each level twice as fine, two 3x3 convolutions of all skips of that stride [C, counts R].

    The auxiliary features join at every level with a skip but the coarsest.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], finest: int, width: float) -> None:
        super().__init__()
        stride, before = strides[-1], channels[-1]
        levels: list[nn.Module] = []
        self._skips: list[list[int]] = []
        self._factors: list[int] = []  # of the auxiliary features; 0 where they do not join
        while stride > finest:
            stride //= 2
            skips = [index for index in range(len(strides) - 1) if strides[index] == stride]
            joins = bool(skips) and bool(levels)
            self._skips.append(skips)
            self._factors.append(strides[-1] // stride if joins else 0)
            out = max(8, round(_WIDTHS[min(len(levels), len(_WIDTHS) - 1)] * width))
            levels.append(double(before + sum(channels[i] for i in skips) + _AUXILIARY * joins, out))
            before = out
        self.levels = nn.ModuleList(levels)
        self.out = nn.Conv2d(before, 2, 1)

    def forward(self, nodes: Tensor, skips: Sequence[Tensor], auxiliary: Tensor) -> Tensor:
        for level, wanted, factor in zip(self.levels, self._skips, self._factors, strict=True):
            parts = [upsample(nodes), *(skips[index] for index in wanted)]
            if factor:
                parts.append(upsample(auxiliary, factor))
            nodes = level(torch.cat(parts, 1))
        logits: Tensor = self.out(nodes)
        return logits


class MirrorDecoder(nn.Module):
    """From the coarsest features to an image ``(N, 3, h / 2, w / 2)`` from 0 to 1, without skips [R]."""

    def __init__(self, channels: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        levels, before, stride = [], channels[-1], strides[-1]
        for index in range(len(strides) - 2, -1, -1):
            factor = stride // strides[index]
            block = [] if factor == 1 else [nn.Upsample(scale_factor=factor, mode="bilinear", align_corners=False)]
            levels.append(nn.Sequential(*block, ConvNorm(before, channels[index])))
            before, stride = channels[index], strides[index]
        self.levels = nn.Sequential(*levels)
        self.out = nn.Conv2d(before, 3, 1)

    def forward(self, features: Tensor) -> Tensor:
        return torch.sigmoid(self.out(self.levels(features)))


class Hypersphere(nn.Module):
    """The optional pull of normal nodes to a centre, and push of forged ones from it [R].

    ``mean_normal |z - c|^2 + mean_forged max(0, margin - |z - c|)^2``, c an exponential mean of the normal nodes.
    """

    center: Tensor
    started: Tensor

    def __init__(self, channels: int, margin: float = 1.0, keep: float = 0.99) -> None:
        super().__init__()
        self.margin, self.keep = margin, keep
        self.register_buffer("center", torch.zeros(channels))
        self.register_buffer("started", torch.zeros(()))

    def forward(self, nodes: Tensor, share: Tensor) -> Tensor:
        """Return the loss of nodes ``(N, C, h, w)``; ``share (N, h, w)`` of each is forged."""
        flat = nodes.float().permute(0, 2, 3, 1).flatten(0, 2)
        forged = share.flatten() > 0.5
        normal = share.flatten() == 0
        if self.training and bool(normal.any()):
            mean = flat[normal].detach().mean(0)
            keep = self.keep * self.started
            self.center.copy_(keep * self.center + (1 - keep) * mean)
            self.started.fill_(1.0)
        squared = (flat - self.center).square().sum(1)
        pull = squared[normal].mean() if bool(normal.any()) else flat.new_zeros(())
        if not bool(forged.any()):
            return pull
        return pull + (self.margin - torch.sqrt(squared[forged] + 1e-12)).clamp(min=0).square().mean()
