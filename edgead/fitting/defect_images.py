"""The defects at hand: which images they are, on which of them the part is found, and each part once."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgead.data import Category, Sample
from edgead.data.survey import fine_detail, group_copies
from edgead.evaluation.operating_point import defects_at_hand
from edgead.runtime.errors import DataError
from edgead.runtime.files import file_sha256
from edgead.runtime.imaging.alignment import PartNotFound
from edgead.runtime.imaging.decode import read_image
from edgead.runtime.imaging.view import View

# The command line shows what this logger says as its own warnings.
_log = logging.getLogger("edgead.fit")


def usable_defects(category: Category, folder: str | Path | None, view: View) -> list[Sample]:
    """Return the defects beside the training images and in a folder, to be read as the normals are.

    Those on which the part to align is not found are omitted, for they never pass; of copies one is kept, for a model
    must not be judged by what it has seen. Both are said.

    Raises:
        DataError: an image that cannot be read, is of another size than the model takes, or lies among the normals.
    """
    normals = category.train
    bits = normals[0].bits
    listed = [replace(one, bits=bits) for one in defects_at_hand(category, folder)]
    _refuse_normals(listed, normals)
    found, details = [], []
    for sample in listed:
        try:
            picture = view.prepare(read_image(sample.path, sample.bits))
        except PartNotFound:
            continue
        except DataError as error:
            named = str(error).startswith(str(sample.path))
            raise error if named else DataError(f"{sample.path}: {error}") from error
        found.append(sample)
        details.append(fine_detail(picture))
    if len(found) < len(listed):
        lost = len(listed) - len(found)
        _log.warning("on %d of %d defects at hand the part to align is not found; they are omitted", lost, len(listed))
    return _once(found, group_copies(np.stack(details)).tolist()) if found else []


def _once(samples: Sequence[Sample], groups: Sequence[int]) -> list[Sample]:
    """Return the first sample of each group, and warn of the others."""
    first: dict[int, Sample] = {}
    copies = []
    for sample, group in zip(samples, groups, strict=True):
        if first.setdefault(group, sample) is not sample:
            copies.append(f"{sample.path.name} is a copy of {first[group].path.name}")
    if copies:
        _log.warning(
            "%d of %d defects at hand show the same as others and are omitted: %s%s",
            len(copies),
            len(samples),
            "; ".join(copies[:3]),
            " …" if len(copies) > 3 else "",
        )
    return list(first.values())


def _refuse_normals(defects: Sequence[Sample], normals: Sequence[Sample]) -> None:
    sizes = {sample.path.stat().st_size for sample in defects}
    known = {file_sha256(one.path): one.path for one in normals if one.path.stat().st_size in sizes}
    for sample in defects if known else ():
        same = known.get(file_sha256(sample.path))
        if same is not None:
            raise DataError(f"{sample.path} is also among the normal images ({same}); remove it from one of them")
