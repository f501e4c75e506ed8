"""Otsu's threshold of a histogram: where two groups of values part with the least variance within them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def otsu(histogram: NDArray[np.integer]) -> tuple[int, int]:
    """Return the first and the last bin at or below which the lower group lies (Otsu 1979).

    They differ where bins between the groups are empty; any bin from one to the other parts them alike. The sums are
    whole numbers and the rest is one operation a bin, so the result is the same on every processor.

    Args:
        histogram: ``(n,)`` counts, of at most 2**20 values in all; one value at least.

    Example:
        >>> otsu(np.array([0, 4, 1, 0, 0, 5]))
        (2, 4)
    """
    counts = histogram.astype(np.int64)  # a count has 32 bits on some systems
    below, summed = np.cumsum(counts), np.cumsum(counts * np.arange(len(counts)))
    apart = (summed[-1] * below - summed * below[-1]).astype(np.float64)
    pairs = (below * (below[-1] - below)).astype(np.float64)
    between = np.where(pairs > 0, apart * apart / np.maximum(pairs, 1.0), -1.0)
    best = np.flatnonzero(between == between.max())
    return int(best[0]), int(best[-1])
