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
    threshold, clamp or min-max is applied. Where defects were at hand, the map may be raised before smoothing where
    patches look like them.

    Args:
        extractor: images to patch features.
        head: features ``(N, C, gh, gw)`` to ``(map (N, gh, gw), image weight (N,) or None)``.
        smooth: apply the Gaussian of methods section 0 (sigma of 4 pixels at a 256 pixel input).
        defects: what defects at hand taught; None: nothing.
    """

    def __init__(
        self, extractor: FeatureExtractor, head: nn.Module, *, smooth: bool = True, defects: DefectTerm | None = None
    ) -> None:
        super().__init__()
        self.extractor = extractor
        self.head = head
        self.defects = defects
        self.smoothing = GaussianSmoothing(4.0 * min(extractor.grid) / 256.0) if smooth else nn.Identity()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.score_features(self.extractor(images))

    def score_features(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Score features that were extracted before, ``(N, C, gh, gw)``; used for the scores of training images."""
        raw, weight = self.head(features)
        return self.finish(raw if self.defects is None else raw * self.defects(features), weight)

    def finish(self, raw: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return score and map for what the head gave, ``(N, gh, gw)`` and ``(N,)`` or None."""
        smoothed: Tensor = self.smoothing(raw)
        score = smoothed.amax(dim=(1, 2))
        return (score if weight is None else score * weight), smoothed


class DefectTerm(nn.Module):
    """How much an anomaly map is raised where patches look like defects that were at hand.

    The factor is ``1 + strength * sigmoid(f . weight + bias)``, so that no score falls, and what looks like no known
    defect stays as the detector judged it.

    Args:
        weight: ``(C,)``, bias: ``()``, of a logistic regression on features. strength: ``()``, 0 or more.
    """

    weight: Tensor
    bias: Tensor
    strength: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, strength: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.register_buffer("strength", strength)

    def forward(self, features: Tensor) -> Tensor:
        """Map ``features (N, C, gh, gw)`` to factors ``(N, gh, gw)``."""
        likeness = features.flatten(2).transpose(1, 2) @ self.weight[:, None] + self.bias
        return (1.0 + self.strength * torch.sigmoid(likeness)).reshape(-1, *features.shape[2:])


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
