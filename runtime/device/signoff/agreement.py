"""Statistics of attribute agreement: kappa, exact limits of a share, and what parts without a miss support.

Terms and limits of acceptance follow AIAG, *Measurement Systems Analysis*, 4th edition (2010), chapter III C, study of
attribute measurement systems; kappa: Cohen (1960), Fleiss (1971). Exact limits: Clopper and Pearson (1934).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from edgead.runtime.decision.threshold import share_interval

Rating = Literal["acceptable", "marginal", "unacceptable"]


class Share(NamedTuple):
    """A share of which ``seen`` of ``n`` were seen, with its exact 95 % interval."""

    seen: int
    n: int
    low: float
    high: float

    @classmethod
    def of(cls, count: int, n: int) -> Share:
        """Return the share; of nothing it may be anything."""
        return cls(count, n, *(share_interval(count, n) if n else (0.0, 1.0)))

    @property
    def value(self) -> float | None:
        """The share that was seen, None of nothing."""
        return self.seen / self.n if self.n else None

    def explain(self) -> str:
        """Return it for people."""
        if not self.n:
            return "none seen"
        return f"{self.seen} of {self.n} ({self.seen / self.n:.1%}; 95 % interval {self.low:.1%} to {self.high:.1%})"

    def to_dict(self) -> dict[str, float | int | None]:
        return {"seen": self.seen, "n": self.n, "share": self.value, "low": self.low, "high": self.high}


def upper_limit(count: int, n: int, confidence: float = 0.95) -> float:
    """Return the exact one-sided upper limit of a share.

    Args:
        count: how many of ``n`` were seen, 0 to n.
        n: at least 1.
        confidence: in (0, 1).

    Example:
        >>> round(upper_limit(0, 59), 4)
        0.0495
    """
    if count == 0:
        return float(1.0 - (1.0 - confidence) ** (1.0 / n))
    return share_interval(count, n, 2.0 * confidence - 1.0)[1]


def parts_needed(rate: float, confidence: float = 0.95) -> int:
    """Return how many defective parts, none of which passes, support that fewer than ``rate`` of such defects pass.

    Example:
        >>> parts_needed(0.05), parts_needed(0.01)
        (59, 299)
    """
    return math.ceil(math.log(1.0 - confidence) / math.log(1.0 - rate) - 1e-12)


def cohen_kappa(first: Sequence[bool], second: Sequence[bool]) -> float | None:
    """Return the agreement of two raters beyond chance, at most 1.

    None where both say the same of every part: then there is nothing that chance could be told from.
    """
    a, b = np.asarray(first, bool), np.asarray(second, bool)
    if not len(a) or (a.all() and b.all()) or not (a.any() or b.any()):
        return None
    seen = float((a == b).mean())
    expected = float(a.mean() * b.mean() + (1 - a.mean()) * (1 - b.mean()))
    return (seen - expected) / (1.0 - expected)


def fleiss_kappa(rejections: Sequence[int], trials: int) -> float | None:
    """Return the agreement of several trials beyond chance, at most 1.

    Args:
        rejections: of each part, in how many of its trials it was rejected.
        trials: of each part, at least 2.

    Returns:
        None where all trials of all parts say the same.
    """
    rejected = np.asarray(rejections, float)
    share = float(rejected.mean() / trials) if len(rejected) else 0.0
    expected = share**2 + (1 - share) ** 2
    if not len(rejected) or trials < 2 or expected == 1.0:
        return None
    passed = trials - rejected
    agreed = (rejected * (rejected - 1) + passed * (passed - 1)) / (trials * (trials - 1))
    return (float(agreed.mean()) - expected) / (1.0 - expected)


def rating(effectiveness: float | None, miss_rate: float | None, false_alarm_rate: float | None) -> Rating | None:
    """Return how AIAG rates a study: acceptable from 90 % effectiveness, up to 2 % misses and 5 % false alarms;
    marginal from 80 %, up to 5 % and 10 %; None where a share is missing."""
    if effectiveness is None or miss_rate is None or false_alarm_rate is None:
        return None
    if effectiveness >= 0.90 and miss_rate <= 0.02 and false_alarm_rate <= 0.05:
        return "acceptable"
    if effectiveness >= 0.80 and miss_rate <= 0.05 and false_alarm_rate <= 0.10:
        return "marginal"
    return "unacceptable"
