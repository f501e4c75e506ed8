"""What came of a lesson, and where its files lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgead.runtime.decision.threshold import Threshold
from edgead.teaching.gate import GateReport
from edgead.teaching.lessons import Lessons, part_name


@dataclass(frozen=True, slots=True)
class TeachReport:
    """What came of it.

    Attributes:
        out: bundle, model directory and folder of training images, that were written where the gate passed.
        lessons: what the labels of the record gave.
        gate: what it found.
        before, after: thresholds.
        still_rejected: taught good parts that lie above the new threshold where they are scored without their own
            image; the other taught parts are in those models, and the threshold is made of such scores.
        scored: how many taught parts were scored so.
        seconds: in all.
    """

    out: Path
    old: Path
    lessons: Lessons
    gate: GateReport
    before: Threshold
    after: Threshold
    still_rejected: int
    scored: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form (schema ``edgead.teach/1``)."""
        written = {"bundle": str(self.out), "model": str(model_path(self.out)), "images": str(images_path(self.out))}
        return {
            "schema": "edgead.teach/1",
            "old": str(self.old),
            "written": written if self.gate.passed else None,
            "good": len(self.lessons.good),
            "defects": len(self.lessons.defective),
            "disputed": [part_name(row) for row in self.lessons.disputed],
            "without_image": [part_name(row) for row in self.lessons.without_image],
            "of_other_models": [part_name(row) for row in self.lessons.foreign],
            "threshold": {"old": self.before.to_dict(), "new": self.after.to_dict()},
            "taught_good_parts": {"scored_without_them": self.scored, "still_rejected": self.still_rejected},
            "gate": self.gate.to_dict(),
            "seconds": round(self.seconds, 3),
        }


def model_path(out: Path) -> Path:
    """Return where the model directory of a taught bundle lies."""
    return out.with_suffix(".model")


def images_path(out: Path) -> Path:
    """Return where the training images of a taught bundle lie; the folder in it is the category."""
    return out.with_suffix(".images")
