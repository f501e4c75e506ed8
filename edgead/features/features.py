"""Patch features: the hypercolumn of pooled, resized, concatenated taps (methods section 0)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from edgead.features.folding import Backbone


class FeatureExtractor(nn.Module):
    """``images (N, h, w, 3)`` uint8 RGB -> ``(N, C, gh, gw)`` float32 patch features.

    Each tap is averaged over 3x3 cells (stride 1, zero padding counted, as PatchCore's patches are), resized to the
    grid of the middle tap (of two taps: the finer) and concatenated.

    Args:
        backbone: images to taps.
        grid: ``(gh, gw)`` cells.
        selection: channels kept of each tap, ``(c_i,)`` int64 a tap; None keeps all.
        pooled: average over 3x3 cells; a transformer's tokens know their neighbours and are taken as they are.
    """

    def __init__(
        self,
        backbone: Backbone,
        grid: tuple[int, int],
        selection: Sequence[Tensor] | None = None,
        *,
        pooled: bool = True,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.grid = grid
        self.pooled = pooled
        self.channels = sum(backbone.channels) if selection is None else sum(len(kept) for kept in selection)
        self.selected = selection is not None
        for index, kept in enumerate(selection or ()):
            self.register_buffer(f"selection_{index}", kept)

    def select(self, channels: NDArray[np.int64]) -> FeatureExtractor:
        """Return an extractor of the given channels only (sorted indices into the concatenated features)."""
        ends = np.cumsum(self.backbone.channels)
        starts = ends - np.array(self.backbone.channels)
        kept = [
            torch.from_numpy(channels[(channels >= start) & (channels < end)] - start)
            for start, end in zip(starts, ends, strict=True)
        ]
        return FeatureExtractor(self.backbone, self.grid, kept, pooled=self.pooled).eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.from_taps(self.backbone(images))

    def from_taps(self, taps: Sequence[Tensor]) -> Tensor:
        """Return the features made of what the backbone gave, ``(N, C_i, h_i, w_i)`` each."""
        maps = []
        for index, tap in enumerate(taps):
            if self.selected:
                # Before pooling and resizing, which then work on the kept channels only.
                kept = getattr(self, f"selection_{index}")
                if not len(kept):
                    continue
                tap = tap.index_select(1, kept)
            maps.append(resize_map(pool(tap) if self.pooled else tap, self.grid))
        return torch.cat(maps, dim=1)


def build_extractor(backbone: Backbone, size: tuple[int, int]) -> FeatureExtractor:
    """Return the extractor for input ``size`` (height, width); the grid is read off the backbone itself."""
    with torch.inference_mode():
        taps = backbone(torch.zeros(1, *size, 3, dtype=torch.uint8))
    middle = taps[(len(taps) - 1) // 2]
    return FeatureExtractor(backbone, (middle.shape[2], middle.shape[3]), pooled=not backbone.tokens).eval()


def pool(tap: Tensor) -> Tensor:
    """Average ``(N, C, h, w)`` over 3x3 neighbourhoods, stride 1."""
    return F.avg_pool2d(tap, 3, stride=1, padding=1)


def resize_map(tap: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resize ``(N, C, h, w)`` bilinearly to ``grid``; nothing where it fits already."""
    if (tap.shape[2], tap.shape[3]) == grid:
        return tap
    scale = (grid[0] / tap.shape[2], grid[1] / tap.shape[3])
    if scale[0].is_integer() and scale[1].is_integer():
        # A constant scale exports without shape arithmetic; sizes would be computed in the graph.
        return F.interpolate(tap, scale_factor=scale, mode="bilinear", align_corners=False)
    return F.interpolate(tap, size=grid, mode="bilinear", align_corners=False)
