"""What of an image a model sees, by what was asked for: its region, and how the part in it is aligned."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress

from edgead.data import Category, Sample
from edgead.fitting.aligning import learn_alignment
from edgead.fitting.config import FitConfig
from edgead.fitting.preparing import region_of
from edgead.runtime.imaging.alignment import PartNotFound
from edgead.runtime.imaging.decode import read_image
from edgead.runtime.imaging.view import View

# The command line shows what this logger says as its own warnings.
_log = logging.getLogger("edgead.fit")


def make_view(category: Category, config: FitConfig) -> tuple[View, dict[str, str]]:
    """Return what the network sees of an image, and the images on which the part to align is not found."""
    region, size = region_of(category, config.roi, config.mask), config.network_size()
    align, lost = None, dict[str, str]()
    if config.align:
        align, lost = learn_alignment(category, region, size)
    return View(*size, region, align=align), lost


def show_part(samples: Sequence[Sample], view: View) -> list[Sample]:
    """Return those of the defects at hand on which the part to align is found, and warn of the others.

    They never pass, whatever the threshold, and say nothing of where it should lie.
    """
    if view.align is None:
        return list(samples)
    found = []
    for sample in samples:
        with suppress(PartNotFound):
            view.prepare(read_image(sample.path, sample.bits))
            found.append(sample)
    if len(found) < len(samples):
        lost = len(samples) - len(found)
        _log.warning("on %d of %d defects at hand the part to align is not found; they are omitted", lost, len(samples))
    return found
