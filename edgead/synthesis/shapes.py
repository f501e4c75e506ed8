"""ISSTAD's corruption: rectangles, ellipses and polygons of the same image, changed, on the largest object."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edgead.synthesis.augment import flip, strong_jitter
from edgead.synthesis.forger import Image, Mask, check_pool, is_grey, to_grey, visible
from edgead.synthesis.saliency import otsu_threshold

_LEAST_SIDE = 10  # pixels of 256
_ON_OBJECT = 0.9
_MOST_PATCHES = 100
_PATCH_SIDES = (2.0, 16.0)  # pixels of 256


class ShapeForger:
    """Forges as ISSTAD does [C]: 1 to 3 shapes, usually in the box around the largest object, padded by 10 or 20 %.

    The content is the same image after one of: strong jitter, grey or blur or two of them; mirrored; half-mixed with
    uniform noise. Its extended code takes 1 to 100 small patches in their place [C], of 2 to 16 pixels a side at 256,
    few more often than many [R].

    Args:
        pool: ``(n, h, w, 3)`` uint8, the training images.
        small: share of the forgeries that are small patches.
        least_change: as in `edgead.synthesis.MixForger`; 0 takes the whole mask, as the code does.
    """

    def __init__(self, pool: Image, *, small: float = 0.0, least_change: int = 0) -> None:
        self._pool, self._small, self._least_change = check_pool(pool), small, least_change
        self._boxes = [object_box(image) for image in pool]

    def __call__(self, index: int, rng: np.random.Generator) -> tuple[Image, Mask]:
        image = self._pool[index]
        height, width = image.shape[:2]
        top, left, bottom, right = 0, 0, height, width
        if rng.random() < _ON_OBJECT:
            pad = float(rng.choice((0.1, 0.2)))
            top, left, bottom, right = _padded(self._boxes[index], pad, height, width)
        unit = min(height, width) / 256
        least = max(3.0, _LEAST_SIDE * unit)
        mask = np.zeros((height, width), bool)
        small = self._small > 0 and rng.random() < self._small
        for _ in range(round(_MOST_PATCHES ** rng.random()) if small else int(rng.integers(1, 4))):
            center = np.array([rng.uniform(top, bottom), rng.uniform(left, right)])
            if small:
                reach = np.maximum(1, np.rint(unit * rng.uniform(*_PATCH_SIDES, 2))).astype(int)
                row, column = center.astype(int)
                mask[row : row + reach[0], column : column + reach[1]] = True
                continue
            size = np.array([rng.uniform(least, max(least + 1, 0.4 * side)) for side in (bottom - top, right - left)])
            mask |= _shape(height, width, center, size, rng)
        forged = image.copy()
        forged[mask] = _content(image, rng)[mask]
        return forged, visible(image, forged, mask, self._least_change)


def object_box(image: Image) -> tuple[int, int, int, int]:
    """Return top, left, bottom and right (exclusive) of the largest thing that Otsu's threshold parts from the rest."""
    from scipy import ndimage

    grey = image.astype(np.float32).mean(axis=2)
    bright = grey > otsu_threshold(grey)
    # The background is what the border is made of.
    border = np.concatenate([bright[0], bright[-1], bright[:, 0], bright[:, -1]])
    thing = ~bright if border.mean() > 0.5 else bright
    labels, count = ndimage.label(thing)
    if not count:
        return 0, 0, image.shape[0], image.shape[1]
    largest = int(np.bincount(labels.ravel())[1:].argmax())
    rows, columns = ndimage.find_objects(labels)[largest]
    return rows.start, columns.start, rows.stop, columns.stop


def _padded(box: tuple[int, int, int, int], share: float, height: int, width: int) -> tuple[int, int, int, int]:
    top, left, bottom, right = box
    down, across = round(share * (bottom - top)), round(share * (right - left))
    return max(0, top - down), max(0, left - across), min(height, bottom + down), min(width, right + across)


def _shape(
    height: int, width: int, center: NDArray[np.float64], size: NDArray[np.float64], rng: np.random.Generator
) -> Mask:
    turn = rng.uniform(0, math.pi)
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float64) + 0.5
    rows, columns = rows - center[0], columns - center[1]
    y = (rows * math.cos(turn) - columns * math.sin(turn)) / (0.5 * size[0])
    x = (rows * math.sin(turn) + columns * math.cos(turn)) / (0.5 * size[1])
    kind = int(rng.integers(3))
    if kind == 0:
        return np.asarray((np.abs(y) <= 1) & (np.abs(x) <= 1))
    if kind == 1:
        return np.asarray(y**2 + x**2 <= 1)
    # A polygon that its centre sees all of: as far out in a direction as the side that lies there.
    corners = int(rng.integers(3, 9))
    angles = np.sort(rng.uniform(0, 2 * math.pi, corners))
    reach = rng.uniform(0.5, 1.0, corners)
    around = np.linspace(0, 2 * math.pi, 256, endpoint=False)
    outline = np.interp(around, angles, reach, period=2 * math.pi)
    place = (np.arctan2(y, x) % (2 * math.pi)) / (2 * math.pi) * 256
    return np.asarray(np.hypot(y, x) <= outline[place.astype(np.intp) % 256])


def _content(image: Image, rng: np.random.Generator) -> Image:
    kind = int(rng.integers(3))
    if kind == 1:
        return flip(image, rng)
    if kind == 2:
        noise = rng.integers(0, 256, (*image.shape[:2], 1 if is_grey(image) else 3))
        return np.asarray((image.astype(np.int64) + noise) // 2, np.uint8)
    changed = image
    for number in rng.choice(3, int(rng.integers(1, 3)), replace=False):
        changed = (strong_jitter(changed, rng), to_grey(changed), _blurred(changed, rng))[number]
    return changed


def _blurred(image: Image, rng: np.random.Generator) -> Image:
    from scipy import ndimage

    sigma = rng.uniform(15, 20) * min(image.shape[:2]) / 256
    return np.asarray(np.stack([ndimage.gaussian_filter(image[:, :, c], sigma) for c in range(3)], axis=2))
