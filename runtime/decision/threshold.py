"""Thresholds from normal images only, with their meaning.

The threshold is an order statistic of the scores of normals that the model has not seen. For n normals and a target
false-alarm rate a it is the k-th smallest score, k = ceil((n + 1)(1 - a)), and lies a little above it: halfway to the
next larger score, but no farther than the median gap between the largest scores. The true false-alarm rate at the j-th
smallest of n scores follows Beta(n - j + 1, j) whatever the distribution of the scores is (Wilks 1941), which gives the
interval.

Why there: drawn from real scores, such thresholds have about the target as their mean false-alarm rate (.0094 for .01,
.0484 for .05, from 200 scores). Halfway whatever the gap gave less (.0079, .0473): below one odd image the gap is wide,
and the threshold lay far above the parts that it is for. Fitted tails (exponential, generalised Pareto) gave more, .02
for .01: scores of real parts have heavier tails than a few of them show.

Where that is the largest score of all, or there is no such score (fewer than 99 for .01), one image would decide. The
threshold then lies above all scores but the largest, and above that one as far as the others bear it out: the tail
above the largest 30 % is taken for exponential, its scale from the *median* excess, which one odd image does not move,
and half the target is aimed at, because true tails are heavier. So a higher target never gives a higher threshold, and
the mean false-alarm rate is at most 2 / (n + 1). `benchmarks/thresholds.py` draws from real scores with PatchCore, for
.02 and n of 60 and for .01 and n of 120: mean false-alarm rates of .020 and .011, where the largest score alone gave
.015 and .008; share of the real defects that pass .45 and .51, there .51 and .57; with one defect among the normals .51
and .55, there .69 and .70.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgead.runtime.errors import ConfigError, DataError

DEFAULT_FALSE_ALARM_RATE = 0.01
_TAIL, _FEWEST_IN_TAIL = 0.3, 8
_LARGEST = 3  # scores, at least, whose gaps say how far apart large ones lie


@dataclass(frozen=True, slots=True)
class Threshold:
    """A threshold and what it promises.

    Attributes:
        value: raw score; `ANOMALY` iff score > value.
        target_false_alarm_rate: the share of good parts that may be rejected, in (0, 1).
        n_normals: held-out normal images behind it; 0 where it was imported with an imported model.
        low, high: 95 % interval of the false-alarm rate that this threshold gives on parts like those images.
        supported: False where n normals are too few for the target.
    """

    value: float
    target_false_alarm_rate: float
    n_normals: int
    low: float
    high: float
    supported: bool

    def to_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}

    def explain(self) -> str:
        """Return the meaning in one sentence for people."""
        interval = f"95 % interval {self.low:.2%} to {self.high:.2%}"
        if not self.n_normals:
            return f"threshold {self.value:.6g} was imported with the model and promises no false-alarm rate"
        if self.supported:
            return (
                f"threshold {self.value:.6g} from {self.n_normals} held-out good parts, aiming at "
                f"{self.target_false_alarm_rate:.2%} false alarms ({interval})"
            )
        needed = normals_needed(self.target_false_alarm_rate)
        return (
            f"threshold {self.value:.6g} is from {self.n_normals} held-out good parts, which cannot "
            f"support a false-alarm rate of {self.target_false_alarm_rate:.2%} ({interval}; {needed} good parts would)"
        )


def normals_needed(target_false_alarm_rate: float) -> int:
    """Return how many held-out normals it takes before the target has an order statistic of its own."""
    return math.ceil(1.0 / target_false_alarm_rate - 1e-9) - 1


def calibrate(
    scores: Sequence[float] | NDArray[np.floating[Any]], target_false_alarm_rate: float = DEFAULT_FALSE_ALARM_RATE
) -> Threshold:
    """Return the threshold for the scores of held-out normal images.

    Args:
        scores: ``(n,)`` raw scores of normals the model has not seen, n >= 2, all finite.
        target_false_alarm_rate: in (0, 1).

    Raises:
        ConfigError: the target is not in (0, 1).
        DataError: fewer than two scores, or one that is not finite.
    """
    if not 0.0 < target_false_alarm_rate < 1.0:
        raise ConfigError(f"the target false-alarm rate must lie between 0 and 1, got {target_false_alarm_rate}")
    ordered = np.sort(np.asarray(scores, dtype=np.float64).ravel())
    n = len(ordered)
    if n < 2:
        raise DataError(f"a threshold needs the scores of at least 2 good images, got {n}")
    if not np.isfinite(ordered).all():
        raise DataError(f"{int((~np.isfinite(ordered)).sum())} of {n} good images have no finite score")

    # Guard against (n + 1)(1 - a) landing a rounding error above an integer.
    rank = math.ceil((n + 1) * (1.0 - target_false_alarm_rate) - 1e-9)
    value = _above(ordered, rank) if rank < n else _at_the_largest(ordered, target_false_alarm_rate)
    below = int(np.searchsorted(ordered, value, side="right"))  # ties with the anchor are no anomalies either
    low, high = false_alarm_interval(n, below)
    return Threshold(value, target_false_alarm_rate, n, low, high, rank <= n)


def _at_the_largest(ordered: NDArray[np.float64], rate: float) -> float:
    """Return a value above all scores but the largest, and above that as far as the others bear it out."""
    n = len(ordered)
    largest = min(max(_FEWEST_IN_TAIL, int(_TAIL * n)), n - 1)
    edge = float(ordered[n - 1 - largest])
    scale = float(np.median(ordered[n - largest :] - edge)) / math.log(2)
    within = edge + scale * math.log(2 * largest / (rate * n))
    return min(max(within, _above(ordered, n - 1)), _above(ordered, n))


def _above(ordered: NDArray[np.float64], rank: int) -> float:
    """Return a value above the score of a rank, from 1, of all ``ordered`` scores; also when rounded to float32."""
    anchor = float(ordered[rank - 1])
    distinct = np.unique(ordered)
    gaps = np.diff(distinct[-max(_LARGEST, len(ordered) // 10) :])
    step = float(np.median(gaps)) if len(gaps) else max(abs(anchor) * 1e-3, 1e-6) / 2
    following = int(np.searchsorted(distinct, anchor, side="right"))
    if following < len(distinct):
        step = min(step, (float(distinct[following]) - anchor) / 2)
    # Scores are float32: nearer than this, the threshold would be the score itself.
    return max(anchor + step, float(np.nextafter(np.float32(anchor), np.float32(np.inf))))


def false_alarm_interval(n: int, below: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the central interval of the false-alarm rate at the ``below``-th smallest of ``n`` scores."""
    tail = (1.0 - confidence) / 2
    above = n - below + 1
    return _beta_quantile(tail, above, n), _beta_quantile(1.0 - tail, above, n)


