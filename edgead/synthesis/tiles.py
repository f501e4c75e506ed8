"""Normal images with tiles out of place or blank, for a network that learns to put them right."""

from __future__ import annotations

import numpy as np

from edgead.synthesis.forger import Image

_SIDE = 32  # pixels of 256
_SHARE = 0.5


def disturb_tiles(image: Image, rng: np.random.Generator) -> Image:
    """Return the image with half of its tiles, of 32 pixels at 256, shuffled among each other or blanked, as drawn."""
    side = max(4, _SIDE * min(image.shape[:2]) // 256)
    rows, columns = image.shape[0] // side, image.shape[1] // side
    places = rng.permutation(rows * columns)[: max(2, round(_SHARE * rows * columns))]
    result: Image = image.copy()
    shuffle = rng.random() < 0.5
    for source, place in zip(rng.permutation(places), places, strict=True):
        top, left = (int(value) * side for value in divmod(int(place), columns))
        if shuffle:
            down, right = (int(value) * side for value in divmod(int(source), columns))
            result[top : top + side, left : left + side] = image[down : down + side, right : right + side]
        else:
            result[top : top + side, left : left + side] = 0
    return result
