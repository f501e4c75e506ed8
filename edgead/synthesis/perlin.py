"""Gradient noise, sampled in a turned frame so that its lattice never shows along the image's sides.

Perlin, "Improving noise", 2002 (quintic fade); turning and thresholding as in DRAEM (Zavrtanik et al., ICCV 2021).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edgead.synthesis.forger import Mask, drop_small

_PERIOD = 64  # lattice points a side before the gradients repeat; more than any image has cells
_ATTEMPTS = 20  # at a mask that is not empty

_Floats = NDArray[np.float32]


def perlin(
    height: int, width: int, rng: np.random.Generator, cells: tuple[float, float], angle: float = 0.0
) -> _Floats:
    """Return noise ``(height, width)`` float32, about -1 to 1, 0 on average.

    Args:
        rng: chooses the gradients and where the lattice lies.
        cells: along rows and columns of the frame, over the image's sides.
        angle: radians by which the frame is turned.
    """
    turns = rng.uniform(0.0, 2.0 * math.pi, (_PERIOD, _PERIOD)).astype(np.float32)
    down, across = np.cos(turns), np.sin(turns)
    offset = rng.uniform(0, _PERIOD, 2)
    rows = (np.arange(height, dtype=np.float32) + 0.5)[:, None] / height - 0.5
    columns = (np.arange(width, dtype=np.float32) + 0.5)[None, :] / width - 0.5
    cosine, sine = math.cos(angle), math.sin(angle)
    y = (cosine * rows - sine * columns) * cells[0] + offset[0]
    x = (sine * rows + cosine * columns) * cells[1] + offset[1]
    y0, x0 = np.floor(y), np.floor(x)
    fy, fx = (y - y0).astype(np.float32), (x - x0).astype(np.float32)
    top, left = y0.astype(np.intp) % _PERIOD, x0.astype(np.intp) % _PERIOD
    bottom, right = (top + 1) % _PERIOD, (left + 1) % _PERIOD

    def corner(row: NDArray[np.intp], column: NDArray[np.intp], dy: _Floats, dx: _Floats) -> _Floats:
        return np.asarray(down[row, column] * dy + across[row, column] * dx)

    wy, wx = _fade(fy), _fade(fx)
    upper = corner(top, left, fy, fx)
    upper += wx * (corner(top, right, fy, fx - 1) - upper)
    lower = corner(bottom, left, fy - 1, fx)
    lower += wx * (corner(bottom, right, fy - 1, fx - 1) - lower)
    return np.asarray(math.sqrt(2.0) * (upper + wy * (lower - upper)), np.float32)


def random_perlin(height: int, width: int, rng: np.random.Generator, exponents: tuple[int, int]) -> _Floats:
    """Return noise of 2^U cells an axis, U a whole number in ``exponents`` (both ends), turned by up to 90 degrees."""
    low, high = exponents
    cells = 2.0 ** rng.integers(low, high + 1, 2)
    return perlin(height, width, rng, (float(cells[0]), float(cells[1])), float(rng.uniform(-0.5, 0.5) * math.pi))


def perlin_mask(
    height: int, width: int, rng: np.random.Generator, exponents: tuple[int, int], threshold: float, least: float
) -> Mask:
    """Return ``noise > threshold`` without parts below ``least`` pixels, ``(height, width)`` bool, rarely empty."""
    for _ in range(_ATTEMPTS):
        mask = drop_small(random_perlin(height, width, rng, exponents) > threshold, least)
        if mask.any():
            return mask
    return np.zeros((height, width), bool)


def _fade(t: _Floats) -> _Floats:
    return np.asarray(t * t * t * (t * (t * 6.0 - 15.0) + 10.0))
