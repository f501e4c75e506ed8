"""Saturated per-region overlap (sPRO): how much of each wrong region is found, up to the size that is enough.

After Bergmann et al., "Beyond Dents and Scratches: Logical Constraints in Unsupervised Anomaly Localization", IJCV
2022: where a part is missing, no pixel is more wrong than another, and a region counts as found once as many of its
pixels are as the part is large.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgead.runtime.errors import DataError
from edgead.runtime.imaging.anomaly_map import resize_map

FPR_LIMIT = 0.05
_LEVELS = 2000  # thresholds: quantiles of the normal pixels among the highest


def spro(
    maps: Sequence[NDArray[np.float32]],
    regions: Sequence[Sequence[tuple[NDArray[np.bool_], int]]],
    size: tuple[int, int],
    limit: float = FPR_LIMIT,
) -> float:
    """Return the area under sPRO over the false-positive rate of pixels, up to a limit, as a share of the limit.

    Args:
        maps: one ``(gh, gw)`` float32 anomaly map an image; each is resized bilinearly to ``size``.
        regions: of each image ``(mask (h, w) bool, saturation in pixels)``; none of a normal image.
        size: ``(h, w)`` of the masks.
        limit: of the false-positive rate, in (0, 1].

    Returns:
        From 0 to 1; pixels of any region of an image are no false positives there. 2,000 thresholds are tried.

    Raises:
        DataError: no region at all, no normal pixel, or unequal lengths.
    """
    if len(maps) != len(regions) or not any(regions):
        raise DataError(f"{len(maps)} maps, {len(regions)} images with regions, of which one needs a region at least")
    normal, found = [], []
    for grid, wrong in zip(maps, regions, strict=True):
        pixels = resize_map(grid, *size)
        outside = np.ones(size, bool)
        for mask, saturation in wrong:
            outside &= ~mask
            # The score at which so many of the region's pixels are found, for each number up to enough.
            found.append((np.sort(pixels[mask])[::-1], max(1, saturation)))
        normal.append(pixels[outside])
    negatives = np.concatenate(normal)
    if not len(negatives):
        raise DataError("sPRO needs normal pixels")
    rates = np.linspace(0.0, limit, _LEVELS)
    # The threshold that leaves at most this share of the normal pixels above it.
    ordered = np.sort(negatives)
    ranks = np.clip(np.ceil((1.0 - rates) * len(ordered)).astype(int) - 1, 0, len(ordered) - 1)
    thresholds = ordered[ranks]
    overlaps = np.zeros(_LEVELS)
    for scores, saturation in found:
        count = np.searchsorted(-scores, -thresholds, side="left")
        overlaps += np.minimum(count / saturation, 1.0)
    overlaps /= len(found)
    return float(np.trapezoid(overlaps, rates) / limit)
