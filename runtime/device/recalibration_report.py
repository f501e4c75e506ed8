"""What ``edgead calibrate`` reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgead.runtime.decision.threshold import Threshold


@dataclass(frozen=True, slots=True)
class CalibrationReport:
    """What a calibration changed.

    Attributes:
        source: without secrets.
        images: good parts that were scored; ``unreadable`` frames of a camera were omitted.
        unknown: frames omitted because a routed model knew no category for them.
        stray: images left out of the thresholds: name -> why.
        old, new: threshold by precision, of a routed model by ``precision/category``; a category that the source
            showed less than twice keeps its threshold and is in neither.
        rejected_before: how many of the images the old threshold called anomalous, by the same keys.
        warnings: one line each on why the new thresholds deserve a second look.
    """

    bundle: str
    out: str
    source: str
    backend: dict[str, Any]
    images: int
    unreadable: int
    unknown: int
    stray: Mapping[str, str]
    old: Mapping[str, Threshold]
    new: Mapping[str, Threshold]
    rejected_before: Mapping[str, int]
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form (schema ``edgead.calibrate/1``)."""
        return {
            "schema": "edgead.calibrate/1",
            "bundle": self.bundle,
            "out": self.out,
            "source": self.source,
            "backend": self.backend,
            "images": self.images,
            "unreadable": self.unreadable,
            "unknown": self.unknown,
            "stray": dict(self.stray),
            "thresholds": {
                key: {
                    **threshold.to_dict(),
                    "meaning": threshold.explain(),
                    "old": self.old[key].to_dict(),
                    "rejected_before": self.rejected_before[key],
                }
                for key, threshold in self.new.items()
            },
            "warnings": list(self.warnings),
        }
