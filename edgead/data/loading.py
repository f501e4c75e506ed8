"""Reads the images and masks of samples, a few at a time; what in a mask counts as defect."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgead.data.category import Sample
from edgead.runtime.errors import DataError
from edgead.runtime.imaging.decode import read_image
from edgead.runtime.imaging.roi import Region
from edgead.runtime.imaging.view import View

_Item = TypeVar("_Item")
_Value = TypeVar("_Value")

_LOSSY = frozenset({".jpg", ".jpeg", ".webp"})
_LABELS = 32  # kinds of defect that a mask may number


def prefetch(
    function: Callable[[_Item], _Value], items: Iterable[_Item], *, workers: int = 2
) -> Generator[_Value, None, None]:
    """Yield ``function(item)`` in order while a few threads work ahead.

    At most ``workers + 1`` results exist that were not asked for. An exception comes out at its own place. Wrap in
    ``contextlib.closing`` where the loop may end early, so that the threads end with it.

    Args:
        workers: threads; 0 computes in the caller's thread, when asked.
    """
    if workers < 1:
        yield from map(function, items)
        return
    pending: deque[Future[_Value]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="edgead-load") as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def load_images(
    samples: Iterable[Sample], height: int, width: int, *, region: Region | None = None, workers: int = 2
) -> Generator[NDArray[np.uint8], None, None]:
    """Yield every image, or a region of it, at network size; see `load_views`."""
    return load_views(samples, View(height, width, region), workers=workers)


def load_views(samples: Iterable[Sample], view: View, *, workers: int = 2) -> Generator[NDArray[np.uint8], None, None]:
    """Yield what a network sees of every image: decoded, cut, aligned and resized by the code of the camera loop.

    Args:
        samples: any order; it is kept.
        view: what is seen.
        workers: threads that read ahead; memory holds about that many full-size images.

    Yields:
        ``(height, width, 3)`` uint8 RGB, with tiles ``(tiles.count * height, width, 3)``; may be read-only.

    Raises:
        DataError: an image that cannot be read, is of another size than the view's frames, or does not show the part
            that is to be aligned, naming its path.
    """

    def load(sample: Sample) -> NDArray[np.uint8]:
        image = read_image(sample.path, sample.bits)
        try:
            return view.prepare(image)
        except DataError as error:
            raise DataError(f"{sample.path}: {error}") from error

    yield from prefetch(load, samples, workers=workers)


def load_mask(
    sample: Sample, image_size: tuple[int, int], height: int, width: int, region: Region | None = None
) -> NDArray[np.bool_]:
    """Return the mask of a sample at network size, its mask files united; all False without any.

    A pixel is anomalous where any colour channel is not 0 (above 127 in JPEG and WebP, whose compression leaves dirt
    around the mask); alpha is ignored. Nearest resize, centres aligned: output i reads source floor((i + 0.5) * source
    / target), in integers. A defect smaller than that grid may vanish; ask ``mask.any()``.

    Args:
        sample: whose masks to read.
        image_size: ``(H, W)`` of the image as decoded; masks must have it.
        height, width: network size in pixels.
        region: the part of the image that is wanted; nothing that it ignores is anomalous. None: all of it.

    Returns:
        ``(height, width)`` bool, True where anomalous.

    Raises:
        DataError: a mask that cannot be read or is of another size than its image.
    """
    united = np.zeros((height, width), bool)
    left, top, over_x, over_y = (0, 0, image_size[1], image_size[0]) if region is None else region.box
    rows = top + (2 * np.arange(height) + 1) * over_y // (2 * height)
    columns = left + (2 * np.arange(width) + 1) * over_x // (2 * width)
    for path in sample.masks:
        mask = _read_mask(path)
        if mask.shape[:2] != tuple(image_size):
            raise DataError(
                f"mask {path} is {mask.shape[1]}x{mask.shape[0]} pixels, its image {sample.path} "
                f"{image_size[1]}x{image_size[0]}; a mask must have the size of its image"
            )
        picked = mask[rows[:, None], columns] > (127 if path.suffix.lower() in _LOSSY else 0)
        united |= picked.any(axis=2) if picked.ndim == 3 else picked
    if region is not None and region.ignore is not None:
        united &= ~region.ignore[rows[:, None] - top, columns - left]
    return united


def unclear_masks(samples: Iterable[Sample]) -> list[Path]:
    """Return the mask files with more than two levels, all of which but 0 count as defect.

    Soft edges, and what an editor leaves around a drawing, make defects larger than they are. JPEG and WebP, which are
    compared with 127, are left out, and so are masks of a few labels (levels up to `_LABELS`).

    Raises:
        DataError: a mask that cannot be read.
    """
    found = []
    for path in (path for sample in samples for path in sample.masks if path.suffix.lower() not in _LOSSY):
        mask = _read_mask(path)
        brightest = mask if mask.ndim == 2 else mask.max(axis=2)
        levels = np.unique(brightest)
        if len(levels) > 2 and levels[-1] > _LABELS:
            found.append(path)
    return found


def _read_mask(path: Path) -> NDArray[np.integer[Any]]:
    # Not read_image: 16-bit masks often hold small label numbers, which a shift to 8 bits would erase.
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as opened:
            opened.load()
            image = ImageOps.exif_transpose(opened) or opened
            if image.mode in ("P", "PA"):
                image = image.convert("RGBA")  # by colour, not by index: index 0 need not be black
            if image.mode in ("RGBA", "CMYK"):
                image = image.convert("RGB")
            elif image.mode == "LA":
                image = image.convert("L")
            return np.asarray(image)
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, ... for damaged files
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"cannot read mask {path} ({reason}); replace it") from error
