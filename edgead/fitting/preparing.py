"""What is settled of the given categories before anything is fitted: their names, and the part that is judged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgead.data import Category
from edgead.runtime.bundle.layout import check_member_name, fold_name
from edgead.runtime.errors import ConfigError, DataError
from edgead.runtime.imaging.decode import read_image
from edgead.runtime.imaging.roi import Box, Region, decode_mask, make_region

_LONGEST_NAME = 150  # leaves room for what a member's name has before and after it


def check_names(categories: Sequence[Category]) -> None:
    """Refuse before any work what a bundle could not hold: its members are named after the categories."""
    seen: dict[str, str] = {}
    for category in categories:
        name, folded = category.name, fold_name(category.name)
        try:
            check_member_name(name)
        except ValueError as error:
            raise ConfigError(f"a category cannot be called '{name}' ({error}); rename the folder") from error
        if len(name.encode()) > _LONGEST_NAME:
            raise ConfigError(f"a category's name has at most {_LONGEST_NAME} bytes, '{name}' has more; rename it")
        if folded in seen:
            alike = f"two categories are called '{name}'"
            if seen[folded] != name:
                alike = f"categories '{seen[folded]}' and '{name}' are one name on some systems"
            raise ConfigError(f"{alike}; rename a folder")
        seen[folded] = name


def region_of(category: Category, roi: Box | None, mask: str | Path | None) -> Region | None:
    """Return the part of the images that is judged, None for all of them; raises `DataError` for an unreadable mask."""
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
