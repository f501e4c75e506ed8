"""The scoring module: what every detector hands to evaluation and to the export layer."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgead.features.features import FeatureExtractor


class ScoringModule(nn.Module):
    """``images (N, h, w, 3)`` uint8 RGB at network size -> ``(score (N,), map (N, gh, gw))`` float32.

    Normalisation is inside. The map is on the detector's own grid, smoothed there, and the image score is its
    maximum, times the head's own weight where it has one (PatchCore's re-weighting). Higher is more anomalous; no
    threshold, clamp or min-max is applied.

    Args:
        extractor: images to patch features.
        head: features ``(N, C, gh, gw)`` to ``(map (N, gh, gw), image weight (N,) or None)``.
        smooth: apply the Gaussian of methods section 0 (sigma of 4 pixels at a 256 pixel input).
    """

    def __init__(self, extractor: FeatureExtractor, head: nn.Module, *, smooth: bool = True) -> None:
        super().__init__()
        self.extractor = extractor
        self.head = head
        self.smoothing = GaussianSmoothing(4.0 * min(extractor.grid) / 256.0) if smooth else nn.Identity()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.score_features(self.extractor(images))

    def score_features(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Score features that were extracted before, ``(N, C, gh, gw)``; used for the scores of training images."""
        return self.finish(*self.head(features))

    def finish(self, raw: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return score and map for what the head gave, ``(N, gh, gw)`` and ``(N,)`` or None."""
        smoothed: Tensor = self.smoothing(raw)
        score = smoothed.amax(dim=(1, 2))
        return (score if weight is None else score * weight), smoothed


class GaussianSmoothing(nn.Module):
    """Gaussian blur of ``(N, gh, gw)`` with mirrored borders, sigma in cells."""

    kernel: Tensor

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.radius = max(1, math.ceil(3.0 * sigma))
        offsets = torch.arange(-self.radius, self.radius + 1, dtype=torch.float64)
        line = torch.exp(-0.5 * (offsets / sigma) ** 2)
        line = line / line.sum()
        kernel = torch.outer(line, line).float()
        self.register_buffer("kernel", kernel[None, None], persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        r = self.radius
        padded = F.pad(maps[:, None], (r, r, r, r), mode="reflect")
        return F.conv2d(padded, self.kernel)[:, 0]
