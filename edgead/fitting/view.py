"""What of an image a model sees, by what was asked for: its region, and how the part in it is aligned."""

from __future__ import annotations

from edgead.data import Category
from edgead.fitting.aligning import learn_alignment
from edgead.fitting.audit import image_names
from edgead.fitting.config import FitConfig
from edgead.fitting.preparing import region_of
from edgead.runtime.imaging.alignment import PartNotFound
from edgead.runtime.imaging.decode import read_image
from edgead.runtime.imaging.view import View


def make_view(category: Category, config: FitConfig) -> tuple[View, dict[str, str]]:
    """Return what the network sees of an image, and the images on which the part to align is not found."""
    if config.view is not None:
        return config.view, _not_found(category, config.view)
    region, size = region_of(category, config.roi, config.mask), config.network_size()
    align, lost = None, dict[str, str]()
    if config.align:
        align, lost = learn_alignment(category, region, size)
    return View(*size, region, align=align), lost


def _not_found(category: Category, view: View) -> dict[str, str]:
    """Return the images that do not show the part to align, and why."""
    if view.align is None:
        return {}
    lost: dict[str, str] = {}
    for name, sample in zip(image_names([category]), category.train, strict=True):
        try:
            view.prepare(read_image(sample.path, sample.bits))
        except PartNotFound as error:
            lost[name] = str(error)
    return lost
