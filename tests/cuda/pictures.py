"""Resize of frames and anomaly maps by the kernels, in the order in which a program launches them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgead.runtime.frame import Layout
from tests.cuda.executor import Executor

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

_LAYOUTS: dict[Layout, int] = {"rgb": 0, "bgr": 1, "gray": 2}
_TAPS = np.dtype([("first", np.int32), ("count", np.int32), ("weight", np.int32, 5)])


def _blocks(pixels: int) -> int:
    return -(-pixels // 256)


def _taps(executor: Executor, source: int, target: int) -> NDArray[np.void]:
    taps = np.full(target, -1, np.int32).repeat(7).view(_TAPS)
    executor.launch("resize_taps", (_blocks(target), 1, 1), 256, 0, source, target, taps)
    return taps


def resize(executor: Executor, frame: Bytes, height: int, width: int, layout: Layout) -> Bytes:
    """Resize a frame as `edgead.runtime.preprocess.resize` does."""
    rows, columns = frame.shape[:2]
    channels = 1 if layout == "gray" else 3
    reduced = -(-rows // max(1, rows // height))
    middle = np.full((reduced, width, channels), 99, np.uint8)
    arguments = (frame, columns * channels, rows, columns, channels, _taps(executor, columns, width))
    executor.launch("resize_rows", (_blocks(reduced * width), 1, 1), 256, 0, *arguments, height, width, middle)
    image = np.full((height, width, 3), 99, np.uint8)
    inputs = (middle, _LAYOUTS[layout], _taps(executor, rows, height))
    executor.launch("resize_columns", (_blocks(height * width), 1, 1), 256, 0, *inputs, height, width, image)
    return image


def smooth(executor: Executor, maps: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Blur maps ``(N, gh, gw)`` with mirrored borders; the blurred maps and the largest value of each."""
    count, height, width = maps.shape
    smoothed, score = np.full_like(maps, -7), np.full(count, -7, np.float32)
    radius = len(weights) // 2
    executor.launch("map_smooth", (count, 1, 1), 256, 32, maps, height, width, weights, radius, smoothed, score)
    return smoothed, score


def resize_map(executor: Executor, maps: Floats, height: int, width: int) -> Floats:
    """Resize maps ``(N, gh, gw)`` as `edgead.runtime.maps.resize_map` does."""
    count, map_height, map_width = maps.shape
    resized = np.full((count, height, width), -7, np.float32)
    grid = (_blocks(height * width), count, 1)
    executor.launch("map_resize", grid, 256, 0, maps, map_height, map_width, height, width, resized)
    return resized
