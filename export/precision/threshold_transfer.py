"""The threshold of a reduced precision, moved to where its scores have moved.

A threshold comes from scores of normals by models without them, left out or out of fold, which no longer exist; a
precision has no such scores of its own. What it has are the same images scored by both: reduced scores follow the FP32
ones but for a small shift, which may grow with the score (rounding adds to every distance). So the shift is fitted as a
line over the FP32 score (Theil-Sen: medians, which a few odd images do not bend) and the threshold moved by its value
there, or at the nearest score that was seen. The images must score as parts do that the model has not seen: one that it
learned from lies at a distance of nearly zero, where rounding only adds. Ranks stay what they were, and with them the
false-alarm rate that the threshold stands for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edgead.runtime.decision.threshold import Threshold

_LEAST = 3  # images for a line; fewer give their median shift
_STEEPEST = 0.5  # a shift that grows faster than that is no rounding, and order would be at risk


def move_threshold(threshold: Threshold, reference: Sequence[float], own: Sequence[float]) -> Threshold:
    """Return the threshold for the scores of another precision; equal scores give the equal threshold.

    Args:
        threshold: of the FP32 scores, whose meaning the result keeps.
        reference, own: FP32 and reduced scores of the same images; pairs that are not finite are omitted.
    """
    first, second = np.asarray(reference, np.float64), np.asarray(own, np.float64)
    finite = np.isfinite(first) & np.isfinite(second)
    first, shift = first[finite], (second - first)[finite]
    if not len(first):
        return threshold
    slope = float(np.clip(_slope(first, shift), -_STEEPEST, _STEEPEST))
    # Beyond the scores that were seen a line would be a guess.
    nearest = float(np.clip(threshold.value, first.min(), first.max()))
    at_threshold = float(np.median(shift - slope * (first - nearest)))
    return replace(threshold, value=threshold.value + at_threshold)


def _slope(scores: NDArray[np.float64], shift: NDArray[np.float64]) -> float:
    one, other = np.triu_indices(len(scores), 1)
    apart = scores[other] - scores[one]
    # Neighbours say nothing about a slope, and much about rounding.
    wide = np.abs(apart) > 0.05 * np.ptp(scores)
    if len(scores) < _LEAST or not wide.any():
        return 0.0
    return float(np.median((shift[other] - shift[one])[wide] / apart[wide]))
