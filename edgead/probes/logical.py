"""A missing, duplicated, moved or swapped part: each pixel plausible, the arrangement wrong."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgead.probes.filling import fill
from edgead.probes.parts import Part, find_parts
from edgead.probes.scene import Scene, Window

_Floats = NDArray[np.float64]
_Image = NDArray[np.uint8]
_Mask = NDArray[np.bool_]

_PLACES = 96  # tried for a part that is to go elsewhere
_VISIBLE = 4.0  # levels, mean over a part that is turned; less is the same part


def missing(image: _Image, scene: Scene, rng: np.random.Generator, strength: float) -> _Image:
    """What is around a part goes on where it was; of a texture a patch is worn smooth."""
    part = _choose(find_parts(scene, rng), rng)
    painted = np.array(image)
    _take_away(painted, scene, part, part.within(strength), rng)
    return painted


def duplicated(image: _Image, scene: Scene, rng: np.random.Generator, strength: float) -> _Image:
    """A part is there once more, beside where it belongs."""
    part = _choose(find_parts(scene, rng), rng)
    mask = part.within(strength)
    painted = np.array(image)
    _paste(painted, image, scene, _Move(part, mask, _elsewhere(mask, part, rng)))
    return painted


def moved(image: _Image, scene: Scene, rng: np.random.Generator, strength: float) -> _Image:
    """A part lies off its place: about a sixth of its length at strength 0.4, somewhere else at 1 and above."""
    part = _choose(find_parts(scene, rng), rng)
    rows, columns = np.nonzero(part.mask)
    size = float(max(np.ptp(rows), np.ptp(columns))) + 1
    shift = _elsewhere(part.mask, part, rng)
    length = float(np.hypot(*shift))
    wanted = max(2.0, min(length, strength**2 * size))
    shift = round(shift[0] * wanted / length), round(shift[1] * wanted / length)
    painted = np.array(image)
    _take_away(painted, scene, part, part.mask, rng)
    _paste(painted, image, scene, _Move(part, part.mask, shift))
    return painted


def swapped(image: _Image, scene: Scene, rng: np.random.Generator, strength: float) -> _Image:
    """Two parts of the image lie in each other's place.

    Where there are no two, one is put in the wrong way round; where it looks the same then, it changes places with a
    piece of what is around it.
    """
    parts = find_parts(scene, rng)
    pairs = [(one, other) for one in parts for other in parts if one is not other and _alike(one, other)]
    painted = np.array(image)
    if not pairs:
        _turn(painted, image, scene, _choose(parts, rng), strength, rng)
        return painted
    first, second = pairs[int(rng.integers(len(pairs)))]
    masks = first.within(strength), second.within(strength)
    if not first.is_texture:  # a patch is covered by the other one
        for part, mask in zip((first, second), masks, strict=True):
            fill(painted, scene, mask, part.around & ~masks[0] & ~masks[1], rng)
    centers = [np.mean(np.nonzero(mask), axis=1) for mask in masks]
    way = np.rint(centers[1] - centers[0]).astype(int)
    _paste(painted, image, scene, _Move(first, masks[0], (int(way[0]), int(way[1]))))
    _paste(painted, image, scene, _Move(second, masks[1], (-int(way[0]), -int(way[1]))))
    return painted


def _take_away(painted: _Image, scene: Scene, part: Part, mask: _Mask, rng: np.random.Generator) -> None:
    if part.is_texture:  # what is left of the patch is as good as the rest
        fill(painted, scene, mask, part.around | (part.mask & ~mask), rng, grain=0.25)
    else:
        fill(painted, scene, mask, part.around, rng)


def _turn(painted: _Image, image: _Image, scene: Scene, part: Part, strength: float, rng: np.random.Generator) -> None:
    # The whole part decides, so that the strength says to how much something is done, not what.
    rows, columns = np.nonzero(part.mask)
    box = np.s_[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    inside, pixels = part.mask[box], scene.small[box].astype(np.float64)
    best, found = 0.0, (-1, -1)
    for turn in ((-1, -1), (-1, 1), (1, -1)):
        change = np.abs(pixels[:: turn[0], :: turn[1]] - pixels).mean(axis=2)
        visible = float((change * inside).sum() / inside.sum())
        if visible > best:
            best, found = visible, turn
    if best >= _VISIBLE:  # all of it at every strength: half a part turned is odder than a whole one
        if not part.is_texture:
            fill(painted, scene, part.mask, part.around, rng)
        _paste(painted, image, scene, _Move(part, part.mask, (0, 0), found))
        return
    mask = part.within(strength)
    shift = _elsewhere(part.mask, part, rng)
    rows, columns = np.nonzero(mask)
    other = np.zeros_like(mask)
    other[rows + shift[0], columns + shift[1]] = True
    _paste(painted, image, scene, _Move(part, other, (-shift[0], -shift[1])))
    _paste(painted, image, scene, _Move(part, mask, shift))


def _choose(parts: list[Part], rng: np.random.Generator) -> Part:
    return parts[int(rng.integers(len(parts)))]


def _alike(first: Part, second: Part) -> bool:
    """Return whether two parts can be exchanged: of a sort and of a size, and apart."""
    same = (first.is_texture and second.is_texture) or first.around is second.around
    sizes = sorted((int(first.mask.sum()), int(second.mask.sum())))
    return same and not (first.mask & second.mask).any() and sizes[1] <= 6 * sizes[0]


def _elsewhere(mask: _Mask, part: Part, rng: np.random.Generator) -> tuple[int, int]:
    """Return how far (rows, columns at working size) to take a part, to where most of it lies on what is around it."""
    height, width = mask.shape
    rows, columns = np.nonzero(mask)
    low = -int(rows.min()), -int(columns.min())
    high = height - 1 - int(rows.max()), width - 1 - int(columns.max())
    size = max(np.ptp(rows), np.ptp(columns)) + 1
    best, found = -1.0, (max(1, high[0]) if high[0] > 0 else min(-1, low[0]), 0)
    for _ in range(_PLACES):
        shift = int(rng.integers(low[0], high[0] + 1)), int(rng.integers(low[1], high[1] + 1))
        away = float(np.hypot(*shift))
        if away < max(2.0, 0.6 * size):
            continue
        clear = float(part.around[rows + shift[0], columns + shift[1]].mean())
        # Of the clear places the near ones: a part falls beside its seat, not across the table.
        value = min(clear, 0.98) - 0.1 * away / max(height, width)
        if value > best:
            best, found = value, shift
    return found


@dataclass(frozen=True, slots=True)
class _Move:
    """The pixels of a part, or of its surroundings, that go elsewhere.

    Attributes:
        mask: ``(h, w)`` bool at working size, where they are.
        shift: rows and columns at working size.
        turn: -1 mirrors rows or columns.
    """

    part: Part
    mask: _Mask
    shift: tuple[int, int]
    turn: tuple[int, int] = (1, 1)


def _paste(painted: _Image, image: _Image, scene: Scene, move: _Move) -> None:
    """Put pixels elsewhere, lit as it is there."""
    from scipy import ndimage

    mask, shift, turn = move.mask, move.shift, move.turn
    grown = mask if move.part.is_texture else ndimage.binary_dilation(mask)
    soft = np.clip(ndimage.gaussian_filter(grown.astype(np.float64), 0.7), 0, 1)
    rows, columns = np.nonzero(soft > 0.01)
    scale = scene.height / mask.shape[0], scene.width / mask.shape[1]
    source = Window(
        int(np.floor(rows.min() * scale[0])),
        int(np.floor(columns.min() * scale[1])),
        min(scene.height, int(np.ceil((rows.max() + 1) * scale[0]))),
        min(scene.width, int(np.ceil((columns.max() + 1) * scale[1]))),
    )
    opacity = scene.sample(soft, source)
    pixels = image[source.slices].astype(np.float64) + _light(scene, move)
    opacity, pixels = opacity[:: turn[0], :: turn[1]], pixels[:: turn[0], :: turn[1]]
    down, right = round(shift[0] * scale[0]), round(shift[1] * scale[1])
    top, left = max(0, source.top + down), max(0, source.left + right)
    bottom, end = min(scene.height, source.bottom + down), min(scene.width, source.right + right)
    inner = (
        slice(top - source.top - down, bottom - source.top - down),
        slice(left - source.left - right, end - source.left - right),
    )
    target = (slice(top, bottom), slice(left, end))
    under = painted[target].astype(np.float64)
    mixed = under + opacity[inner][:, :, None] * (pixels[inner] - under)
    painted[target] = np.clip(np.rint(mixed), 0, 255).astype(np.uint8)


def _light(scene: Scene, move: _Move) -> _Floats:
    """Return by how many levels a colour the surroundings of the new place are brighter than those of the old one."""
    from scipy import ndimage

    part, mask, shift = move.part, move.mask, move.shift
    ring = ndimage.binary_dilation(mask, iterations=6) & part.around
    rows, columns = np.nonzero(ring)
    if not len(rows):
        return np.zeros(3)
    here = scene.small[rows, columns].mean(axis=0)
    rows, columns = rows + shift[0], columns + shift[1]
    inside = (rows >= 0) & (rows < mask.shape[0]) & (columns >= 0) & (columns < mask.shape[1])
    rows, columns = rows[inside], columns[inside]
    clear = part.around[rows, columns]
    if not clear.any():
        return np.zeros(3)
    change = scene.small[rows[clear], columns[clear]].mean(axis=0) - here
    return np.asarray(np.clip(0.5 * change if part.is_texture else change, -30, 30))
