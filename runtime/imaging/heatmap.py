"""Heat maps for people: what the model saw, drawn over the picture.

The scale is anchored at the threshold and is the same for every frame, never stretched to the frame at hand:

- *pixel threshold* ``t``: the image threshold where the image score is the largest cell of the map; where a detector
  weights its score, the value that stands to the largest cell as the threshold stands to the score. So cells above
  ``t`` and the decision `ANOMALY` go together.
- *heat* of a value ``v``: ``0.5 + 0.5 · (v - t) / |t|``, cut to 0..1. For the usual scores (0 = like the training
  images) that is 0 at 0, 0.5 at the threshold and 1 at twice the threshold.
- *opacity* rises from nothing at heat 0.25 to full at 0.75, so good parts look calm and the same colour means the same
  score everywhere. The outline is drawn where the map crosses ``t``.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgead.runtime.errors import DataError
from edgead.runtime.frame import Decision, Result
from edgead.runtime.imaging.anomaly_map import place_map, resize_map

if TYPE_CHECKING:
    from PIL import ImageFont

# 18 even steps of matplotlib's viridis (CC0), perceptually uniform; linear between them is off by 5 levels at most.
_VIRIDIS = (
    "440154 481769 472a7a 433d84 3d4e8a 355e8d 2e6d8e 297b8e 23898e"
    " 1f978b 21a585 2eb37c 46c06f 65cb5e 89d548 b0dd2f d8e219 fde725"
)
_OUTLINE = (255, 64, 64)
_BANNER = {Decision.OK: (24, 110, 56), Decision.ANOMALY: (176, 24, 24), Decision.NOT_INSPECTED: (166, 96, 0)}


def colormap() -> NDArray[np.uint8]:
    """Return the colours of heat 0 to 1 as ``(256, 3)`` uint8 RGB: viridis, dark blue to yellow."""
    anchors = np.array([list(bytes.fromhex(code)) for code in _VIRIDIS.split()], np.float64)
    at = np.linspace(0, len(anchors) - 1, 256)
    channels = [np.interp(at, np.arange(len(anchors)), anchors[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=1)).astype(np.uint8)


def pixel_threshold(result: Result) -> float | None:
    """Return the map value that corresponds to the image threshold, or None where there is no usable map or score."""
    if result.map is None or not math.isfinite(result.score) or not math.isfinite(result.threshold):
        return None
    highest = float(np.max(result.map))
    if not math.isfinite(highest):
        return None
    if highest > 0 and result.score > 0 and result.threshold > 0:
        return result.threshold * (highest / result.score)
    return highest - (result.score - result.threshold)


def heat(result: Result, height: int, width: int) -> NDArray[np.uint8] | None:
    """Return the heat of each pixel at full size, by the rule of the module.

    Returns:
        ``(height, width)`` uint8, 0 to 255 for heat 0 to 1; a pixel is above 127 exactly where the map is above the
        pixel threshold; 0 outside the region or window that was judged. None where there is no usable map or score.
    """
    threshold = pixel_threshold(result)
    if threshold is None or result.map is None:
        return None
    if result.area is not None:
        left, top, right, bottom = pixel_area(result.area, height, width)
        inner = heat(replace(result, area=None), bottom - top, right - left)
        level = np.zeros((height, width), np.uint8)
        if inner is not None:
            level[top:bottom, left:right] = inner
        return level
    span = abs(threshold) or 1.0
    inside = None
    if result.placement is None:
        values = resize_map(result.map, height, width)
    else:
        values, inside = place_map(result.map, result.placement, height, width)
    above = values > threshold
    values -= threshold
    values *= 127.5 / span
    values += 127.5
    # The level next to the threshold is decided by the comparison, so that rounding can never show a false outline.
    low = np.clip(values, 0, 127).astype(np.uint8)
    hot = np.clip(values, 128, 255).astype(np.uint8)
    level = np.asarray(np.where(above, hot, low), np.uint8)
    if inside is not None:
        level[~inside] = 0
    return level


def pixel_area(area: tuple[float, float, float, float], height: int, width: int) -> tuple[int, int, int, int]:
    """Return the left, top, right and bottom pixel of ``Result.area`` in a picture; never empty."""
    left, top = min(round(area[0] * width), width - 1), min(round(area[1] * height), height - 1)
    right, bottom = round((area[0] + area[2]) * width), round((area[1] + area[3]) * height)
    return left, top, max(right, left + 1), max(bottom, top + 1)


def overlay(image: NDArray[np.uint8], result: Result, *, opacity: float = 0.6) -> NDArray[np.uint8]:
    """Return a copy of the picture with heat map and outline; without a usable map, a plain copy.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.
        result: the judgement of this picture.
        opacity: of the hottest pixels, 0 to 1.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise DataError(f"a picture must be (H, W, 3) uint8 RGB, got {image.shape} {image.dtype}")
    height, width = image.shape[:2]
    level = heat(result, height, width)
    if level is None:
        return np.array(image)
    ramp = np.clip((np.arange(256) / 255 - 0.25) / 0.5, 0, 1) * min(max(opacity, 0.0), 1.0)
    alpha = np.rint(ramp * 256).astype(np.uint16)
    colour = colormap().astype(np.uint16) * alpha[:, None]
    keep = 256 - alpha
    blended = image * keep[level][:, :, None]
    blended += colour[level]
    blended += 128
    drawn: NDArray[np.uint8] = (blended >> 8).astype(np.uint8)
    drawn[outline(level > 127, max(1, round(min(height, width) / 400)))] = _OUTLINE
    return drawn


