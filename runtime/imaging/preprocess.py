"""The one resize from frame to network input, exact to the byte on every platform.

Rule ``reduce-bilinear/1``, two stages of integer arithmetic:

1. *Reduce*: where a side shrinks by a factor of 2 or more, blocks of ``floor(source / target)`` pixels are averaged
   (integer sum, rounded half up; a partial block at the right or bottom edge is averaged over the pixels it has).
2. *Bilinear*: the rest (a factor below 2, or an upscale) is a triangle filter whose support grows with the factor,
   so it is antialiased; 22-bit fixed-point weights, first along rows, then along columns, each pass rounded to 8 bits.

Why this rule: Pillow computes both stages in C with integers only, on every platform it supports, and Pillow is
needed to decode images anyway, so the fast path is there on every device. Frames that divide evenly need stage 1 alone,
which numpy does without the copy that Pillow makes. It is as fast as OpenCV's INTER_AREA (docs/preprocess.md), which
rounds through float32 and is replaced by vendor code on some boards, so it is not exact.
`resize_reference` states the rule in numpy; tests hold the two equal byte for byte.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgead.runtime.errors import BackendError, DataError
from edgead.runtime.frame import Layout, require_layout

RESIZE_RULE = "reduce-bilinear/1"

_WEIGHT_BITS = 22
_WORKING_BYTES = 1 << 18


def resize(image: NDArray[np.uint8], height: int, width: int, layout: Layout = "rgb") -> NDArray[np.uint8]:
    """Resize a frame to network size.

    Args:
        image: ``(H, W, 3)`` uint8 in ``layout`` order, or ``(H, W)`` uint8 for ``"gray"``.
        height, width: network size in pixels.
        layout: channel order of ``image``; the reordering is done on the small result.

    Returns:
        ``(height, width, 3)`` uint8 RGB; may be read-only.

    Raises:
        DataError: wrong shape or dtype.
    """
    from PIL import Image

    _validate(image, layout)
    rows, columns = image.shape[:2]
    if layout != "gray" and rows % height == columns % width == 0 and min(rows // height, columns // width) > 1:
        return _average_blocks(image, rows // height, columns // width, layout)
    mode = "L" if layout == "gray" else "RGB"
    pixels = np.ascontiguousarray(image)
    picture = Image.frombuffer(mode, (columns, rows), pixels, "raw", mode, 0, 1)
    factors = _factor(columns, width), _factor(rows, height)
    if factors != (1, 1):
        picture = picture.reduce(factors)
    # One call a direction: given both at once, Pillow's versions differ in which direction they do first,
    # and the 8-bit rounding between the passes makes that visible.
    reduced_width, reduced_height = picture.size
    if reduced_width != width or columns % factors[0]:
        box = (0.0, 0.0, columns / factors[0], float(reduced_height))
        picture = picture.resize((width, reduced_height), Image.Resampling.BILINEAR, box=box)
    if reduced_height != height or rows % factors[1]:
        box = (0.0, 0.0, float(width), rows / factors[1])
        picture = picture.resize((width, height), Image.Resampling.BILINEAR, box=box)
    if layout == "gray":
        return np.repeat(np.asarray(picture)[:, :, None], 3, axis=2)
    packed = picture.tobytes("raw", "BGR" if layout == "bgr" else "RGB")
    return np.frombuffer(packed, np.uint8).reshape(height, width, 3)


def resize_reference(image: NDArray[np.uint8], height: int, width: int, layout: Layout = "rgb") -> NDArray[np.uint8]:
    """State the rule of `resize` in plain numpy integers: slow, obvious, and what every fast path must equal."""
    _validate(image, layout)
    rows, columns = image.shape[:2]
    factor_y, factor_x = _factor(rows, height), _factor(columns, width)
    pixels = image.reshape(rows, columns, -1).astype(np.int64)
    pixels = _reduce(pixels, factor_y, factor_x)
    pixels = _bilinear(pixels, columns / factor_x, width, axis=1)
    pixels = _bilinear(pixels, rows / factor_y, height, axis=0)
    result = pixels.astype(np.uint8)
    if layout == "gray":
        return np.repeat(result, 3, axis=2)
    return np.ascontiguousarray(result[:, :, ::-1]) if layout == "bgr" else result


def self_check() -> None:
    """Prove on this machine that the fast path equals the reference; raises `BackendError` where it does not."""
    pattern = np.random.default_rng(20260101).integers(0, 256, (97, 131, 3), dtype=np.uint8)
    for height, width in ((32, 32), (64, 120), (128, 160)):
        if not np.array_equal(resize(pattern, height, width), resize_reference(pattern, height, width)):
            raise BackendError(
                "the resize of this machine's Pillow differs from the reference; "
                "reinstall Pillow from PyPI: pip install --force-reinstall pillow"
            )


def _average_blocks(image: NDArray[np.uint8], factor_y: int, factor_x: int, layout: Layout) -> NDArray[np.uint8]:
    """Do stage 1 alone, for frames that divide evenly: no hand-over to Pillow, which costs a third of the time."""
    rows, columns = image.shape[:2]
    height, width = rows // factor_y, columns // factor_x
    area = factor_y * factor_x
    reciprocal = np.uint32(_reciprocal(np.array(area)))
    kind = np.uint16 if 255 * area < 1 << 16 else np.uint32
    packed = np.ascontiguousarray(image).reshape(height, factor_y, columns * 3)
    result = np.empty((height, width, 3), np.uint8)
    # A few rows at a time, so that what lies between the sums stays in the cache: the network has just filled it.
    step = max(1, _WORKING_BYTES // (columns * 3 * 2 * np.dtype(kind).itemsize))
    row_sums = np.empty((step, columns * 3), kind)
    planes = np.empty((step, 3, factor_x, width), kind)
    sums = np.empty((step, 3, width), kind)
    means = np.empty((step, 3, width), np.uint32)
    for start in range(0, height, step):
        count = min(step, height - start)
        np.add.reduce(packed[start : start + count], axis=1, dtype=kind, out=row_sums[:count])
        # Planes make the inner loop of the second sum long; it is short when the three channels are innermost.
        np.copyto(planes[:count], row_sums[:count].reshape(count, width, factor_x, 3).transpose(0, 3, 2, 1))
        np.add.reduce(planes[:count], axis=2, dtype=kind, out=sums[:count])
        np.add(sums, np.uint32(area // 2), out=means)
        means *= reciprocal
        means >>= np.uint32(24)
        for channel in range(3):
            result[start : start + count, :, 2 - channel if layout == "bgr" else channel] = means[:count, channel]
    return result


def _reciprocal(area: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the 24-bit reciprocal that turns a block's sum into its mean.

    2**32 / (256 * area) is taken in float32 and truncated, which is what Pillow does. A sum times it stays below 2**32.
    """
    return np.asarray(np.float32(2.0**32) / (256 * area).astype(np.float32), np.int64)


