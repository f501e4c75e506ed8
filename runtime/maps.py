"""Resizing of anomaly maps on the host, the one rule that heat maps and pixel metrics share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgead.runtime.errors import ConfigError


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