def annotate(image: NDArray[np.uint8], result: Result, *, opacity: float = 0.6) -> NDArray[np.uint8]:
    """Return the picture with heat map, outline and a strip that names the decision.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.
        result: the judgement of this picture.
        opacity: of the hottest pixels, 0 to 1.

    Returns:
        ``(H + strip, W, 3)`` uint8 RGB: the strip stands above the picture and hides nothing of it.
    """
    from PIL import Image, ImageDraw

    drawn = overlay(image, result, opacity=opacity)
    height, width = drawn.shape[:2]
    text = banner_text(result)
    font, strip = _font(highest_strip(height) // 2, width, text)
    banner = Image.new("RGB", (width, strip), _BANNER[result.decision])
    ImageDraw.Draw(banner).text((strip // 4, strip // 2), text, fill=(255, 255, 255), font=font, anchor="lm")
    return np.concatenate([np.asarray(banner), drawn], axis=0)


def highest_strip(height: int) -> int:
    """Return the height of `annotate`'s strip above a picture of ``height`` rows; a long text makes it lower."""
    return 2 * max(12, min(height // 20, 64))


def banner_text(result: Result) -> str:
    """Return decision, score against threshold, category and reason on one line."""
    parts = [result.decision.value]
    if math.isfinite(result.score):
        parts.append(f"{result.score:.4g} / {result.threshold:.4g}")
    if result.category:
        parts.append(result.category)
    if result.reason:
        parts.append(" ".join(result.reason.split())[:120])
    # Pillow's built-in font has the Latin letters only.
    return "   ".join(parts).encode("latin-1", "replace").decode("latin-1")


def outline(region: NDArray[np.bool_], thickness: int) -> NDArray[np.bool_]:
    """Return the inner edge of a region ``(H, W)`` bool, ``thickness`` pixels; the picture's border is no edge."""
    inner = region
    for _ in range(thickness):
        eroded = inner.copy()
        eroded[1:] &= inner[:-1]
        eroded[:-1] &= inner[1:]
        eroded[:, 1:] &= inner[:, :-1]
        eroded[:, :-1] &= inner[:, 1:]
        inner = eroded
    return region & ~inner


def _font(size: int, width: int, text: str) -> tuple[ImageFont.FreeTypeFont | ImageFont.ImageFont, int]:
    """Return a font in which the text fits the width where that is legible, and the height of the strip."""
    from PIL import ImageFont

    font = ImageFont.load_default(size)
    while size > 9 and font.getlength(text) > width - size:
        size -= 1
        font = ImageFont.load_default(size)
    return font, size * 2
