"""A contact sheet of what training sees: a row for each kind of forgery, the outline of each mask on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image as Picture
from PIL import ImageDraw

from edgead.runtime.errors import ConfigError, suggest
from edgead.synthesis.cutpaste import CutPasteForger
from edgead.synthesis.forger import Forger, Image, Mask, is_grey
from edgead.synthesis.mixing import MixForger
from edgead.synthesis.salient import SalientForger
from edgead.synthesis.shapes import ShapeForger
from edgead.synthesis.textures import open_textures
from edgead.synthesis.tiles import disturb_tiles

_OUTLINE = (255, 0, 200)
_LABEL = 18  # pixels of the line above a row
_GAP = 4


def make_forgers(pool: Image, textures: str | None = None) -> dict[str, Forger]:
    """Return every kind of forger by name, for training images ``(n, h, w, 3)`` uint8."""
    source = open_textures(textures, *pool.shape[1:3], grey=is_grey(pool))
    return {
        "slsg structural": MixForger(pool, source, mode="structural"),
        "slsg texture": MixForger(pool, source, mode="texture"),
        "sgsf salient": SalientForger(pool, source),
        "isstad shapes": ShapeForger(pool),
        "cutpaste": CutPasteForger(pool, "paste"),
        "scar": CutPasteForger(pool, "scar"),
        "slsg pre-training": _Tiles(pool),
    }


KINDS = (
    "slsg structural",
    "slsg texture",
    "sgsf salient",
    "isstad shapes",
    "cutpaste",
    "scar",
    "slsg pre-training",
)


def contact_sheet(forgers: Mapping[str, Forger], images: Sequence[int], seed: int) -> Image:
    """Return a sheet ``(H, W, 3)`` uint8: each image forged by each forger, as it is and with its mask outlined.

    Args:
        forgers: name -> forger, a row each.
        images: indices of the pool, a pair of columns each.
        seed: of the forgeries.
    """
    rows = []
    for row, (name, forger) in enumerate(forgers.items()):
        tiles: list[Image] = []
        for column, index in enumerate(images):
            forged, mask = forger(index, np.random.default_rng((seed, row, column)))
            tiles += [forged, _outlined(forged, mask)]
        gap = np.full((tiles[0].shape[0], _GAP, 3), 255, np.uint8)
        line = np.concatenate([part for tile in tiles for part in (tile, gap)][:-1], axis=1)
        label = Picture.new("RGB", (line.shape[1], _LABEL), "white")
        ImageDraw.Draw(label).text((2, 3), name, fill="black")
        rows += [np.asarray(label), line]
    return np.concatenate(rows)


def check_kinds(kinds: Sequence[str]) -> None:
    """Raise `ConfigError` where a kind is unknown, or where there is none."""
    for kind in kinds:
        if kind not in KINDS:
            raise ConfigError(f"there is no forgery '{kind}'.{suggest(kind, KINDS)}")
    if not kinds:
        raise ConfigError(f"name at least one kind of forgery: {', '.join(KINDS)}")


class _Tiles:
    """What SLSG's pre-training restores; nothing of it is a defect."""

    def __init__(self, pool: Image) -> None:
        self._pool = pool

    def __call__(self, index: int, rng: np.random.Generator) -> tuple[Image, Mask]:
        image = self._pool[index]
        return disturb_tiles(image, rng), np.zeros(image.shape[:2], bool)


def _outlined(image: Image, mask: Mask) -> Image:
    from scipy import ndimage

    edge = ndimage.binary_dilation(mask) & ~mask
    result: Image = image.copy()
    result[edge] = _OUTLINE
    return result
