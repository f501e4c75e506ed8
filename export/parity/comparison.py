"""Does an exported graph decide like the model it came from? Measured on real images, file to decision."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgead.runtime.bundle.manifest_schema import ParityRecord
from edgead.runtime.decision.verdict import BORDERLINE_SHARE, Verdict

_RESAMPLES = 500


@dataclass(slots=True)
class Comparison:
    """Verdicts of one candidate beside those of the reference, image by image; each side has its own thresholds.

    Attributes:
        scale: threshold minus median normal score, in raw score units; caps epsilon.
    """

    scale: float
    names: list[str] = field(default_factory=list)
    reference: list[Verdict] = field(default_factory=list)
    candidate: list[Verdict] = field(default_factory=list)
    map_difference: list[float] = field(default_factory=list)

    def add(
        self,
        name: str,
        reference: tuple[Verdict, NDArray[np.float32]],
        candidate: tuple[Verdict, NDArray[np.float32]],
    ) -> None:
        """Add one image: its name, and ``(verdict, map (gh, gw))`` of both sides."""
        self.names.append(name)
        self.reference.append(reference[0])
        self.candidate.append(candidate[0])
        self.map_difference.append(float(np.abs(candidate[1].astype(np.float64) - reference[1]).max()))

    @property
    def finite(self) -> bool:
        """False where the candidate gave NaN or Inf on any image."""
        return bool(np.isfinite(self._scores(self.candidate)).all() and np.isfinite(self.map_difference).all())

    @property
    def changed(self) -> list[int]:
        """Indices of the images whose decision or category changed."""
        pairs = zip(self.reference, self.candidate, strict=True)
        return [index for index, (reference, candidate) in enumerate(pairs) if not reference.same(candidate)]

    @property
    def drop(self) -> float:
        """The 99th percentile of the score differences over the scale; infinite where a score is not finite."""
        difference = np.abs(self._scores(self.candidate) - self._scores(self.reference))
        if not np.isfinite(difference).all():
            return math.inf
        return float(np.quantile(difference, 0.99)) / max(self.scale, 1e-12)

    @property
    def defects(self) -> NDArray[np.bool_] | None:
        """Which images show a defect, as the folders of MVTec's layout tell; None where they do not tell good from bad.

        Labels are for the report. Nothing is chosen by them.
        """
        folders = [name.split("/")[-2] if "/" in name else "" for name in self.names]
        found = np.array([folder != "good" for folder in folders])
        return found if all(folders) and found.any() and not found.all() else None

    def record(
        self, *, drift_allowed: bool = False, note: str | None = None, half_margin: float | None = None
    ) -> ParityRecord:
        """Summarise; scores that are not finite and changed categories count as flips."""
        expected, got = self._scores(self.reference), self._scores(self.candidate)
        difference = np.abs(got - expected)
        difference = np.where(np.isfinite(difference), difference, np.finfo(np.float32).max)
        p99 = float(np.quantile(difference, 0.99))
        epsilon = min(p99, BORDERLINE_SHARE * self.scale)
        changed = self.changed
        borderline = sum(self.reference[index].borderline(self.candidate[index], epsilon) for index in changed)
        worst = int(np.argmax(difference))
        grid = np.array(self.map_difference)
        defects = self.defects
        labelled = {} if defects is None or not self.finite else _auroc_change(expected, got, defects)
        return ParityRecord(
            max_score_difference=float(difference[worst]),
            p99_score_difference=p99,
            max_map_difference=float(np.where(np.isfinite(grid), grid, np.finfo(np.float32).max).max()),
            flips=len(changed) - borderline,
            borderline=borderline,
            images=len(self.names),
            epsilon=epsilon,
            rank_correlation=_rank_correlation(expected, got),
            worst_image=self.names[worst][-200:],
            drop=self.drop if math.isfinite(self.drop) else None,
            half_margin=half_margin if half_margin is None or math.isfinite(half_margin) else None,
            drift_allowed=drift_allowed,
            note=note,
            **labelled,
        )

    @staticmethod
    def _scores(verdicts: Sequence[Verdict]) -> NDArray[np.float64]:
        return np.array([verdict.score for verdict in verdicts], np.float64)


def _auroc_change(
    reference: NDArray[np.float64], candidate: NDArray[np.float64], defects: NDArray[np.bool_]
) -> dict[str, Any]:
    """Return the candidate's image AUROC, its change, and the 95 % interval of that by a paired bootstrap."""
    change = auroc(candidate, defects) - auroc(reference, defects)
    generator = np.random.default_rng(0)
    good, bad = np.flatnonzero(~defects), np.flatnonzero(defects)
    changes = []
    for _ in range(_RESAMPLES):
        drawn = np.concatenate([generator.choice(good, len(good)), generator.choice(bad, len(bad))])
        changes.append(auroc(candidate[drawn], defects[drawn]) - auroc(reference[drawn], defects[drawn]))
    low, high = np.quantile(changes, (0.025, 0.975))
    return {
        "auroc": auroc(candidate, defects),
        "auroc_change": change,
        "auroc_change_low": float(low),
        "auroc_change_high": float(high),
    }


def auroc(scores: NDArray[np.float64], defects: NDArray[np.bool_]) -> float:
    """Return the share of pairs of a good and a bad image that are in order; equal scores count half."""
    ranks = _ranks(scores)
    bad = int(defects.sum())
    return float((ranks[defects].sum() - bad * (bad + 1) / 2) / (bad * (len(defects) - bad)))


def _rank_correlation(reference: NDArray[np.float64], candidate: NDArray[np.float64]) -> float | None:
    """Spearman's rank correlation; None where it is undefined."""
    if len(reference) < 3 or not np.isfinite(candidate).all():
        return None
    first, second = (_ranks(values) for values in (reference, candidate))
    if first.std() == 0 or second.std() == 0:
        return None
    value = float(np.corrcoef(first, second)[0, 1])
    return max(-1.0, min(1.0, value)) if math.isfinite(value) else None


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    upper = np.cumsum(counts)
    return np.asarray((upper - (counts - 1) / 2)[inverse.ravel()], np.float64)
