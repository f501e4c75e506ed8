"""Fills a region with what is around it: a membrane through its rim, and the grain of its surroundings."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgead.probes.scene import Scene, Window

_Floats = NDArray[np.float64]
_Mask = NDArray[np.bool_]

_SMOOTH = 2.0  # working pixels; what is finer is grain
_SHIFTS = 48


def fill(
    painted: NDArray[np.uint8],
    scene: Scene,
    region: _Mask,
    around: _Mask,
    rng: np.random.Generator,
    *,
    grain: float = 1.0,
) -> None:
    """Paint over a region, in place, as if what is around it went on there.

    Args:
        painted: ``(H, W, 3)`` uint8, the image; grain is taken from it, too.
        region: ``(h, w)`` bool at working size; its edge is made soft.
        around: ``(h, w)`` bool, what may be continued.
        grain: share of the fine structure of the surroundings that is laid over the smooth fill.
    """
    from scipy import ndimage

    grown = ndimage.binary_dilation(region, iterations=3)
    around = around & ~grown
    if not around.any():
        around = ~grown
    smooth = _normalised(scene.small, around)
    filled = np.stack([_membrane(smooth[:, :, c], grown, around) for c in range(3)], axis=2)
    soft = np.clip(ndimage.gaussian_filter(grown.astype(np.float64), 0.8) * 1.25 - 0.125, 0, 1)
    rows, columns = np.nonzero(soft > 0)
    scale = scene.height / region.shape[0], scene.width / region.shape[1]
    window = Window(
        int(np.floor(rows.min() * scale[0])),
        int(np.floor(columns.min() * scale[1])),
        min(scene.height, int(np.ceil((rows.max() + 1) * scale[0]))),
        min(scene.width, int(np.ceil((columns.max() + 1) * scale[1]))),
    )
    opacity = scene.sample(soft, window)[:, :, None]
    other = _alike(scene, window, grown, around, rng)
    content = scene.sample(filled, window) + grain * _grain(painted, scene, other, around, smooth)
    under = painted[window.slices].astype(np.float64)
    painted[window.slices] = np.clip(np.rint(under + opacity * (content - under)), 0, 255).astype(np.uint8)


def _normalised(small: NDArray[np.uint8], around: _Mask) -> _Floats:
    """Return the smoothed surroundings, nothing else mixed in; where there are none near, the image itself."""
    from scipy import ndimage

    weight = ndimage.gaussian_filter(around.astype(np.float64), _SMOOTH)
    values = np.where(around[:, :, None], small, 0).astype(np.float64)
    blurred = np.stack([ndimage.gaussian_filter(values[:, :, c], _SMOOTH) for c in range(3)], axis=2)
    known = weight > 1e-3
    return np.where(known[:, :, None], blurred / np.where(known, weight, 1.0)[:, :, None], small)


def _membrane(values: _Floats, region: _Mask, around: _Mask) -> _Floats:
    """Return ``values`` with the harmonic function in the region that they have at its rim.

    Where the region borders on something that may not be continued, the membrane hangs free.
    """
    from scipy import sparse
    from scipy.sparse.linalg import spsolve

    height, width = region.shape
    places = np.flatnonzero(region)
    number = np.full(region.size, -1)
    number[places] = np.arange(len(places))
    known, flat = around.ravel(), values.ravel()
    rows, columns = np.divmod(places, width)
    diagonal, right = np.full(len(places), 1e-6), np.full(len(places), 1e-6 * float(flat[known].mean()))
    first, second = [], []
    for down, across in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        valid = (rows + down >= 0) & (rows + down < height) & (columns + across >= 0) & (columns + across < width)
        there = np.where(valid, places + down * width + across, places)
        inner, outer = valid & (number[there] >= 0), valid & known[there]
        diagonal += inner | outer
        right[outer] += flat[there[outer]]
        first.append(np.flatnonzero(inner))
        second.append(number[there[inner]])
    links = np.concatenate(first), np.concatenate(second)
    matrix = sparse.diags(diagonal).tocsc() - sparse.csc_matrix(
        (np.ones(len(links[0])), links), shape=(len(places),) * 2
    )
    result = flat.copy()
    result[places] = spsolve(matrix, right)
    return np.asarray(result.reshape(region.shape))


def _alike(scene: Scene, window: Window, region: _Mask, around: _Mask, rng: np.random.Generator) -> Window:
    """Return a place of the same form as the region's among the surroundings, the best of some that are drawn."""
    height, width = region.shape
    rows, columns = np.nonzero(region)
    best, found = -1.0, (0, 0)
    for _ in range(_SHIFTS):
        shift = (
            int(rng.integers(-rows.min(), height - rows.max())),
            int(rng.integers(-columns.min(), width - columns.max())),
        )
        clear = float(around[rows + shift[0], columns + shift[1]].mean())
        if clear > best:
            best, found = clear, shift
    down = round(found[0] * scene.height / height)
    right = round(found[1] * scene.width / width)
    down = int(np.clip(down, -window.top, scene.height - window.bottom))
    right = int(np.clip(right, -window.left, scene.width - window.right))
    return Window(window.top + down, window.left + right, window.bottom + down, window.right + right)


def _grain(painted: NDArray[np.uint8], scene: Scene, place: Window, around: _Mask, smooth: _Floats) -> _Floats:
    """Return the fine structure of a place among the surroundings."""
    fine = painted[place.slices] - scene.sample(smooth, place)
    usable = scene.sample(around.astype(np.float64), place) >= 0.999
    return np.asarray(fine * usable[:, :, None])
