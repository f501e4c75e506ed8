"""Anomaly maps on the host: resizing, the one rule that heat maps and pixel metrics share; regions above a threshold.

The CUDA versions of both are in ``export/kernels/anomaly_map.cuh``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgead.runtime.errors import ConfigError
from edgead.runtime.frame import Placement


def resize_map(anomaly_map: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Resize anomaly maps bilinearly with half-pixel centres and no antialiasing.

    The rule is that of ``torch.nn.functional.interpolate(mode="bilinear", align_corners=False)``: within 1e-6 of the
    map's range of what torch computes in float64 (in float32 torch itself rounds the positions). A map that already
    has the size comes back with the same values.

    Args:
        anomaly_map: ``(gh, gw)`` or ``(N, gh, gw)``, any float type; computed in float32. NaN and Inf spread to
            the pixels they touch, they are never hidden.
        height, width: size wanted, in pixels.

    Returns:
        ``(height, width)`` or ``(N, height, width)`` float32, C-contiguous, never a view of the input.

    Raises:
        ConfigError: the map has another number of axes or an empty one, or a wanted size is below 1.
    """
    values = np.asarray(anomaly_map, dtype=np.float32)
    if values.ndim not in (2, 3) or 0 in values.shape[-2:]:
        raise ConfigError(f"an anomaly map has shape (gh, gw) or (N, gh, gw), not {values.shape}")
    if height < 1 or width < 1:
        raise ConfigError(f"a map cannot be resized to {height}x{width}; both sizes must be at least 1")
    # Columns first: that pass runs on the few rows of the grid, only the second on every pixel of the result.
    result = _lerp(_lerp(values, width, axis=-1), height, axis=-2)
    return np.array(result, order="C") if np.shares_memory(result, values) else np.ascontiguousarray(result)


def place_map(
    anomaly_map: NDArray[np.float32], placement: Placement, height: int, width: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return an aligned map where it lies on the frame: bilinear as `resize_map`, but turned.

    Args:
        anomaly_map: ``(gh, gw)``.
        placement: of the result.
        height, width: of the frame, or of the region that was aligned, in pixels wanted.

    Returns:
        ``(height, width)`` float32, the map's least value where it does not reach, and bool: where it does.
    """
    a, b, c, d, e, f = placement
    x, y = (np.arange(width) + 0.5) / width, (np.arange(height)[:, None] + 0.5) / height
    right, down = a * x + b * y + c, d * x + e * y + f
    inside = (right >= 0) & (right <= 1) & (down >= 0) & (down <= 1)
    rows, columns = anomaly_map.shape
    across = np.clip(right[inside] * columns - 0.5, 0, columns - 1).astype(np.float32)
    along = np.clip(down[inside] * rows - 0.5, 0, rows - 1).astype(np.float32)
    left, top = across.astype(np.intp), along.astype(np.intp)
    across -= left
    along -= top
    values = np.pad(np.asarray(anomaly_map, np.float32), ((0, 1), (0, 1)), "edge")
    upper = values[top, left] + (values[top, left + 1] - values[top, left]) * across
    lower = values[top + 1, left] + (values[top + 1, left + 1] - values[top + 1, left]) * across
    result = np.full((height, width), values.min(), np.float32)
    result[inside] = upper + (lower - upper) * along
    return result, inside


class Region(NamedTuple):
    """Box around connected cells of a map, half-open: rows ``top`` to ``bottom - 1``; ``peak`` is the largest value."""

    top: int
    left: int
    bottom: int
    right: int
    peak: float


def find_regions(anomaly_map: NDArray[np.float32], threshold: float) -> list[Region]:
    """Return the 8-connected regions of cells above a threshold, in the order of their first cells, row by row.

    Args:
        anomaly_map: ``(gh, gw)``, any float type; compared in float32. NaN is above nothing.
        threshold: a cell belongs to a region if it is larger; rounded to float32.

    Raises:
        ConfigError: the map has another number of axes, or an empty one.
    """
    values = np.asarray(anomaly_map, dtype=np.float32)
    if values.ndim != 2 or 0 in values.shape:
        raise ConfigError(f"an anomaly map has shape (gh, gw), not {values.shape}")
    rows, columns = values.shape
    above = values > np.float32(threshold)
    nothing = values.size
    # Each cell's label is a cell of its region, and falls until it is the first one.
    labels = np.where(above, np.arange(values.size).reshape(values.shape), nothing)
    while True:
        around = np.pad(labels, 1, constant_values=nothing)
        shifts = [around[i : i + rows, j : j + columns] for i in range(3) for j in range(3)]
        least = np.minimum.reduce(shifts)
        moved = np.where(above, np.append(labels.ravel(), nothing)[np.where(above, least, nothing)], nothing)
        if np.array_equal(moved, labels):
            break
        labels = moved
    found = []
    for root in np.flatnonzero(labels.ravel() == np.arange(values.size)):
        down, across = np.nonzero(labels == root)
        peak = float(values[down, across].max())
        found.append(Region(int(down[0]), int(across.min()), int(down[-1]) + 1, int(across.max()) + 1, peak))
    return found


def _lerp(values: NDArray[np.float32], size: int, axis: int) -> NDArray[np.float32]:
    length = values.shape[axis]
    if size == length:
        return values
    position = np.maximum((np.arange(size) + 0.5) * (length / size) - 0.5, 0.0)
    lower = np.minimum(position.astype(np.intp), length - 1)
    upper = np.minimum(lower + 1, length - 1)
    weight = (position - lower).astype(np.float32)
    near = np.take(values, lower, axis=axis)
    result: NDArray[np.float32] = np.take(values, upper, axis=axis)
    # near + (far - near) * weight: a constant map stays constant to the last bit.
    result -= near
    result *= weight if axis == -1 else weight[:, None]
    result += near
    return result