def _factor(source: int, target: int) -> int:
    return max(1, source // target)


def _validate(image: NDArray[np.uint8], layout: Layout) -> None:
    require_layout(layout)
    expected = "(H, W)" if layout == "gray" else "(H, W, 3)"
    if image.dtype != np.uint8 or image.ndim != (2 if layout == "gray" else 3) or 0 in image.shape:
        raise DataError(f"a {layout} frame must be {expected} uint8, got {image.shape} {image.dtype}")
    if layout != "gray" and image.shape[2] != 3:
        raise DataError(f"a {layout} frame must be {expected} uint8, got {image.shape} {image.dtype}")


def _reduce(pixels: NDArray[np.int64], factor_y: int, factor_x: int) -> NDArray[np.int64]:
    if (factor_y, factor_x) == (1, 1):
        return pixels
    starts_y = np.arange(0, pixels.shape[0], factor_y)
    starts_x = np.arange(0, pixels.shape[1], factor_x)
    sums = np.add.reduceat(np.add.reduceat(pixels, starts_y, axis=0), starts_x, axis=1)
    heights = np.minimum(factor_y, pixels.shape[0] - starts_y)
    widths = np.minimum(factor_x, pixels.shape[1] - starts_x)
    area = (heights[:, None] * widths[None, :])[:, :, None]
    return np.asarray(((sums + area // 2) * _reciprocal(area)) >> 24, np.int64)


def _bilinear(pixels: NDArray[np.int64], extent: float, target: int, axis: int) -> NDArray[np.int64]:
    source = pixels.shape[axis]
    if source == target and extent == source:
        return pixels
    moved = np.moveaxis(pixels, axis, 0)
    scale = float(np.float32(extent)) / target
    support = max(scale, 1.0)
    result = np.empty((target, *moved.shape[1:]), np.int64)
    for index in range(target):
        center = (index + 0.5) * scale
        first = max(int(center - support + 0.5), 0)
        last = min(int(center + support + 0.5), source)
        weights = np.maximum(0.0, 1.0 - np.abs((np.arange(first, last) - center + 0.5) * (1.0 / support)))
        total = 0.0
        for weight in weights:  # in this order: the sum decides the last bit
            total += float(weight)
        fixed = np.floor(weights / total * (1 << _WEIGHT_BITS) + 0.5).astype(np.int64)
        summed = np.tensordot(fixed, moved[first:last], axes=1) + (1 << (_WEIGHT_BITS - 1))
        result[index] = np.clip(summed >> _WEIGHT_BITS, 0, 255)
    return np.moveaxis(result, 0, axis)
