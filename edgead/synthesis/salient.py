"""SGSF's forged defects (SAM): irregular masks on what is salient, so that a defect lies on the part."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgead.synthesis.augment import augment, flip
from edgead.synthesis.forger import (
    Floats,
    Image,
    Mask,
    blend,
    check_pool,
    drop_small,
    is_grey,
    scaled_area,
    to_grey,
    visible,
)
from edgead.synthesis.perlin import random_perlin
from edgead.synthesis.saliency import Saliency, object_saliency, salient_region
from edgead.synthesis.textures import Textures

_LEAST_AREA = 16  # pixels of 256 x 256
_ATTEMPTS = 10
_SELF_SHARE = 0.25


def salient_mask(saliency: Floats, region: Mask, rng: np.random.Generator) -> Mask:
    """Return an irregular mask on the salient region, ``(h, w)`` bool; empty where ten attempts gave none.

    Order of the abstract [A], details ours [R]: noise in [0, 1] of 1 to 32 cells, weighted by the saliency, cut at the
    quantile that leaves 1 to 30 % of the region, opened by 3 x 3 pixels, without specks.
    """
    from scipy import ndimage

    height, width = saliency.shape
    least = scaled_area(_LEAST_AREA, height, width)
    for _ in range(_ATTEMPTS):
        noise = np.clip(0.5 + 0.5 * random_perlin(height, width, rng, (0, 5)), 0.0, 1.0)
        weighted: NDArray[np.float32] = saliency * noise
        share = rng.uniform(0.01, 0.3)
        mask = (weighted > np.quantile(weighted[region], 1.0 - share)) & region
        mask = drop_small(ndimage.binary_opening(mask, np.ones((3, 3), bool)), least)
        if mask.any():
            return mask
    return np.zeros((height, width), bool)


class SalientForger:
    """Forges as SGSF does: 0 to 80 % of the image shows through a texture, or through itself changed.

    Args:
        pool: ``(n, h, w, 3)`` uint8, the training images.
        textures: of the size of the pool.
        saliency: image to map, computed once for every image.
        least_change: see `MixForger`.
    """

    def __init__(
        self,
        pool: Image,
        textures: Textures,
        *,
        saliency: Saliency = object_saliency,
        least_change: int = 8,
    ) -> None:
        self._pool, self._textures, self._grey = check_pool(pool), textures, is_grey(pool)
        self._least_change = least_change
        self._maps = [np.asarray(saliency(image), np.float32) for image in pool]
        self._regions = [salient_region(one) for one in self._maps]

    def __call__(self, index: int, rng: np.random.Generator) -> tuple[Image, Mask]:
        image = self._pool[index]
        mask = salient_mask(self._maps[index], self._regions[index], rng)
        source = flip(augment(image, rng), rng) if rng.random() < _SELF_SHARE else self._textures(rng)
        source = to_grey(source) if self._grey else source
        forged = blend(image, source, mask, float(rng.uniform(0.0, 0.8)))
        return forged, visible(image, forged, mask, self._least_change)