def threshold_at(value: float, scores: Sequence[float] | NDArray[np.floating[Any]]) -> Threshold:
    """Return a threshold that was chosen otherwise, with what the scores of held-out normals say of it.

    Args:
        value: raw score.
        scores: ``(n,)``, finite, n >= 2; those that chose it, if they did, make the interval too narrow.
    """
    n = len(scores)
    below = int((np.asarray(scores) <= value).sum())
    low, high = false_alarm_interval(n, max(below, 1))
    return Threshold(value, (n - below + 1) / (n + 2), n, low, high if below else 1.0, below < n)


def share_interval(count: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the exact interval (Clopper and Pearson 1934) of a share of which ``count`` of ``n`` were seen."""
    tail = (1.0 - confidence) / 2
    low = 0.0 if count == 0 else _beta_quantile(tail, count, n)
    high = 1.0 if count == n else _beta_quantile(1.0 - tail, count + 1, n)
    return low, high


def _beta_quantile(probability: float, a: int, n: int) -> float:
    """Quantile of Beta(a, n - a + 1), whose distribution function at x is P(Binomial(n, x) >= a)."""
    counts = np.arange(a, n + 1)
    log_choose = np.array([math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in counts])
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        log_terms = log_choose + counts * math.log(middle) + (n - counts) * math.log1p(-middle)
        if float(np.exp(log_terms).sum()) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2
