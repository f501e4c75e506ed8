"""What networks that are trained here are built of, in a form that folds to the least arithmetic."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

Activation = Literal["relu", "gelu", "none"]


class ConvNorm(nn.Module):
    """Convolution, batch normalisation, activation; ``(N, C, h, w)`` to ``(N, out, h / stride, w / stride)``."""

    def __init__(
        self,
        channels: int,
        out: int,
        kernel: int = 3,
        *,
        stride: int = 1,
        groups: int = 1,
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(out)
        self.activation = activation

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = self.norm(self.conv(features))
        if self.activation == "relu":
            return F.relu(result)
        return F.gelu(result) if self.activation == "gelu" else result

    def fold(self) -> None:
        """Put the normalisation into the convolution, which takes its running statistics for good."""
        if isinstance(self.norm, nn.BatchNorm2d):
            self.conv = fuse_conv_bn_eval(self.conv.eval(), self.norm.eval())
            self.norm = nn.Identity()


class Depthwise(nn.Conv2d):
    """A convolution of each channel by itself, in float32 even where a CPU trains in bfloat16.

    oneDNN 3.x gives gradients of its weights that are not finite now and then (torch 2.14, AVX512-BF16, dilation 3).
    """

    def forward(self, features: Tensor) -> Tensor:
        if not (self.training and torch.is_autocast_enabled("cpu")):
            return super().forward(features)
        with torch.autocast("cpu", enabled=False):
            return super().forward(features.float())


def double(channels: int, out: int) -> nn.Sequential:
    """Return two 3x3 `ConvNorm`."""
    return nn.Sequential(ConvNorm(channels, out), ConvNorm(out, out))


def fold_batch_norm(network: nn.Module) -> None:
    """Fold every `ConvNorm` in a network, in place."""
    for module in list(network.modules()):
        if isinstance(module, ConvNorm):
            module.fold()


def upsample(features: Tensor, factor: int = 2) -> Tensor:
    """Resize ``(N, C, h, w)`` bilinearly by a whole factor; a constant one exports without shape arithmetic."""
    return F.interpolate(features, scale_factor=float(factor), mode="bilinear", align_corners=False)


def subtract_mean(pixels: Tensor, mean: Tensor) -> Tensor:
    """Return ``(N, 3, h, w)`` minus ``(1, 3, 1, 1)``; never folded into a convolution that pads with zeros."""
    return pixels - mean
