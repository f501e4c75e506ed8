"""Changes of tone, colour and direction of uint8 images, most of them by a table of 256 values a channel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgead.runtime.imaging.preprocess import resize
from edgead.synthesis.forger import Image, is_grey, to_bytes

_Table = NDArray[np.floating]
_LEVELS = np.arange(256, dtype=np.float32)


def jitter(image: Image, rng: np.random.Generator, strength: float = 0.1) -> Image:
    """Return the image a little brighter or darker, with more or less contrast and tint."""
    return apply_table(image, jitter_table(image, rng, strength))


def jitter_table(image: Image, rng: np.random.Generator, strength: float = 0.1) -> NDArray[np.floating]:
    """Return what `jitter` would do to the image, ``(256, 3)`` for `apply_table`, so that others can share it."""
    tint = rng.uniform(-0.3, 0.3, 3) * strength
    gain = 1.0 + rng.uniform(-strength, strength) + (0.0 if is_grey(image) else tint)
    gain = np.broadcast_to(gain, 3)
    middle = float(image.mean())
    shift = 255.0 * rng.uniform(-0.5, 0.5) * strength
    return np.asarray(gain * (_LEVELS[:, None] - middle) + middle + shift)


def shift(pictures: Sequence[NDArray[Any]], rng: np.random.Generator, reach: int) -> list[NDArray[Any]]:
    """Return pictures ``(h, w, ...)`` moved alike by up to ``reach`` pixels in each direction, borders repeated."""
    height, width = pictures[0].shape[:2]
    down, across = (int(step) for step in rng.integers(-reach, reach + 1, 2))
    rows = np.clip(np.arange(height) + down, 0, height - 1)
    columns = np.clip(np.arange(width) + across, 0, width - 1)
    return [picture[rows][:, columns] for picture in pictures]


def strong_jitter(image: Image, rng: np.random.Generator) -> Image:
    """Return the image with brightness, contrast and saturation changed by up to 80 %, hue by up to 0.4 of a turn."""
    pixels = image.astype(np.float32) * rng.uniform(0.2, 1.8)
    pixels = (pixels - pixels.mean()) * rng.uniform(0.2, 1.8) + pixels.mean()
    grey = pixels.mean(axis=2, keepdims=True)
    pixels = grey + (pixels - grey) * rng.uniform(0.2, 1.8)
    return _turn_hue(pixels, rng.uniform(-0.4, 0.4) * 2 * np.pi)


def augment(image: Image, rng: np.random.Generator, count: int = 3) -> Image:
    """Return the image after ``count`` different ones of ten random changes (those of DRAEM's textures)."""
    for number in rng.choice(len(_CHANGES), count, replace=False):
        image = _CHANGES[number](image, rng)
    return image


def flip(image: Image, rng: np.random.Generator) -> Image:
    """Return the image mirrored along rows, columns or both."""
    which = int(rng.integers(1, 4))
    mirrored: Image = np.ascontiguousarray(image[:: -1 if which & 1 else 1, :: -1 if which & 2 else 1])
    return mirrored


def grid_shuffle(image: Image, rng: np.random.Generator, rows: int, columns: int) -> Image:
    """Return the image with its ``rows x columns`` tiles in another order; what is left of a side stays in place."""
    height, width = image.shape[0] // rows, image.shape[1] // columns
    inner = image[: rows * height, : columns * width]
    tiles = inner.reshape(rows, height, columns, width, 3).swapaxes(1, 2).reshape(rows * columns, height, width, 3)
    shuffled = tiles[rng.permutation(rows * columns)].reshape(rows, columns, height, width, 3).swapaxes(1, 2)
    result: Image = image.copy()
    result[: rows * height, : columns * width] = shuffled.reshape(inner.shape)
    return result


def random_crop(image: Image, rng: np.random.Generator) -> Image:
    """Return 20 to 100 % of the image's area, of sides 3:4 to 4:3, at the image's size, mirrored half of the time."""
    height, width = image.shape[:2]
    area = rng.uniform(0.2, 1.0) * height * width
    aspect = float(np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3))))
    rows = int(np.clip(round((area * aspect) ** 0.5), 1, height))
    columns = int(np.clip(round((area / aspect) ** 0.5), 1, width))
    top, left = int(rng.integers(0, height - rows + 1)), int(rng.integers(0, width - columns + 1))
    crop = resize(np.ascontiguousarray(image[top : top + rows, left : left + columns]), height, width)
    return np.ascontiguousarray(crop[:, ::-1] if rng.random() < 0.5 else crop)


