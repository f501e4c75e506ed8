"""SLSG's forged defects: Perlin masks filled with textures, or with the parts of normal images out of place."""

from __future__ import annotations

from typing import Literal

import numpy as np

from edgead.synthesis.augment import augment, flip, grid_shuffle, jitter, strong_jitter
from edgead.synthesis.forger import Image, Mask, blend, check_pool, is_grey, scaled_area, to_grey, visible
from edgead.synthesis.perlin import perlin_mask
from edgead.synthesis.textures import Textures

_STRUCTURAL_SHARE = 0.58
_LEAST_AREA = 49  # pixels of 256 x 256


class MixForger:
    """Forges as SLSG does [C], see `edgead.detectors.slsg`.

    *structural* (58 %): noise of 1 to 4 cells above 0.4; the source is the image itself, mirrored, jittered or with its
    4 x 8 tiles shuffled, or another training image; 0 to 25 % of the image shows through. *texture*: 1 to 8 cells above
    0.5; the source is a texture after 3 of 10 random changes; 75 % of the image shows through in one case of four, else
    0 to 90 %.

    Args:
        pool: ``(n, h, w, 3)`` uint8, the training images.
        textures: of the size of the pool.
        least_change: grey levels that a pixel must move by to count as forged; 0 takes the whole mask, as the code
            does, which also calls a background forged that was filled with background [R].
        mode: one of the two only; None draws.
    """

    def __init__(
        self,
        pool: Image,
        textures: Textures,
        *,
        least_change: int = 0,
        mode: Literal["structural", "texture"] | None = None,
    ) -> None:
        self._pool, self._textures, self._grey = check_pool(pool), textures, is_grey(pool)
        self._least_change, self._mode = least_change, mode

    def __call__(self, index: int, rng: np.random.Generator) -> tuple[Image, Mask]:
        image = self._pool[index]
        height, width = image.shape[:2]
        least = scaled_area(_LEAST_AREA, height, width)
        structural = rng.random() < _STRUCTURAL_SHARE if self._mode is None else self._mode == "structural"
        if structural:
            mask = perlin_mask(height, width, rng, (0, 2), 0.4, least)
            source, keep = self._normal_source(image, rng), float(rng.uniform(0.0, 0.25))
        else:
            mask = perlin_mask(height, width, rng, (0, 3), 0.5, least)
            source = self._textures(rng)
            keep = 0.75 if rng.random() < 0.25 else float(rng.uniform(0.0, 0.9))
        forged = blend(image, to_grey(source) if self._grey else source, mask, keep)
        return forged, visible(image, forged, mask, self._least_change)

    def _normal_source(self, image: Image, rng: np.random.Generator) -> Image:
        kind = int(rng.integers(4))
        if kind == 0:
            return flip(image, rng)
        if kind == 1:
            return strong_jitter(image, rng)
        if kind == 2:
            return grid_shuffle(image, rng, 4, 8)
        other = self._pool[int(rng.integers(len(self._pool)))]
        return flip(jitter(other, rng), rng) if len(self._pool) > 1 else augment(other, rng)
