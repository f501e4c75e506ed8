"""What of an image a model sees, by what was asked for: its region, and how the part in it is aligned."""

from __future__ import annotations

from edgead.data import Category
from edgead.fitting.aligning import learn_alignment
from edgead.fitting.config import FitConfig
from edgead.fitting.preparing import region_of
from edgead.runtime.imaging.view import View


def make_view(category: Category, config: FitConfig) -> tuple[View, dict[str, str]]:
    """Return what the network sees of an image, and the images on which the part to align is not found."""
    region, size = region_of(category, config.roi, config.mask), config.network_size()
    align, lost = None, dict[str, str]()
    if config.align:
        align, lost = learn_alignment(category, region, size)
    return View(*size, region, align=align), lost
