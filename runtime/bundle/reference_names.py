"""What an image that a model carries shows: its file name says so, and only this file makes and reads such names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

_NORMAL, _PLANTED, _SUFFIX = "good-", "probe-", ".png"


@dataclass(frozen=True, slots=True)
class ReferenceName:
    """A reference's or calibration image's file name, taken apart.

    Attributes:
        name: as it stands in the bundle or the model directory.
        kind: ``normal``; ``planted``, a normal image on which `edgead fit` planted a defect; ``other``, an image that
            the user gave, of which nothing is known.
        defect: of a planted one, the kind of defect.
        source: of a planted one, the name of the normal image that it was planted on.
    """

    name: str
    kind: Literal["normal", "planted", "other"]
    defect: str | None = None
    source: str | None = None

    @classmethod
    def normal(cls, label: str) -> ReferenceName:
        """Return the name of the normal image ``label``, such as ``3`` or ``plate-3``."""
        return cls(f"{_NORMAL}{label}{_SUFFIX}", "normal")

    @classmethod
    def planted(cls, label: str, defect: str) -> ReferenceName:
        """Return the name of the normal image ``label`` with a planted defect of that kind."""
        return cls(f"{_PLANTED}{label}-{defect}{_SUFFIX}", "planted", defect, f"{_NORMAL}{label}{_SUFFIX}")

    @classmethod
    def parse(cls, name: str) -> ReferenceName:
        """Return what a name says; any name can be read.

        Example:
            >>> ReferenceName.parse("probe-3-scratch.png").source
            'good-3.png'
        """
        stem = name.removesuffix(_SUFFIX)
        if stem.startswith(_NORMAL):
            return cls(name, "normal")
        if stem.startswith(_PLANTED):
            label, dash, defect = stem.removeprefix(_PLANTED).rpartition("-")
            return cls.planted(label, defect) if dash and stem != name else cls(name, "planted")
        return cls(name, "other")
