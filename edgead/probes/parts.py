"""Finds what can be missing, doubled or out of place in an image, without any model.

Before a background: whole parts where there are several, what sticks out of a part (limbs, tips, hooks), what lies
within it and differs from it (eyes, prints, screws, holes), and failing all that a piece of its rim. In a texture that
fills the frame: a patch of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgead.probes.scene import Scene, disc, large_components
from edgead.runtime.errors import DataError
from edgead.runtime.imaging.otsu import otsu

_Mask = NDArray[np.bool_]

_LARGEST = 0.35  # of the foreground, for a part of a part
_SMALLEST = 0.01
_FEATURE_CONTRAST = 18.0  # levels
_FLAT = 1.5  # levels of deviation below which a patch has no texture


@dataclass(frozen=True, slots=True)
class Part:
    """Something that belongs where it is.

    Attributes:
        mask: ``(h, w)`` bool at working size.
        tip: row and column at which taking it away begins: all of it goes at strength 1, what is near the tip below.
        around: ``(h, w)`` bool, what shows where the part is not, and where a copy of it may be put.
        is_texture: a patch of a texture, not a thing.
    """

    mask: _Mask
    tip: tuple[int, int]
    around: _Mask
    is_texture: bool = False

    def within(self, strength: float) -> _Mask:
        """Return the pixels concerned at a strength; more of them at more, and never none."""
        if strength >= 1:
            return self.mask
        rows, columns = np.nonzero(self.mask)
        away = np.hypot(rows - self.tip[0], columns - self.tip[1])
        near = away <= max(strength**0.5 * float(away.max()), float(away.min()) + 1.5)
        kept = np.zeros_like(self.mask)
        kept[rows[near], columns[near]] = True
        return kept


def find_parts(scene: Scene, rng: np.random.Generator) -> list[Part]:
    """Return the parts of a scene, those of one image always the same but for rims and patches, which are drawn.

    Raises:
        DataError: a uniform image, in which nothing could be missing.
    """
    if scene.is_texture:
        return _patches(scene, rng)
    found = [*_whole(scene), *_protruding(scene), *_inner(scene)]
    return found or _rim(scene, rng)


def _background(scene: Scene) -> _Mask:
    from scipy import ndimage

    return np.asarray(~ndimage.binary_dilation(scene.foreground, disc(2)))


def _whole(scene: Scene) -> list[Part]:
    """Return the pieces of the foreground where there are several of a size."""
    pieces = large_components(scene.foreground, 0.05 * float(scene.foreground.sum()))
    if len(pieces) < 2:
        return []
    around = _background(scene)
    return [Part(piece, _far_from_center(piece, piece), around) for piece in pieces]


def _protruding(scene: Scene) -> list[Part]:
    """Return what an opening with discs of several sizes cuts off a part."""
    from scipy import ndimage

    body = ndimage.binary_fill_holes(scene.foreground)
    area = float(body.sum())
    around = _background(scene)
    found: list[Part] = []
    inside = ndimage.distance_transform_edt(np.pad(body, 1))[1:-1, 1:-1]
    for share in (0.05, 0.09, 0.14, 0.2):
        radius = max(2, round(share * area**0.5))
        core = inside > radius
        if not core.any():
            break
        opened = ndimage.distance_transform_edt(~core) <= radius + 1
        outside = ndimage.distance_transform_edt(~opened)
        for stump in large_components(ndimage.binary_opening(scene.foreground & ~opened), _SMALLEST * area):
            piece = _with_cut_off(stump, scene.foreground)
            depth = float(inside[piece].max())
            away = float(outside[piece].max())
            # A sliver along an edge is no limb: a limb reaches out by at least its own half width.
            if piece.sum() > _LARGEST * area or depth < 1.5 or away < max(3.0, depth):
                continue
            if all((piece & part.mask).sum() < 0.5 * min(piece.sum(), part.mask.sum()) for part in found):
                found.append(Part(piece, _far_from_center(piece, body), around))
    return found


def _with_cut_off(stump: _Mask, foreground: _Mask) -> _Mask:
    """Return a limb with all that would hang in the air without it."""
    rest = large_components(foreground & ~stump, 1)
    return np.asarray(np.logical_or.reduce([stump, *(piece for piece in rest[1:] if _touches(piece, stump))]))


def _touches(first: _Mask, second: _Mask) -> bool:
    from scipy import ndimage

    return bool((ndimage.binary_dilation(first) & second).any())


def _inner(scene: Scene) -> list[Part]:
    """Return holes of a part, and compact regions within it that differ from what is around them."""
    from scipy import ndimage

    part = scene.foreground
    area = float(part.sum())
    holes = ndimage.binary_fill_holes(part) & ~part
    reach = 0.12 * area**0.5
    weight = ndimage.gaussian_filter(part.astype(np.float64), reach) + 1e-6
    pixels = scene.small.astype(np.float64) * part[:, :, None]
    local = np.stack([ndimage.gaussian_filter(pixels[:, :, c], reach) / weight for c in range(3)], axis=2)
    difference = np.sqrt(((scene.small - local) ** 2).mean(axis=2))
    inside = ndimage.binary_erosion(part | holes, disc(max(2, round(0.02 * area**0.5)))) & part
    inside &= ~ndimage.binary_dilation(holes, disc(3))
    if not inside.any():
        return []
    levels = np.clip(np.rint(difference), 0, 255).astype(np.intp)
    marked = inside & (levels > max(_FEATURE_CONTRAST, otsu(np.bincount(levels[inside], minlength=256))[0]))
    regions = large_components(ndimage.binary_opening(marked), max(8.0, 0.004 * area))
    regions += large_components(holes, max(8.0, 0.004 * area))
    kept = [region for region in regions if region.sum() <= 0.12 * area and _compact(region)]
    around = inside & ~ndimage.binary_dilation(np.logical_or.reduce([marked, holes]), disc(2))
    if around.sum() < 0.1 * area:
        return []
    return [Part(ndimage.binary_dilation(region), _far_from_center(region, part), around) for region in kept]


def _rim(scene: Scene, rng: np.random.Generator) -> list[Part]:
    """Return two round bites out of the edge of a part."""
    from scipy import ndimage

    part = scene.foreground
    around = _background(scene)
    edge = np.flatnonzero(part & ~ndimage.binary_erosion(part, border_value=1))
    found = []
    for _ in range(2):
        row, column = divmod(int(edge[rng.integers(len(edge))]), part.shape[1])
        bite = part & _near((row, column), rng.uniform(0.1, 0.17) * float(part.sum()) ** 0.5, part.shape)
        found.append(Part(bite, (row, column), around))
    return found


def _patches(scene: Scene, rng: np.random.Generator) -> list[Part]:
    """Return two patches of a texture that do not overlap, among places drawn those with the most in them."""
    height, width = scene.small.shape[:2]
    radius = rng.uniform(0.08, 0.13) * min(height, width)
    grey = scene.small.mean(axis=2)
    everywhere = np.ones((height, width), bool)
    drawn = []
    for _ in range(12):
        place = int(rng.uniform(radius, height - radius)), int(rng.uniform(radius, width - radius))
        mask = _near(place, radius, (height, width), rng)
        drawn.append((float(grey[mask].std()), place, mask))
    drawn.sort(key=lambda one: -one[0])
    if drawn[0][0] < _FLAT:
        raise DataError(
            "the image shows neither a part before a background nor a texture: nothing in it can be missing"
        )
    # Not the strongest contrast of all, which is often the edge of the lighting.
    chosen = [one for one in drawn if one[0] >= max(_FLAT, 0.5 * drawn[0][0])]
    first = chosen[int(rng.integers(len(chosen)))]
    patches = [Part(first[2], first[1], everywhere & ~first[2], True)]
    for _, place, mask in chosen:
        if not (mask & first[2]).any():
            patches.append(Part(mask, place, everywhere & ~mask, True))
            break
    return patches


def _near(
    place: tuple[int, int], radius: float, shape: tuple[int, int], rng: np.random.Generator | None = None
) -> _Mask:
    """Return a disc around a place, of uneven outline where a generator is given."""
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    down, across = rows - place[0], columns - place[1]
    reach: NDArray[np.float64] | float = radius
    if rng is not None:
        angle = np.arctan2(down, across)
        phases = rng.uniform(0, 2 * np.pi, 2)
        reach = radius * (1 + 0.15 * np.sin(2 * angle + phases[0]) + 0.1 * np.sin(3 * angle + phases[1]))
    return np.asarray(np.hypot(down, across) <= np.maximum(reach, 1.5))


def _center(mask: _Mask) -> tuple[int, int]:
    rows, columns = np.nonzero(mask)
    return round(float(rows.mean())), round(float(columns.mean()))


def _far_from_center(mask: _Mask, whole: _Mask) -> tuple[int, int]:
    rows, columns = np.nonzero(mask)
    center = _center(whole)
    index = int(np.argmax(np.hypot(rows - center[0], columns - center[1])))
    return int(rows[index]), int(columns[index])


def _compact(mask: _Mask) -> bool:
    rows, columns = np.nonzero(mask)
    box = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
    sides = sorted((np.ptp(rows) + 1, np.ptp(columns) + 1))
    return bool(mask.sum() > 0.4 * box and sides[1] <= 4 * sides[0])
