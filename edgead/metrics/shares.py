"""Escapes and false alarms as shares, each with its exact interval, and the escapes that a set of scores allows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from edgead.runtime.decision.threshold import share_interval
from edgead.runtime.errors import DataError

# False-alarm rates at which the allowed escapes are counted.
RATES = (0.0, 0.01, 0.05)


@dataclass(frozen=True, slots=True)
class Share:
    """``count`` of ``n`` images, with the exact 95 % interval of the share (Clopper and Pearson 1934).

    Attributes:
        value: the share, None where there was no image.
        low, high: 0 and 1 where there was no image.
    """

    count: int
    n: int

    @property
    def value(self) -> float | None:
        return self.count / self.n if self.n else None

    @property
    def low(self) -> float:
        return share_interval(self.count, self.n)[0] if self.n else 0.0

    @property
    def high(self) -> float:
        return share_interval(self.count, self.n)[1] if self.n else 1.0

    @property
    def percent(self) -> str:
        """The share for people, such as ``7.5 %``."""
        return "–" if self.value is None else f"{self.value * 100:.1f} %"

    @property
    def interval(self) -> str:
        """The interval for people, such as ``1.6 to 20.4 %``."""
        return f"{self.low * 100:.1f} to {self.high * 100:.1f} %" if self.n else "–"

    def to_dict(self) -> dict[str, float | None]:
        return {"value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True, slots=True)
class Allowed:
    """What the scores allow at a false-alarm rate, with a threshold that is chosen on these very images.

    So it says how well good and defective images are separated, not what a line gets: there, the threshold is chosen
    without them.

    Attributes:
        rate: of false alarms, at most.
        threshold: the smallest one at which at most ``floor(rate * n)`` of the ``n`` good images lie above it.
        false_alarms: good images above it; fewer than the rate allows where scores are equal.
        escapes: defective images at or below it.
    """

    rate: float
    threshold: float
    false_alarms: Share
    escapes: Share

    def to_dict(self) -> dict[str, Any]:
        return {
            "at_false_alarm_rate": self.rate,
            "threshold": self.threshold,
            "false_alarms": self.false_alarms.count,
            "normal": self.false_alarms.n,
            "escapes": self.escapes.count,
            "anomalous": self.escapes.n,
            "escape_rate": self.escapes.to_dict(),
        }


def allowed_escapes(scores: ArrayLike, anomalous: ArrayLike, rates: Sequence[float] = RATES) -> tuple[Allowed, ...]:
    """Return the escapes that the scores allow at each false-alarm rate.

    Args:
        scores: ``(N,)`` raw image scores, higher is more anomalous.
        anomalous: ``(N,)`` bool.
        rates: in [0, 1).

    Raises:
        DataError: a score that is not finite, or no good image.
    """
    values = np.asarray(scores, dtype=np.float64).ravel()
    labels = np.asarray(anomalous, dtype=bool).ravel()
    if not np.isfinite(values).all():
        raise DataError("a score is not finite; escapes are counted on scores of every image")
    normal, defective = np.sort(values[~labels])[::-1], values[labels]
    if not len(normal):
        raise DataError("there is no good image to count false alarms on")
    found = []
    for rate in rates:
        # Not 28.999999999999996 of 100 at 0.29.
        most = math.floor(rate * len(normal) + 1e-9)
        threshold = float(normal[most])
        found.append(
            Allowed(
                rate,
                threshold,
                Share(int((normal > threshold).sum()), len(normal)),
                Share(int((defective <= threshold).sum()), len(defective)),
            )
        )
    return tuple(found)
