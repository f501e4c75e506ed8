"""Do the good test images look like the good images that the model knows? Light and focus, which no label knows.

Both are normal parts, so nothing should tell them apart. Where the good test images are darker, a detector that notices
it rejects them for the light, and one that is drawn to bright places tells them from defects too well: either way
the figures are of the camera, not of the detector.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from edgead.runtime.decision.baseline import Normals
from edgead.runtime.decision.drift import LEAST_NORMALS, band

LEAST_IMAGES = 5
_SIDES = {"brightness": ("darker", "brighter"), "focus": ("less sharp", "sharper")}


@dataclass(frozen=True, slots=True)
class Shift:
    """A signal of the pictures in which good test images differ from the good images that the model knows.

    Attributes:
        signal: ``brightness`` or ``focus``, see `edgead.runtime.decision.baseline.Normals`.
        median: of the good test images.
        low, high: where it should lie, the middle 90 % of the good images that the model knows and a little beyond.
        images: good test images.
        category: what they were taken for by a model of several; None for a model of one.
    """

    signal: str
    median: float
    low: float
    high: float
    images: int
    category: str | None = None

    def explain(self) -> str:
        """Return one sentence for a person."""
        side = _SIDES[self.signal][self.median > self.high]
        taken = "" if self.category is None else f" taken for {self.category}"
        return (
            f"the good test images{taken} are {side} than the good images that the model knows (median {self.signal} "
            f"of {self.images}: {self.median:.4g}, expected {self.low:.4g} to {self.high:.4g}), so the figures are of "
            "the camera, too; take test images as the camera on the line does"
        )

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "text": self.explain()}


def find_shifts(
    normals: Mapping[str | None, Normals], pictures: Iterable[tuple[str | None, Mapping[str, float]]]
) -> tuple[Shift, ...]:
    """Return the signals in which pictures of good parts differ from a model's normals, one of each category.

    Focus grows with contrast, and so with light: where the brightness differs, nothing is said of it.

    Args:
        normals: of each category, as a model has them; signals of fewer than `LEAST_NORMALS` images say nothing.
        pictures: category and `picture_signals` of each; fewer than `LEAST_IMAGES` of a category say nothing.
    """
    values: dict[str | None, list[Mapping[str, float]]] = {}
    for category, signals in pictures:
        values.setdefault(category, []).append(signals)
    found = []
    for category, own in values.items():
        known = normals.get(category)
        if known is None or len(own) < LEAST_IMAGES:
            continue
        for signal in _SIDES:
            if known.count(signal) < LEAST_NORMALS:
                continue
            median = float(np.median([one[signal] for one in own]))
            low, high = band(known, signal)
            if not low <= median <= high:
                found.append(Shift(signal, median, low, high, len(own), category))
                break
    return tuple(found)
