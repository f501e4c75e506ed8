"""ResNet-18 that can be trained: its normalisations stay apart until they are folded."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgead.detectors.networks.blocks import ConvNorm
from edgead.features.backbones import BackboneSpec, copy_weights

_WIDTHS = (64, 128, 256, 512)
_MEAN = (123.675, 116.28, 103.53)  # of ImageNet, which released weights expect
_STD = (58.395, 57.12, 57.375)


class _BasicBlock(nn.Module):
    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.first = ConvNorm(channels, out, stride=stride)
        self.second = ConvNorm(out, out, activation="none")
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != out:
            self.shortcut = ConvNorm(channels, out, 1, stride=stride, activation="none")

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(self.first(x)) + self.shortcut(x))


class ResNet18(nn.Module):
    """Pixels ``(N, 3, h, w)`` from 0 to 255 to features ``(N, 512, h / 32, w / 32)`` (He et al., CVPR 2016).

    Args:
        spec: ``resnet18`` with the weights to start from, a file as torchvision or timm write it; None or ``random``
            starts from nothing.

    Raises:
        DataError: a file that does not fit.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, spec: BackboneSpec | None) -> None:
        super().__init__()
        self.stem = ConvNorm(3, _WIDTHS[0], 7, stride=2)
        blocks: list[nn.Module] = []
        before = _WIDTHS[0]
        for number, width in enumerate(_WIDTHS):
            blocks += [_BasicBlock(before, width, 2 if number else 1), _BasicBlock(width, width, 1)]
            before = width
        self.blocks = nn.Sequential(*blocks)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if spec is not None and not spec.random:
            self._copy(spec)
        self.register_buffer("mean", torch.tensor(_MEAN).reshape(1, 3, 1, 1))
        self.register_buffer("scale", 1.0 / torch.tensor(_STD).reshape(1, 3, 1, 1))
        self.channels = self.learned = _WIDTHS[-1]

    def _copy(self, spec: BackboneSpec) -> None:
        import timm

        # By way of timm's, whose names are those of released files; its layers come in the same order.
        source = timm.create_model("resnet18", features_only=True, pretrained=spec.weights == "hub")
        if spec.weights != "hub":
            copy_weights(source, spec)
        self.load_state_dict(dict(zip(self.state_dict(), source.state_dict().values(), strict=True)))

    def forward(self, pixels: Tensor) -> Tensor:
        stem = F.max_pool2d(self.stem((pixels - self.mean) * self.scale), 3, 2, 1)
        result: Tensor = self.blocks(stem)
        return result
