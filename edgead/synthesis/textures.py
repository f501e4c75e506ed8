"""Where the texture of a forged defect comes from: made up, or images in a folder such as DTD."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgead.runtime.errors import DataError
from edgead.runtime.imaging.decode import read_image
from edgead.runtime.imaging.listing import list_images
from edgead.runtime.imaging.preprocess import resize
from edgead.synthesis.augment import augment
from edgead.synthesis.forger import Image, to_bytes, to_grey
from edgead.synthesis.perlin import perlin, random_perlin

_BANK = 64  # made-up textures; every draw augments one of them anew
_CACHE = 512  # images held in memory


class Textures(Protocol):
    """Gives textures."""

    def __call__(self, rng: np.random.Generator) -> Image:
        """Return a texture ``(h, w, 3)`` uint8, augmented, of the size it was opened for."""


def open_textures(folder: str | None, height: int, width: int, *, grey: bool = False) -> Textures:
    """Return the textures of a folder of images, or made-up ones where there is none; without colour if ``grey``.

    Raises:
        DataError: no such folder, or no image in it.
    """
    if folder is None:
        return ProceduralTextures(height, width, grey=grey)
    return FolderTextures(Path(folder), height, width, grey=grey)


class ProceduralTextures:
    """Clouds, stripes, cells, speckle and flakes in random colours, from a bank that is made once."""

    def __init__(self, height: int, width: int, *, grey: bool = False, seed: int = 0, bank: int = _BANK) -> None:
        rng = np.random.default_rng((20230501, seed))
        self._grey = grey
        self._bank = [_KINDS[number % len(_KINDS)](height, width, rng) for number in range(bank)]

    def __call__(self, rng: np.random.Generator) -> Image:
        texture = self._bank[int(rng.integers(len(self._bank)))]
        # A roll moves the texture without a border, nearly: its seam is one more irregularity.
        shift = rng.integers(0, texture.shape[:2])
        texture = augment(np.roll(texture, tuple(map(int, shift)), axis=(0, 1)), rng)
        return to_grey(texture) if self._grey else texture


class FolderTextures:
    """Images of a folder, at network size, each read once as far as memory allows."""

    def __init__(self, folder: Path, height: int, width: int, *, grey: bool = False) -> None:
        if not folder.is_dir():
            raise DataError(f"there is no folder of textures at {folder}")
        self._files = list_images(folder).paths
        if not self._files:
            raise DataError(f"{folder} holds no image to take textures from")
        self._size, self._grey = (height, width), grey
        self._held: dict[int, Image] = {}

    def __call__(self, rng: np.random.Generator) -> Image:
        number = int(rng.integers(len(self._files)))
        texture = self._held.get(number)
        if texture is None:
            texture = np.array(resize(read_image(self._files[number]), *self._size))
            if len(self._held) < _CACHE:
                self._held[number] = texture
        texture = augment(texture, rng)
        return to_grey(texture) if self._grey else texture


def _colours(rng: np.random.Generator, count: int) -> NDArray[np.float32]:
    """Return colours ``(count, 3)`` of one material: tones far apart, hues near each other, now and then a stranger."""
    tint = rng.uniform(0.35, 1.0, 3) if rng.random() < 0.8 else np.ones(3)
    tones = np.sort(rng.uniform(10, 255, count))[rng.permutation(count)]
    colours = tones[:, None] * tint * rng.uniform(0.85, 1.15, (count, 3))
    if rng.random() < 0.3:
        colours[int(rng.integers(count))] = rng.uniform(0, 255, 3)
    return np.asarray(np.clip(colours, 0, 255), np.float32)


def _paint(level: NDArray[np.float32], rng: np.random.Generator, grain: float) -> Image:
    """Return the colours of a level map from 0 to 1, with grain."""
    palette = _colours(rng, int(rng.integers(2, 5)))
    place = np.clip(level, 0, 1) * (len(palette) - 1)
    lower = np.minimum(place.astype(np.intp), len(palette) - 2)
    share = (place - lower)[:, :, None]
    pixels = palette[lower] * (1 - share) + palette[lower + 1] * share
    pixels += grain * rng.normal(0, 1, (*level.shape, 1)).astype(np.float32)
    return to_bytes(pixels)


def _clouds(height: int, width: int, rng: np.random.Generator) -> Image:
    first = int(rng.integers(1, 4))
    angle = float(rng.uniform(0, math.pi))
    total = np.zeros((height, width), np.float32)
    for octave in range(int(rng.integers(2, 5))):
        cells = 2.0 ** (first + octave)
        total += 0.6**octave * perlin(height, width, rng, (cells, cells * float(rng.uniform(0.5, 2.0))), angle)
    return _paint(0.5 + 0.6 * total, rng, rng.uniform(0, 12))


def _stripes(height: int, width: int, rng: np.random.Generator) -> Image:
    turn, waves = rng.uniform(0, math.pi), rng.uniform(4, 40)
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32) / max(height, width)
    phase = waves * (rows * math.cos(turn) + columns * math.sin(turn))
    phase += rng.uniform(0, 1.5) * random_perlin(height, width, rng, (1, 3))
    level = 0.5 + 0.5 * np.sin(2 * math.pi * phase)
    return _paint(level ** rng.uniform(0.4, 3.0), rng, rng.uniform(0, 15))


def _cells(height: int, width: int, rng: np.random.Generator) -> Image:
    from scipy.spatial import cKDTree

    points = rng.uniform(0, 1, (int(rng.integers(20, 300)), 2)) * (height, width)
    rows, columns = np.mgrid[0:height, 0:width]
    distances, _ = cKDTree(points).query(np.stack([rows.ravel(), columns.ravel()], axis=1), k=2)
    edge = (distances[:, 1] - distances[:, 0]).reshape(height, width).astype(np.float32)
    return _paint(edge / max(float(np.quantile(edge, 0.95)), 1e-6), rng, rng.uniform(0, 12))


def _speckle(height: int, width: int, rng: np.random.Generator) -> Image:
    from scipy import ndimage

    noise = ndimage.gaussian_filter(rng.normal(0, 1, (height, width)).astype(np.float32), rng.uniform(0.5, 2.5))
    noise /= max(float(noise.std()), 1e-6)
    return _paint(0.5 + rng.uniform(0.15, 0.5) * noise, rng, rng.uniform(0, 10))


def _flakes(height: int, width: int, rng: np.random.Generator) -> Image:
    """Patches with sharp borders, as where a coat has come off."""
    low = random_perlin(height, width, rng, (2, 4)) + 0.4 * random_perlin(height, width, rng, (4, 5))
    steps = int(rng.integers(2, 5))
    level = np.floor(np.clip(0.5 + 0.7 * low, 0, 0.999) * steps) / max(1, steps - 1)
    fine = 0.15 * random_perlin(height, width, rng, (4, 6))
    return _paint(level + fine, rng, rng.uniform(2, 14))


_KINDS = (_clouds, _stripes, _cells, _speckle, _flakes)
