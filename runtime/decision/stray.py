"""Images among normals that are no part of them: nothing to see on them, or a score far beyond the others'.

One such image decides an order statistic, and the threshold with it; so no threshold is made from them.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

# Standard deviation of the grey values below which an image shows nothing, where most images have so many times more.
_EMPTY, _MORE = 3.0, 4.0
SHOWS_NOTHING = "it shows nothing, all its pixels are nearly alike"
# The tail above this quantile of the other scores is taken for exponential; a score that is less likely in it than
# this, with all scores counted, is no part of it. Real tails are heavier, so it must also be so many times the next.
_TAIL, _CHANCE, _MOST = 0.8, 1e-3, 0.05
_TIMES = 1.5
_FEWEST = 20  # scores; fewer show no tail


def contrast(image: NDArray[np.uint8]) -> float:
    """Return the standard deviation of the green values of an ``(h, w, 3)`` uint8 image."""
    return float(image[:, :, 1].std(dtype=np.float64))


def empty_images(contrasts: NDArray[np.float64]) -> list[int]:
    """Return which of images ``(n,)`` of these contrasts show nothing, where most of them show something."""
    usual = float(np.median(contrasts))
    empty = (contrasts < _EMPTY) & (usual > _MORE * contrasts) & (usual > _EMPTY)
    return [int(index) for index in np.flatnonzero(empty)]


def stray_scores(scores: NDArray[np.float64]) -> dict[int, str]:
    """Return the scores far beyond the tail of the others: position -> why, a clause."""
    order, ordered = np.argsort(-scores, kind="stable"), np.sort(scores)
    count, found = len(scores), 0
    if count < _FEWEST:
        return {}
    for number in range(1, max(1, int(_MOST * count)) + 1):
        others = ordered[: count - number]
        edge = float(np.quantile(others, _TAIL))
        beyond = others[others > edge] - edge
        if not len(beyond):
            break
        score = scores[order[number - 1]]
        unlikely = score - edge > beyond.mean() * math.log((1 - _TAIL) * count / _CHANCE)
        if unlikely and score > _TIMES * others[-1]:
            found = number
    highest = float(ordered[count - found - 1])
    return {
        int(index): f"its score is {scores[index]:.4g}, of the others up to {highest:.4g}" for index in order[:found]
    }
