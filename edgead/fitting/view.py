"""What of an image a model sees, by what was asked for: its region, and how the part in it is aligned."""

from __future__ import annotations

from pathlib import Path

from edgead.data import Category
from edgead.fitting.aligning import learn_alignment
from edgead.fitting.config import FitConfig
from edgead.runtime.errors import DataError
from edgead.runtime.imaging.decode import read_image
from edgead.runtime.imaging.roi import Box, Region, decode_mask, make_region
from edgead.runtime.imaging.view import View


def make_view(category: Category, config: FitConfig) -> tuple[View, dict[str, str]]:
    """Return what the network sees of an image, and the images on which the part to align is not found."""
    region, size = _region(category, config.roi, config.mask), config.network_size()
    align, lost = None, dict[str, str]()
    if config.align:
        align, lost = learn_alignment(category, region, size)
    return View(*size, region, align=align), lost


def _region(category: Category, roi: Box | None, mask: str | Path | None) -> Region | None:
    if roi is None and mask is None:
        return None
    mask = None if mask is None else Path(mask).expanduser()
    first = category.train[0]
    rows, columns = read_image(first.path, first.bits).shape[:2]
    size = columns, rows
    try:
        drawn = None if mask is None else decode_mask(mask.read_bytes(), str(mask), size)
    except OSError as error:
        raise DataError(f"cannot read the mask {mask}: {error.strerror or error}") from error
    return make_region(size, roi, drawn)
