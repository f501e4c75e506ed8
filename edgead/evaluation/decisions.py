"""What was decided on each test image, and how often that was wrong: in all, and by kind of defect."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgead.metrics.metrics import image_auroc
from edgead.metrics.shares import Share
from edgead.runtime.frame import Decision


@dataclass(frozen=True, slots=True)
class ImageScore:
    """What was said of one test image; ``path`` is relative to the category, ``score`` is NaN where there is none."""

    path: str
    label: str | None
    anomalous: bool
    score: float
    threshold: float
    decision: Decision
    reason: str | None = None
    category: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "path": self.path,
            "label": self.label,
            "anomalous": self.anomalous,
            "score": self.score if math.isfinite(self.score) else None,
            "threshold": self.threshold,
            "decision": self.decision.value,
            "reason": self.reason,
            "category": self.category,
        }


@dataclass(frozen=True, slots=True)
class Decisions:
    """How often the threshold was right: ``false_alarms`` of ``normal`` and ``escapes`` of ``anomalous`` images.

    Both totals count inspected images only. The ``not_inspected`` ones never pass the line, whatever they are.
    """

    false_alarms: int
    normal: int
    escapes: int
    anomalous: int
    not_inspected: int

    @property
    def escape_share(self) -> Share:
        """Defective parts that pass."""
        return Share(self.escapes, self.anomalous)

    @property
    def false_alarm_share(self) -> Share:
        """Good parts that are rejected."""
        return Share(self.false_alarms, self.normal)

    def to_dict(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Defect:
    """One kind of defect: how many images, escapes, not inspected, and its image AUROC against all good ones."""

    label: str
    images: int
    escapes: int
    not_inspected: int
    image_auroc: float | None

    @property
    def escape_share(self) -> Share:
        """Of the inspected ones."""
        return Share(self.escapes, self.images - self.not_inspected)

    def to_dict(self) -> dict[str, Any]:
        return {
            **{name: getattr(self, name) for name in self.__slots__},
            "escape_rate": self.escape_share.to_dict(),
        }


def count_decisions(images: Sequence[ImageScore]) -> Decisions:
    """Return how often the decisions were wrong."""
    judged = [image for image in images if image.decision is not Decision.NOT_INSPECTED]
    normal = [image for image in judged if not image.anomalous]
    anomalous = [image for image in judged if image.anomalous]
    return Decisions(
        false_alarms=sum(image.decision is Decision.ANOMALY for image in normal),
        normal=len(normal),
        escapes=sum(image.decision is Decision.OK for image in anomalous),
        anomalous=len(anomalous),
        not_inspected=len(images) - len(judged),
    )


def by_defect(images: Sequence[ImageScore]) -> tuple[Defect, ...]:
    """Return each kind of defect, by name."""
    good = [image.score for image in images if not image.anomalous and math.isfinite(image.score)]
    result = []
    for label in sorted({image.label or "defect" for image in images if image.anomalous}):
        members = [image for image in images if image.anomalous and (image.label or "defect") == label]
        scores = [image.score for image in members if math.isfinite(image.score)]
        auroc = None
        if good and scores:
            labels = [False] * len(good) + [True] * len(scores)
            auroc = image_auroc([*good, *scores], labels, bootstrap=0).value
        escapes = sum(image.decision is Decision.OK for image in members)
        left_out = sum(image.decision is Decision.NOT_INSPECTED for image in members)
        result.append(Defect(label, len(members), escapes, left_out, auroc))
    return tuple(result)
