"""The kernels before and behind the network: frames to network size, maps smoothed, resized, cut into regions.

Functions take and return arrays of the device; they copy nothing and wait for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgead.export.kernels.gpu import Device
from edgead.runtime.errors import ConfigError, suggest
from edgead.runtime.frame import Layout
from edgead.runtime.imaging.nv12 import WEIGHTS, Standard

_LAYOUTS: dict[str, int] = {"rgb": 0, "bgr": 1, "gray": 2}
_THREADS = 256
# Of `ResizeTaps`: first, count, five weights.
_TAP_INTS = 7


class Resizer:
    """Resizes frames of one size to network size, byte for byte as `edgead.runtime.imaging.preprocess.resize` does.

    Args:
        device: where the frames are.
        source: rows and columns of the frames.
        target: height and width of the network's input.

    Raises:
        ConfigError: a size below 1.
    """

    def __init__(self, device: Device, source: tuple[int, int], target: tuple[int, int]) -> None:
        if min(*source, *target) < 1:
            raise ConfigError(f"frames of {source} cannot be resized to {target}; all sizes must be at least 1")
        self._device, self._source, self._target = device, source, target
        self._row_taps, self._column_taps = (self._taps(*sides) for sides in zip(source, target, strict=True))
        self._reduced = -(-source[0] // max(1, source[0] // target[0]))

    def frame(self, pixels: Any, layout: Layout = "rgb") -> Any:
        """Resize ``(H, W, 3)`` or, grey, ``(H, W)`` uint8 to ``(height, width, 3)`` uint8 RGB."""
        if layout not in _LAYOUTS:
            raise ConfigError(f"unknown layout '{layout}'.{suggest(layout, _LAYOUTS)}")
        channels = 1 if layout == "gray" else 3
        wanted = self._source if layout == "gray" else (*self._source, 3)
        self._require(pixels, wanted)
        middle = self._middle(channels)
        source = (pixels, self._source[1] * channels, *self._source, channels)
        self._launch("resize_rows", self._reduced, *source, self._column_taps, *self._target, middle)
        return self._columns(middle, layout)

    def nv12(self, luma: Any, chroma: Any, standard: Standard = "bt601") -> Any:
        """Resize an NV12 frame; arguments as of `edgead.runtime.imaging.nv12.nv12_to_rgb`, result as of `frame`."""
        if standard not in WEIGHTS:
            raise ConfigError(f"unknown colour standard '{standard}'.{suggest(standard, WEIGHTS)}")
        rows, columns = self._source
        pairs = (-(-rows // 2), -(-columns // 2), 2)
        self._require(luma, self._source)
        self._require(chroma, pairs)
        middle = self._middle(3)
        source = (luma, columns, chroma, 2 * pairs[1], list(WEIGHTS).index(standard), *self._source)
        self._launch("resize_rows_nv12", self._reduced, *source, self._column_taps, *self._target, middle)
        return self._columns(middle, "rgb")

    def _taps(self, source: int, target: int) -> Any:
        taps = self._device.empty((target, _TAP_INTS), np.int32)
        self._device.launch("resize_taps", (_blocks(target), 1, 1), _THREADS, 0, source, target, taps)
        return taps

    def _middle(self, channels: int) -> Any:
        return self._device.empty((self._reduced, self._target[1], channels), np.uint8)

    def _columns(self, middle: Any, layout: Layout) -> Any:
        image = self._device.empty((*self._target, 3), np.uint8)
        arguments = (middle, _LAYOUTS[layout], self._row_taps, *self._target, image)
        self._launch("resize_columns", self._target[0], *arguments)
        return image

    def _launch(self, kernel: str, rows: int, *arguments: Any) -> None:
        self._device.launch(kernel, (_blocks(rows * self._target[1]), 1, 1), _THREADS, 0, *arguments)

    def _require(self, array: Any, shape: Sequence[int]) -> None:
        if tuple(array.shape) != tuple(shape) or not str(array.dtype).endswith("uint8"):
            raise ConfigError(f"expected {tuple(shape)} uint8, got {tuple(array.shape)} {array.dtype}")


def smooth_maps(device: Device, maps: Any, weights: Any) -> tuple[Any, Any]:
    """Blur maps ``(N, gh, gw)`` float32 with mirrored borders.

    Args:
        device: where the arrays are.
        maps: as above.
        weights: ``(2 r + 1, 2 r + 1)`` float32, r smaller than either side of the maps.

    Returns:
        The blurred maps, and the largest value of each, ``(N,)``, NaN where any cell is.
    """
    count, height, width = _maps(maps)
    side = int(weights.shape[0])
    if tuple(weights.shape) != (side, side) or side % 2 == 0 or side // 2 >= min(height, width):
        raise ConfigError(f"weights of {tuple(weights.shape)} do not fit maps of {height} x {width}")
    smoothed, score = device.empty((count, height, width), np.float32), device.empty((count,), np.float32)
    arguments = (maps, height, width, weights, side // 2, smoothed, score)
    device.launch("map_smooth", (count, 1, 1), _THREADS, 32, *arguments)
    return smoothed, score


def resize_maps(device: Device, maps: Any, height: int, width: int) -> Any:
    """Resize maps ``(N, gh, gw)`` float32, to the bit as `edgead.runtime.imaging.anomaly_map.resize_map` does."""
    count, map_height, map_width = _maps(maps)
    if min(height, width) < 1:
        raise ConfigError(f"a map cannot be resized to {height}x{width}; both sizes must be at least 1")
    resized = device.empty((count, height, width), np.float32)
    grid = (_blocks(height * width), count, 1)
    device.launch("map_resize", grid, _THREADS, 0, maps, map_height, map_width, height, width, resized)
    return resized


def find_regions(device: Device, maps: Any, threshold: float, capacity: int = 64) -> tuple[Any, Any, Any]:
    """Find the connected regions above a threshold, as `edgead.runtime.imaging.anomaly_map.find_regions` does.

    Args:
        device: where the maps are.
        maps: ``(N, gh, gw)`` float32.
        threshold: cells above it belong to a region.
        capacity: so many regions of a map are kept, the first ones.

    Returns:
        Boxes ``(N, capacity, 4)`` int32 (top, left, bottom, right), peaks ``(N, capacity)`` float32 and counts ``(N,)``
        int32; what lies beyond a map's count is undefined, and a count beyond ``capacity`` says that some are missing.
    """
    count, height, width = _maps(maps)
    if capacity < 1:
        raise ConfigError(f"capacity must be at least 1, got {capacity}")
    labels = device.empty((count, 2, height * width), np.int32)
    boxes, peaks = device.empty((count, capacity, 4), np.int32), device.empty((count, capacity), np.float32)
    counts = device.empty((count,), np.int32)
    arguments = (maps, height, width, float(threshold), labels, capacity, boxes, peaks, counts)
    device.launch("map_regions", (count, 1, 1), _THREADS, 64, *arguments)
    return boxes, peaks, counts


def _maps(maps: Any) -> tuple[int, int, int]:
    shape = tuple(int(size) for size in maps.shape)
    if len(shape) != 3 or 0 in shape or not str(maps.dtype).endswith("float32"):
        raise ConfigError(f"anomaly maps are (N, gh, gw) float32, got {shape} {maps.dtype}")
    return shape[0], shape[1], shape[2]


def _blocks(pixels: int) -> int:
    return -(-pixels // _THREADS)
