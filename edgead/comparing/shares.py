"""Escapes and false alarms of several seeds, from the decisions and scores in their rows; rows of any age have both."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import Any

from edgead.comparing.rows import Outcome
from edgead.metrics.shares import Allowed, Share, allowed_escapes


def decided(outcomes: Sequence[Outcome]) -> dict[str, dict[str, Any] | None]:
    """Return the shares of escapes and of false alarms at the models' own thresholds."""
    found = [one.decisions for one in outcomes]
    return {
        "escape_rate": _over_seeds([Share(one.escapes, one.anomalous) for one in found]),
        "false_alarm_rate": _over_seeds([Share(one.false_alarms, one.normal) for one in found]),
    }


def allowed(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Return the escapes that the scores allow at each rate of false alarms, none where no good image was inspected."""
    by_seed = [of_outcome(one) for one in outcomes]
    if not all(by_seed):
        return []
    result = []
    for points in zip(*by_seed, strict=True):
        share = _over_seeds([point.escapes for point in points])
        result.append({"at_false_alarm_rate": points[0].rate, "escape_rate": share})
    return result


def of_outcome(outcome: Outcome) -> tuple[Allowed, ...]:
    """Return what the scores of one fit allow, for inspected images."""
    known = [
        (image.score, image.anomalous)
        for image in outcome.images
        if image.score is not None and image.decision != "NOT_INSPECTED"
    ]
    if all(anomalous for _, anomalous in known):
        return ()
    return allowed_escapes([score for score, _ in known], [anomalous for _, anomalous in known])


def _over_seeds(shares: Sequence[Share]) -> dict[str, Any] | None:
    """Return the mean of the seeds' shares, None where one has no image.

    All seeds judge the same images, so their counts added up would give an interval that is too narrow; the mean of
    their own intervals is rather too wide.
    """
    values = [share.value for share in shares if share.value is not None]
    if len(values) < len(shares):
        return None
    return {
        "mean": mean(values),
        "low": mean(share.low for share in shares),
        "high": mean(share.high for share in shares),
        "min": min(values),
        "max": max(values),
        "seeds": values,
        "count": sum(share.count for share in shares),
        "images": sum(share.n for share in shares),
        "interval": "exact" if len(shares) == 1 else "mean of the seeds' exact intervals",
    }
