"""How unusual a score would be for a good part, and the scores of good parts in a bundle that say so.

A conformal p-value: the share of held-out normals whose score is not below this one, counting the part itself. For a
good part that is exchangeable with those normals it is at most u with a probability of at most u, whatever the scores'
distribution (Vovk, Gammerman and Shafer, *Algorithmic Learning in a Random World*, 2005). It decides nothing.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import pairwise

# In a manifest's provenance: ``precision`` or ``precision/category`` -> ascending raw scores.
PROVENANCE_KEY = "held_out_scores"
MOST_SCORES = 5000  # of one category in a bundle; a manifest is small


def p_value(score: float, normal_scores: Sequence[float]) -> float:
    """Return the share of good parts that are at least as unusual: (1 + scores not below this one) / (n + 1).

    Args:
        score: raw score, finite.
        normal_scores: ``(n,)`` ascending raw scores of normals that the model has not seen.

    Example:
        >>> p_value(5.0, [1.0, 2.0, 3.0])
        0.25
    """
    n = len(normal_scores)
    return (1 + n - bisect_left(normal_scores, score)) / (n + 1)


def kept_scores(scores: Sequence[float]) -> list[float]:
    """Return finite scores as a manifest keeps them: ascending; of more than `MOST_SCORES`, evenly many by rank."""
    ordered = sorted(float(score) for score in scores)
    if len(ordered) <= MOST_SCORES:
        return ordered
    last = len(ordered) - 1
    return [ordered[round(step * last / (MOST_SCORES - 1))] for step in range(MOST_SCORES)]


def normal_scores(
    provenance: Mapping[str, object], precision: str, thresholds: Mapping[str, float]
) -> dict[str | None, tuple[float, ...]]:
    """Return the held-out scores of a bundle for one precision, by category; None where there is only one.

    A precision whose own scores are not known takes those of FP32, scaled as its threshold is, which is exact at the
    threshold and near it elsewhere.

    Args:
        provenance: of the manifest, untrusted: what is no list of ascending finite numbers is taken for absent.
        precision: such as ``fp32``.
        thresholds: of FP32 and of this precision, by key: ``precision`` or ``precision/category``.
    """
    table = provenance.get(PROVENANCE_KEY)
    if not isinstance(table, Mapping):
        return {}
    found: dict[str | None, tuple[float, ...]] = {}
    for key in thresholds:
        kind, _, category = key.partition("/")
        if kind != precision:
            continue
        scores = _scores(table.get(key))
        if scores is None and kind != "fp32":
            full = f"fp32/{category}" if category else "fp32"
            scores = _scaled(_scores(table.get(full)), thresholds.get(full), thresholds[key])
        if scores:
            found[category or None] = scores
    return found


def _scores(values: object) -> tuple[float, ...] | None:
    if not isinstance(values, Sequence) or isinstance(values, str):
        return None
    numbers = [float(one) for one in values if isinstance(one, int | float) and not isinstance(one, bool)]
    if len(numbers) != len(values) or not numbers or not all(map(math.isfinite, numbers)):
        return None
    return tuple(numbers) if all(low <= high for low, high in pairwise(numbers)) else None


def _scaled(scores: Sequence[float] | None, full: float | None, own: float) -> tuple[float, ...] | None:
    if scores is None or full is None or full <= 0.0 or own <= 0.0:
        return None
    return tuple(score * (own / full) for score in scores)
