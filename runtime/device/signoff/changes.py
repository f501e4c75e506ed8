"""Small changes of a picture that a station must bear: light, place, focus, compression.

They are made in software from the captures, so they are no replacement for captures under changed light; they say how
near a decision is to another one.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]


def changed_pictures(image: Picture) -> Mapping[str, Callable[[], Picture]]:
    """Return what the small changes make of a picture, by what they are.

    Args:
        image: ``(H, W, 3)`` uint8 RGB or ``(H, W)`` uint8 grey; results have its shape.
    """
    return {
        "light 5 % darker": lambda: _light(image, 0.95),
        "light 5 % brighter": lambda: _light(image, 1.05),
        "moved 2 pixels right": lambda: _moved(image, 0, 2),
        "moved 2 pixels down": lambda: _moved(image, 2, 0),
        "out of focus, 3x3 binomial": lambda: _blurred(image),
        "JPEG, quality 90": lambda: _jpeg(image, 90),
    }


CHANGES = tuple(changed_pictures(np.zeros((4, 4), np.uint8)))


def _light(image: Picture, factor: float) -> Picture:
    table = np.clip(np.floor(np.arange(256) * factor + 0.5), 0, 255).astype(np.uint8)
    return np.asarray(table[image])


def _moved(image: Picture, down: int, right: int) -> Picture:
    edges = [(down, 0), (right, 0), *([(0, 0)] * (image.ndim - 2))]
    padded = np.pad(image, edges, mode="edge")
    return np.ascontiguousarray(padded[: image.shape[0], : image.shape[1]])


def _blurred(image: Picture) -> Picture:
    edges = [(1, 1), (1, 1), *([(0, 0)] * (image.ndim - 2))]
    wide = np.pad(image, edges, mode="edge").astype(np.uint16)
    rows = wide[:-2] + 2 * wide[1:-1] + wide[2:]
    both = rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]
    return np.asarray((both + 8) >> 4, np.uint8)


def _jpeg(image: Picture, quality: int) -> Picture:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=quality)
    with Image.open(io.BytesIO(stream.getvalue())) as opened:
        return np.array(opened)
