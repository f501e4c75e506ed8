"""Frames as small JPEG pictures, made when somebody looks."""

from __future__ import annotations

import io
import math
import threading
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgead.runtime.frame import Frame, Layout, Result
from edgead.runtime.imaging.heatmap import overlay
from edgead.runtime.imaging.preprocess import resize

SIDE = 960
THUMB_SIDE = 240


@dataclass(slots=True)
class Shown:
    """One result as the page shows it, and its pictures once they were asked for.

    Attributes:
        number: counts the results of all sources.
        time: of the day, UTC, when it came.
        image, layout: the frame's pixels, or a thinned copy; None where there are none.
    """

    number: int
    source: int
    result: Result
    time: str
    image: NDArray[np.uint8] | None
    layout: Layout
    _encoded: dict[tuple[int, bool], bytes] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def jpeg(self, side: int, *, heat: bool) -> bytes | None:
        """Return the picture, at most ``side`` pixels wide and high; several browsers share the work of one."""
        if self.image is None:
            return None
        with self._lock:
            if (side, heat) not in self._encoded:
                self._encoded[side, heat] = encode_jpeg(self.image, self.layout, self.result, side, heat)
            return self._encoded[side, heat]


def thinned(frame: Frame) -> NDArray[np.uint8]:
    """Return a copy of every k-th pixel, small enough to keep and cheap enough for the stream's machine."""
    step = math.ceil(max(frame.image.shape[:2]) / (2 * THUMB_SIDE))
    return np.ascontiguousarray(frame.image[::step, ::step])


def encode_jpeg(image: NDArray[np.uint8], layout: Layout, result: Result, side: int, heat: bool) -> bytes:
    """Return a picture as a JPEG of at most ``side`` pixels wide and high, with its heat map where that is wanted."""
    from PIL import Image

    rows, columns = image.shape[:2]
    scale = min(1.0, side / max(rows, columns))
    # Small first: the heat map is drawn on what is sent.
    picture = resize(image, max(1, round(rows * scale)), max(1, round(columns * scale)), layout)
    if heat:
        picture = overlay(picture, result)
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=80)
    return stream.getvalue()
