"""A frozen backbone as the encoder of a network that is trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgead.features.backbones import BackboneSpec, build_backbone


class TapEncoder(nn.Module):
    """``pixels (N, 3, h, w)`` float32 from 0 to 255 to the backbone's taps ``(N, C_i, h_i, w_i)``, finest first."""

    def __init__(
        self, spec: BackboneSpec, size: tuple[int, int], *, load_weights: bool = True, pool: bool = True
    ) -> None:
        super().__init__()
        self.backbone = build_backbone(spec, size, load_weights=load_weights, pool=pool)
        self.channels = self.backbone.channels
        with torch.inference_mode():
            taps = self(torch.zeros(1, 3, *size))
        self.strides = tuple(size[0] // tap.shape[2] for tap in taps)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        taps: tuple[Tensor, ...] = self.backbone.body(pixels - self.backbone.mean)
        return taps


def as_pixels(images: Tensor) -> Tensor:
    """Return uint8 ``(N, h, w, 3)`` as float32 ``(N, 3, h, w)``, from 0 to 255."""
    return images.to(torch.float32).permute(0, 3, 1, 2)
