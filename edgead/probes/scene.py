"""What an image shows, found without any model: the part before its background, or a texture that fills the frame."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgead.runtime.imaging.otsu import otsu
from edgead.runtime.imaging.preprocess import resize

WORKING_SIDE = 256  # pixels of the longer side; what is found there is found in a 20-megapixel image, too

_Mask = NDArray[np.bool_]
_Image = NDArray[np.uint8]

_AREA = (0.005, 0.8)  # of the image, for a foreground
_BORDER_SHARE = 0.35  # a part may be cut by the frame, a foreground that covers more of it is the surroundings
_CONTRAST = 15.0  # levels between part and background, at least
_SHADOW = 1.35  # times Otsu's threshold; between a soft shadow and most parts
_UNREST = 0.15  # share of that contrast by which the background may depart from a smooth surface


@dataclass(frozen=True, slots=True)
class Window:
    """A rectangle of pixels: rows ``top`` to ``bottom`` and columns ``left`` to ``right``, ends excluded."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.bottom - self.top, self.right - self.left

    @property
    def slices(self) -> tuple[slice, slice]:
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def grid(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return open grids of the row and column numbers."""
        rows = np.arange(self.top, self.bottom, dtype=np.float64)
        return rows[:, None], np.arange(self.left, self.right, dtype=np.float64)[None, :]


@dataclass(frozen=True, slots=True)
class Scene:
    """An image at working size, and what of it is the part.

    Attributes:
        small: ``(h, w, 3)`` uint8, the image with its longer side at most `WORKING_SIDE`.
        foreground: ``(h, w)`` bool, the part without its holes; all True for a texture.
        is_texture: no background was found, or nothing before it.
        height, width: of the image itself.
    """

    small: _Image
    foreground: _Mask
    is_texture: bool
    height: int
    width: int

    @property
    def scale(self) -> float:
        """Pixels of the image in one pixel at working size, a side."""
        return float(max(self.height / self.small.shape[0], self.width / self.small.shape[1]))

    @property
    def extent(self) -> float:
        """Root of the foreground's area in pixels of the image, at most its shorter side: how large things are."""
        share = float(self.foreground.mean())
        return float(min(np.sqrt(share * self.height * self.width), self.height, self.width))

    def full(self, row: float, column: float) -> tuple[float, float]:
        """Return the place in the image of a place at working size, pixel centres being whole numbers."""
        height, width = self.small.shape[:2]
        return (row + 0.5) * self.height / height - 0.5, (column + 0.5) * self.width / width - 0.5

    def window(self, center: tuple[float, float], reach: float) -> Window:
        """Return the pixels of the image within ``reach`` of a place, clipped to the image."""
        top, left = (int(np.floor(value - reach)) for value in center)
        bottom, right = (int(np.ceil(value + reach)) + 1 for value in center)
        return Window(max(0, top), max(0, left), min(self.height, bottom), min(self.width, right))

    def sample(self, values: NDArray[np.float64], window: Window) -> NDArray[np.float64]:
        """Return a map ``(h, w)`` or ``(h, w, C)`` at working size as seen in a window, bilinear."""
        height, width = self.small.shape[:2]
        rows, columns = window.grid()
        above, below, down = _neighbours((rows[:, 0] + 0.5) * height / self.height - 0.5, height)
        before, behind, right = _neighbours((columns[0] + 0.5) * width / self.width - 0.5, width)
        extra = (1,) * (values.ndim - 2)
        down, right = down.reshape(-1, 1, *extra), right.reshape(1, -1, *extra)
        lines = values[above] * (1 - down) + values[below] * down
        return np.asarray(lines[:, before] * (1 - right) + lines[:, behind] * right)


def _neighbours(
    places: NDArray[np.float64], count: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
    places = np.clip(places, 0, count - 1)
    first = np.floor(places).astype(np.intp)
    return first, np.minimum(first + 1, count - 1), places - first


def read_scene(image: _Image) -> Scene:
    """Return the scene of an ``(H, W, 3)`` uint8 image.

    The background is a smooth surface through the frame of the image, each colour a quadratic; what differs from it
    by more than Otsu's threshold is the foreground, if it is one: of a part's size, not along most of the frame, and
    well above the unrest of the background.
    """
    height, width = image.shape[:2]
    step = max(1, max(height, width) // (2 * WORKING_SIDE))
    share = min(1.0, WORKING_SIDE / max(height, width))
    size = max(8, round(height * share)), max(8, round(width * share))
    small = np.ascontiguousarray(resize(np.ascontiguousarray(image[::step, ::step]), *size))
    found = _foreground(small)
    if found is None:
        return Scene(small, np.ones(size, bool), True, height, width)
    return Scene(small, found, False, height, width)


def large_components(mask: _Mask, smallest: float) -> list[_Mask]:
    """Return the 4-connected components of at least ``smallest`` pixels, largest first."""
    from scipy import ndimage

    labels, _ = ndimage.label(mask)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    order = np.argsort(-sizes, kind="stable")
    return [labels == label for label in order if sizes[label] >= max(smallest, 1)]


def disc(radius: int) -> _Mask:
    """Return a filled disc ``(2 radius + 1)`` pixels a side."""
    steps = np.arange(-radius, radius + 1)
    return np.asarray(steps[:, None] ** 2 + steps[None, :] ** 2 <= radius**2 + radius)


def _foreground(small: _Image) -> _Mask | None:
    from scipy import ndimage

    distance = _from_background(small)
    threshold, _ = otsu(np.bincount(distance.ravel(), minlength=256))
    # A cast shadow differs from the background, too, but less than the part does.
    found = ndimage.binary_opening(ndimage.binary_closing(distance > _SHADOW * threshold))
    parts = large_components(found, 0.003 * found.size)
    if not parts:
        return None
    found = np.logical_or.reduce(parts)
    openings = ndimage.binary_fill_holes(found) & ~found
    found |= openings
    for hole in large_components(openings, 0.015 * found.sum()):
        if np.median(distance[hole]) <= 0.35 * threshold:  # the background is seen through it: no gleam, no print
            found &= ~hole
    frame = np.concatenate((found[0], found[-1], found[:, 0], found[:, -1]))
    if not _AREA[0] <= found.mean() <= _AREA[1] or frame.mean() > _BORDER_SHARE:
        return None
    contrast = distance[found].mean() - distance[~found].mean()
    edge = np.concatenate((distance[0], distance[-1], distance[:, 0], distance[:, -1]))
    if contrast < _CONTRAST or max(distance[~found].mean(), 2 * float(np.median(edge))) > _UNREST * contrast:
        return None
    return np.asarray(found)


def _from_background(small: _Image) -> NDArray[np.intp]:
    """Return how many levels (0 to 255) each pixel differs from the surface through the frame."""
    height, width = small.shape[:2]
    rows, columns = np.mgrid[-1.0 : 1.0 : height * 1j, -1.0 : 1.0 : width * 1j]
    terms = np.stack([np.ones_like(rows), rows, columns, rows * columns, rows**2, columns**2], axis=-1)
    band = max(2, round(0.02 * max(height, width)))
    frame = np.ones((height, width), bool)
    frame[band:-band, band:-band] = False
    colours, basis = small[frame].astype(np.float64), terms[frame]
    kept = np.ones(len(colours), bool)
    surface = np.zeros((6, 3))
    for _ in range(4):  # what crosses the frame, such as a hook, is omitted after the first round
        rows_kept = basis[kept]
        normal = rows_kept.T @ rows_kept + 1e-6 * np.eye(6)  # six terms on [-1, 1]: well conditioned, and fast
        surface = np.linalg.solve(normal, rows_kept.T @ colours[kept])
        error = np.abs(colours - basis @ surface).max(axis=1)
        kept = error <= max(4.0, 2.5 * float(np.median(error)))
    difference = np.sqrt(((small - terms @ surface) ** 2).mean(axis=2))
    return np.asarray(np.clip(np.rint(difference), 0, 255).astype(np.intp))
