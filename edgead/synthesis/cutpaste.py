"""CutPaste's defects: a rectangle, or a thin turned scar, of the image pasted elsewhere (Li et al., CVPR 2021)."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from edgead.synthesis.augment import jitter
from edgead.synthesis.forger import Image, Mask, check_pool, visible


class CutPasteForger:
    """Pastes a jittered rectangle of 2 to 15 % of the area, or a scar of 2 x 10 to 16 x 25 pixels (at 256), turned.

    Args:
        pool: ``(n, h, w, 3)`` uint8, the training images.
        kind: ``paste``, ``scar``, or None for either.
        least_change: as in `edgead.synthesis.MixForger`; 0 takes all that was pasted.
    """

    def __init__(self, pool: Image, kind: Literal["paste", "scar"] | None = None, *, least_change: int = 0) -> None:
        self._pool, self._kind, self._least_change = check_pool(pool), kind, least_change

    def __call__(self, index: int, rng: np.random.Generator) -> tuple[Image, Mask]:
        image = self._pool[index]
        scar = self._kind == "scar" or (self._kind is None and rng.random() < 0.5)
        forged, mask = _scar(image, rng) if scar else _paste(image, rng)
        return forged, visible(image, forged, mask, self._least_change)


def _paste(image: Image, rng: np.random.Generator) -> tuple[Image, Mask]:
    height, width = image.shape[:2]
    area = rng.uniform(0.02, 0.15) * height * width
    aspect = math.exp(rng.choice((-1, 1)) * rng.uniform(0.0, math.log(1 / 0.3)))
    rows = int(np.clip(round(math.sqrt(area * aspect)), 1, height - 1))
    columns = int(np.clip(round(math.sqrt(area / aspect)), 1, width - 1))
    patch = _cut(image, rows, columns, rng)
    top, left = int(rng.integers(0, height - rows + 1)), int(rng.integers(0, width - columns + 1))
    result, mask = image.copy(), np.zeros((height, width), bool)
    result[top : top + rows, left : left + columns] = patch
    mask[top : top + rows, left : left + columns] = True
    return result, mask


def _scar(image: Image, rng: np.random.Generator) -> tuple[Image, Mask]:
    height, width = image.shape[:2]
    unit = min(height, width) / 256
    columns = max(2, round(rng.uniform(2, 16) * unit))
    rows = max(4, round(rng.uniform(10, 25) * unit))
    patch = _cut(image, rows, columns, rng)
    turn = rng.uniform(-math.pi / 4, math.pi / 4)
    reach = math.hypot(rows, columns) / 2
    center = [rng.uniform(reach, max(reach + 1, side - reach)) for side in (height, width)]
    down, across = np.mgrid[0:height, 0:width].astype(np.float64)
    down, across = down - center[0], across - center[1]
    y = np.floor(down * math.cos(turn) - across * math.sin(turn) + rows / 2).astype(np.intp)
    x = np.floor(down * math.sin(turn) + across * math.cos(turn) + columns / 2).astype(np.intp)
    mask = (y >= 0) & (y < rows) & (x >= 0) & (x < columns)
    result: Image = image.copy()
    result[mask] = patch[y[mask], x[mask]]
    return result, mask


def _cut(image: Image, rows: int, columns: int, rng: np.random.Generator) -> Image:
    top = int(rng.integers(0, image.shape[0] - rows + 1))
    left = int(rng.integers(0, image.shape[1] - columns + 1))
    return jitter(image[top : top + rows, left : left + columns], rng)
