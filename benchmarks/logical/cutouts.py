"""Real parts cut out of their images: screws, figures and plates, upright, with the mask that they were cut by."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from edgead.runtime.errors import DataError
from edgead.runtime.imaging.otsu import otsu

# Category folders below DATA, and how many of each are cut out.
FOLDERS = {"screw": "mvtec_ad/screw", "figure": "aws_aliens/toy", "plate": "mpdd/metal_plate"}
MOST = 60


@dataclass(frozen=True, slots=True)
class CutOut:
    """One part: ``(h, w, 3)`` uint8 RGB, and how much of each pixel is of the part, ``(h, w)`` uint8."""

    pixels: NDArray[np.uint8]
    alpha: NDArray[np.uint8]

    def drawn(self, length: int, angle: float, *, hue: int = 0, brightness: float = 1.0) -> CutOut:
        """Return the part at another size.

        Args:
            length: of its longer side, in pixels.
            angle: turned by so many degrees.
            hue: turned by so many of 256 steps of the colour circle.
            brightness: factor of all values.
        """
        picture = Image.fromarray(np.dstack([self.pixels, self.alpha]))
        scale = length / max(picture.size)
        size = tuple(max(1, round(side * scale)) for side in picture.size)
        picture = picture.resize(size, Image.Resampling.LANCZOS)  # type: ignore[arg-type]
        turned = np.asarray(picture.rotate(angle, Image.Resampling.BICUBIC, expand=True))
        colours = turned[:, :, :3]
        if hue:
            values = np.array(Image.fromarray(colours).convert("HSV"))
            values[:, :, 0] = (values[:, :, 0].astype(int) + hue) % 256
            colours = np.asarray(Image.fromarray(values, "HSV").convert("RGB"))
        bright = np.clip(colours * brightness, 0, 255).astype(np.uint8)
        return CutOut(bright, turned[:, :, 3])


def read_cutouts(data: Path) -> dict[str, list[CutOut]]:
    """Return the parts of each kind; raises `DataError` where a category is missing or nothing can be cut out."""
    found = {}
    for kind, folder in FOLDERS.items():
        files = sorted((data / folder / "train" / "good").glob("*.*"))[:MOST]
        cut = [part for path in files if (part := _cut(path, kind)) is not None]
        areas = [float((part.alpha > 127).sum()) for part in cut]
        # A part of which less than usual is found was not cut out whole.
        parts = [part for part, area in zip(cut, areas, strict=True) if area > 0.85 * float(np.median(areas))]
        if len(parts) < 10:
            raise DataError(f"{data / folder} gives {len(parts)} cut-out parts, 10 are needed; see benchmarks/logical")
        found[kind] = parts
    return found


def _cut(path: Path, kind: str) -> CutOut | None:
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    pixels = np.asarray(image)
    mask = _mask(pixels, kind)
    if not 0.02 < mask.mean() < 0.6:
        return None
    angle = _axis(mask) if kind != "plate" else 0.0
    soft = Image.fromarray((mask * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.8))
    both = Image.fromarray(np.dstack([pixels, np.asarray(soft)])).rotate(angle, Image.Resampling.BICUBIC, expand=True)
    turned = np.asarray(both)
    rows, columns = (np.flatnonzero((turned[:, :, 3] > 127).any(axis=axis)) for axis in (1, 0))
    inner = turned[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    upright = inner if kind == "plate" or _head_above(inner, kind) else inner[::-1, ::-1]
    return CutOut(np.ascontiguousarray(upright[:, :, :3]), np.ascontiguousarray(upright[:, :, 3]))


def _mask(pixels: NDArray[np.uint8], kind: str) -> NDArray[np.bool_]:
    """Return where the part is: darker than its background, or of a strong colour."""
    values = pixels.astype(int)
    saturation = values.max(axis=2) - values.min(axis=2)
    strength = (255 - values.mean(axis=2)).astype(np.uint8) if kind == "screw" else saturation.astype(np.uint8)
    mask = strength > otsu(np.bincount(strength.ravel(), minlength=256))[0]
    return _largest(np.asarray(Image.fromarray(mask).convert("L").filter(ImageFilter.MedianFilter(5))) > 127)


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    from scipy import ndimage

    labels, count = ndimage.label(mask)
    if not count:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray(ndimage.binary_fill_holes(labels == sizes.argmax()), bool)


def _axis(mask: NDArray[np.bool_]) -> float:
    """Return by how many degrees the part's long axis must be turned to stand upright."""
    y, x = np.nonzero(mask)
    covariance = np.cov(np.stack([x, -y]))
    values, vectors = np.linalg.eigh(covariance)
    across, up = vectors[:, values.argmax()]
    return 90.0 - float(np.degrees(np.arctan2(up, across)))


def _head_above(pixels: NDArray[np.uint8], kind: str) -> bool:
    """Return whether a screw's wide end, or a figure's red eyes, are in the upper half."""
    if kind == "figure":
        values = pixels.astype(int)
        red = (values[:, :, 0] > values[:, :, 1] + 60) & (values[:, :, 3] > 127)
        return bool(np.nonzero(red)[0].mean() < len(pixels) / 2) if red.any() else False
    widths = (pixels[:, :, 3] > 127).sum(axis=1)
    fifth = max(1, len(widths) // 5)
    return bool(widths[:fifth].mean() >= widths[-fifth:].mean())


def paste(scene: NDArray[np.uint8], part: CutOut, x: int, y: int) -> NDArray[np.bool_]:
    """Draw a part with its middle at ``(x, y)`` into a scene ``(H, W, 3)``; returns where it lies, ``(H, W)`` bool."""
    rows, columns = part.alpha.shape
    top, left = y - rows // 2, x - columns // 2
    inside = (slice(max(0, top), top + rows), slice(max(0, left), left + columns))
    of_part = (slice(max(0, -top), max(0, -top) + scene[inside].shape[0]), slice(max(0, -left), None))
    pixels, alpha = part.pixels[of_part][:, : scene[inside].shape[1]], part.alpha[of_part][:, : scene[inside].shape[1]]
    share = alpha[:, :, None] / 255.0
    scene[inside] = (pixels * share + scene[inside] * (1.0 - share)).round().astype(np.uint8)
    covered = np.zeros(scene.shape[:2], bool)
    covered[inside] = alpha > 127
    return covered