def apply_table(image: Image, table: _Table) -> Image:
    """Look every value up in a table ``(256,)`` of all channels or ``(256, 3)`` of each."""
    values = to_bytes(table)
    if values.ndim == 1:
        return np.asarray(values[image])
    return np.stack([values[:, c][image[:, :, c]] for c in range(3)], axis=2)


def _gamma(image: Image, rng: np.random.Generator) -> Image:
    exponents = rng.uniform(0.5, 2.0, 3)
    return apply_table(image, 255.0 * (_LEVELS[:, None] / 255.0) ** exponents)


def _brightness(image: Image, rng: np.random.Generator) -> Image:
    return apply_table(image, _LEVELS * rng.uniform(0.8, 1.2) + rng.uniform(-30, 30))


def _sharpen(image: Image, rng: np.random.Generator) -> Image:
    from scipy import ndimage

    soft = ndimage.uniform_filter(image.astype(np.float32), (3, 3, 1))
    sharp = image + rng.uniform(0.0, 2.0) * (image - soft)
    return to_bytes(sharp)


def _hue(image: Image, rng: np.random.Generator) -> Image:
    return _turn_hue(image.astype(np.float32), rng.uniform(-0.2, 0.2) * 2 * np.pi)


def _turn_hue(pixels: NDArray[np.float32], angle: float) -> Image:
    """Turn colours around the grey axis."""
    third, root = 1.0 / 3.0, np.sqrt(1.0 / 3.0)
    cosine, sine = np.cos(angle), np.sin(angle)
    near, plus, minus = (
        cosine + (1 - cosine) * third,
        third * (1 - cosine) + root * sine,
        third * (1 - cosine) - root * sine,
    )
    matrix = np.array([[near, minus, plus], [plus, near, minus], [minus, plus, near]], np.float32)
    return to_bytes(pixels @ matrix.T)


def _solarise(image: Image, rng: np.random.Generator) -> Image:
    return apply_table(image, np.where(rng.uniform(32, 128) <= _LEVELS, 255.0 - _LEVELS, _LEVELS))


def _posterise(image: Image, rng: np.random.Generator) -> Image:
    step = 2.0 ** rng.integers(3, 7)
    return apply_table(image, np.floor(_LEVELS / step) * step)


def _invert(image: Image, _: np.random.Generator) -> Image:
    return apply_table(image, 255.0 - _LEVELS)


def _stretch(image: Image, _: np.random.Generator) -> Image:
    low = image.min(axis=(0, 1)).astype(np.float32)
    span = np.maximum(image.max(axis=(0, 1)) - low, 1)
    return apply_table(image, 255.0 * (_LEVELS[:, None] - low) / span)


def _equalise(image: Image, _: np.random.Generator) -> Image:
    counts = np.stack([np.bincount(image[:, :, c].ravel(), minlength=256) for c in range(3)], axis=1)
    share = np.cumsum(counts, axis=0, dtype=np.float32)
    return apply_table(image, 255.0 * share / share[-1])


def _rotate(image: Image, rng: np.random.Generator) -> Image:
    turned = np.rot90(image, 2 if image.shape[0] != image.shape[1] else int(rng.integers(1, 4)))
    return np.ascontiguousarray(turned)


_CHANGES: tuple[Callable[[Image, np.random.Generator], Image], ...] = (
    _gamma,
    _brightness,
    _sharpen,
    _hue,
    _solarise,
    _posterise,
    _invert,
    _stretch,
    _equalise,
    _rotate,
)
