"""From raw scores to decisions: the thresholds of a model, one or one for each category it routes to."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from edgead.runtime.decision.conformal import p_value
from edgead.runtime.errors import ConfigError, suggest
from edgead.runtime.frame import Decision, Inference

# A changed decision of a reduced precision counts as borderline only this close to the threshold, as a share of its
# distance to the median normal score (design section 5).
BORDERLINE_SHARE = 0.02


class Verdict(NamedTuple):
    """The judgement of one image: raw score, the threshold it was compared with, and what follows.

    ``p_value`` says how unusual the score would be for a good part, see `Result`.
    """

    score: float
    threshold: float
    decision: Decision
    category: str | None
    reason: str | None
    p_value: float | None = None

    def same(self, other: Verdict) -> bool:
        """Whether another verdict says the same of the part: its decision and, where routed, its category."""
        return self.decision is other.decision and self.category == other.category

    def borderline(self, other: Verdict, within: float) -> bool:
        """Whether a decision that changed is one of the threshold only, with a score within so much of it on a side."""
        judged = Decision.NOT_INSPECTED not in (self.decision, other.decision)
        same = judged and self.category == other.category
        return same and any(abs(one.score - one.threshold) <= within for one in (self, other))


def score_margin(verdicts: Sequence[Verdict], threshold: float) -> float:
    """Return how far the threshold lies from the median score of the parts of one category that are `OK`.

    It is the scale of score differences. Without a part that is `OK`, the distance of the median defect is the best
    scale there is.
    """
    scores = [one.score for one in verdicts if one.decision is Decision.OK] or [one.score for one in verdicts]
    return abs(threshold - statistics.median(scores))


# How a reason begins, so that an evaluation can tell a part that nobody knows from a failure.
UNKNOWN_CATEGORY = "unknown category"


def decide(score: float, threshold: float) -> tuple[Decision, str | None]:
    """Return the decision for a raw score and, where the score is not finite, why it was not inspected."""
    if not math.isfinite(score):
        return Decision.NOT_INSPECTED, "non-finite score"
    return (Decision.ANOMALY if score > threshold else Decision.OK), None


@dataclass(frozen=True, slots=True)
class Limits:
    """Thresholds in raw score units; `ANOMALY` iff score > threshold.

    Attributes:
        value: of a model that routes nothing, and for frames that no category is known of.
        categories: threshold of each category of a routed model.
        normal_scores: ascending scores of normals that the model has not seen, by category (None: there is only one);
            those of them that are known.
    """

    value: float
    categories: Mapping[str, float] = field(default_factory=dict)
    normal_scores: Mapping[str | None, Sequence[float]] = field(default_factory=dict, compare=False, repr=False)

    def judge(self, inference: Inference, index: int) -> Verdict:
        """Judge one image of a batch.

        A part of an unknown category is `NOT_INSPECTED`; its score is kept, since an evaluation can use it.
        """
        score = float(inference.score[index])
        category = None if inference.category is None else inference.category[index]
        reason = None if inference.reason is None else inference.reason[index]
        threshold = self.value if category is None else self.categories.get(category, self.value)
        if reason is not None:
            return Verdict(score, threshold, Decision.NOT_INSPECTED, category, reason)
        decision, reason = decide(score, threshold)
        normals = self.normal_scores.get(category)
        unusual = None if normals is None or reason is not None else p_value(score, normals)
        return Verdict(score, threshold, decision, category, reason, unusual)

    def changed(self, value: float, category: str | None, name: str) -> tuple[float, Limits]:
        """Return the threshold that another one replaces, and the limits with it.

        Args:
            value: raw score; category: of a routed model, which has one for each; name: of the model, for messages.

        Raises:
            ConfigError: no such category, or none where there is one for each.
        """
        if category is None and self.categories:
            raise ConfigError(f"a routed model has a threshold for each category: {', '.join(self.categories)}")
        if category is None:
            return self.value, replace(self, value=value)
        if category not in self.categories:
            raise ConfigError(f"{name} has no category '{category}'.{suggest(category, self.categories)}")
        return self.categories[category], replace(self, categories={**self.categories, category: value})
