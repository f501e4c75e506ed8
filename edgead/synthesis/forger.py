"""What a forger is, and what all of them need."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgead.runtime.errors import DataError

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Floats = NDArray[np.float32]


class Forger(Protocol):
    """Puts a defect into a copy of a training image."""

    def __call__(self, index: int, rng: np.random.Generator) -> tuple[Image, Mask]:
        """Return the forged image ``(h, w, 3)`` uint8 and its mask ``(h, w)`` bool, empty where nothing came of it."""


def check_pool(pool: Image) -> Image:
    """Return ``pool``; raises `DataError` unless it is ``(n, h, w, 3)`` uint8 with an image at least."""
    if pool.dtype != np.uint8 or pool.ndim != 4 or pool.shape[3] != 3 or not len(pool):
        raise DataError(f"forging needs images (n, h, w, 3) uint8, got {pool.shape} {pool.dtype}")
    return pool


def to_bytes(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Return values rounded to whole grey levels from 0 to 255."""
    levels: NDArray[np.uint8] = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return levels


def is_grey(images: Image) -> bool:
    """Whether a grey camera took these: a coloured forgery on them would be found by its colour alone."""
    return bool((images[..., :1] == images).all())


def to_grey(image: Image) -> Image:
    """Return the mean of the channels in all three."""
    grey = image.astype(np.uint16).sum(-1, keepdims=True) // 3
    return np.asarray(np.repeat(grey.astype(np.uint8), 3, axis=-1))


def blend(image: Image, source: Image, mask: Mask, keep: float) -> Image:
    """Return ``image`` with ``keep * image + (1 - keep) * source`` where the mask is."""
    result: Image = image.copy()
    inside = image[mask].astype(np.float32)
    mixed = keep * inside + (1.0 - keep) * source[mask]
    result[mask] = to_bytes(mixed)
    return result


def visible(image: Image, forged: Image, mask: Mask, levels: int) -> Mask:
    """Return the part of the mask where some channel moved by ``levels`` grey levels at least, holes filled."""
    from scipy import ndimage

    if levels <= 0 or not mask.any():
        return mask
    moved = np.abs(forged.astype(np.int16) - image).max(axis=2) >= levels
    # A pixel that happens to agree lies in the defect all the same.
    closed = ndimage.binary_closing(np.pad(moved & mask, 2), np.ones((3, 3), bool), iterations=2)[2:-2, 2:-2]
    return np.asarray(closed & mask)


def drop_small(mask: Mask, least: float) -> Mask:
    """Return the mask without its connected parts of fewer than ``least`` pixels."""
    from scipy import ndimage

    if not mask.any():
        return mask
    labels, _ = ndimage.label(mask)
    large = np.bincount(labels.ravel()) >= least
    large[0] = False
    return np.asarray(large[labels])


def scaled_area(pixels: float, height: int, width: int) -> float:
    """Return an area given for 256 x 256 pixels, at another size; one pixel at least."""
    return max(1.0, pixels * height * width / 65536.0)
