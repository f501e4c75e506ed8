"""Does an exported graph decide like the model it came from? Measured on real images, file to decision."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgead.runtime.frame import decide
from edgead.runtime.manifest import ParityRecord

# A changed decision counts as borderline only this close to the threshold, as a share of its distance to the
# median normal score (design section 5).
BORDERLINE_SHARE = 0.02


@dataclass(slots=True)
class Comparison:
    """Scores of one candidate beside those of the reference, image by image.

    Attributes:
        reference_threshold, candidate_threshold: each side is judged by its own.
        scale: threshold minus median normal score, in raw score units; caps epsilon.
    """

    reference_threshold: float
    candidate_threshold: float
    scale: float
    names: list[str] = field(default_factory=list)
    reference: list[float] = field(default_factory=list)
    candidate: list[float] = field(default_factory=list)
    map_difference: list[float] = field(default_factory=list)

    def add(
        self,
        name: str,
        reference: tuple[float, NDArray[np.float32]],
        candidate: tuple[float, NDArray[np.float32]],
    ) -> None:
        """Add one image: its name, and ``(score, map (gh, gw))`` of both sides."""
        self.names.append(name)
        self.reference.append(reference[0])
        self.candidate.append(candidate[0])
        self.map_difference.append(float(np.abs(candidate[1].astype(np.float64) - reference[1]).max()))

    @property
    def finite(self) -> bool:
        """False where the candidate gave NaN or Inf on any image."""
        return bool(np.isfinite(self.candidate).all() and np.isfinite(self.map_difference).all())

    @property
    def changed(self) -> list[str]:
        """Names of the images whose decision changed."""
        pairs = zip(self.names, self.reference, self.candidate, strict=True)
        return [name for name, r, c in pairs if self._differ(r, c)]

    def record(self, *, drift_allowed: bool = False, note: str | None = None) -> ParityRecord:
        """Summarise; scores that are not finite count as flips."""
        difference = np.abs(np.array(self.candidate) - np.array(self.reference))
        difference = np.where(np.isfinite(difference), difference, np.finfo(np.float32).max)
        p99 = float(np.quantile(difference, 0.99))
        epsilon = min(p99, BORDERLINE_SHARE * self.scale)
        flips = borderline = 0
        for reference, candidate in zip(self.reference, self.candidate, strict=True):
            if not self._differ(reference, candidate):
                continue
            near = (
                abs(reference - self.reference_threshold) <= epsilon
                or abs(candidate - self.candidate_threshold) <= epsilon
            )
            flips, borderline = (flips, borderline + 1) if near else (flips + 1, borderline)
        worst = int(np.argmax(difference))
        grid = np.array(self.map_difference)
        return ParityRecord(
            max_score_difference=float(difference[worst]),
            p99_score_difference=p99,
            max_map_difference=float(np.where(np.isfinite(grid), grid, np.finfo(np.float32).max).max()),
            flips=flips,
            borderline=borderline,
            images=len(self.names),
            epsilon=epsilon,
            rank_correlation=_rank_correlation(self.reference, self.candidate),
            worst_image=self.names[worst][-200:],
            drift_allowed=drift_allowed,
            note=note,
        )

    def _differ(self, reference: float, candidate: float) -> bool:
        return decide(reference, self.reference_threshold)[0] is not decide(candidate, self.candidate_threshold)[0]


def _rank_correlation(reference: Sequence[float], candidate: Sequence[float]) -> float | None:
    """Spearman's rank correlation; None where it is undefined."""
    if len(reference) < 3 or not np.isfinite(candidate).all():
        return None
    first, second = (_ranks(np.asarray(values)) for values in (reference, candidate))
    if first.std() == 0 or second.std() == 0:
        return None
    value = float(np.corrcoef(first, second)[0, 1])
    return max(-1.0, min(1.0, value)) if math.isfinite(value) else None


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    upper = np.cumsum(counts)
    return np.asarray((upper - (counts - 1) / 2)[inverse.ravel()], np.float64)
