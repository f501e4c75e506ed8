"""Is one detector better than another on the same test images: DeLong's test of correlated AUROCs.

DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988): an AUROC is a mean over pairs, so its covariance with another
AUROC on the same images follows from what each image contributes to both. With midranks (Sun and Xu, IEEE Signal
Processing Letters 21, 2014) the contributions take O(n log n) instead of one comparison a pair.

Several seeds: what is compared is the mean AUROC over the seeds of either detector. It is a linear contrast of AUROCs
on one set of images, so its contributions are the means of theirs, and the test stays DeLong's own. It answers for the
draw of *test images*, with these fits given. How far another seed moves the figure is another question; the range over
the seeds shows it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgead.runtime.errors import DataError

_Z95 = 1.959963984540054  # 97.5 % quantile of the standard normal distribution
# Below this a variance is what rounding leaves of zero: contributions lie in [0, 1].
_ZERO = 1e-24


@dataclass(frozen=True, slots=True)
class Difference:
    """A paired difference of AUROCs.

    Attributes:
        value: AUROC of the first minus AUROC of the second, in [-1, 1].
        low, high: 95 % interval, normal approximation.
        p: two-sided; None where the variance is zero although the AUROCs differ, so that there is no test.
        images: test images it stands on.
    """

    value: float
    low: float
    high: float
    p: float | None
    images: int

    def to_dict(self) -> dict[str, float | int | None]:
        return {name: getattr(self, name) for name in self.__slots__}


def compare_auroc(first: ArrayLike, second: ArrayLike, anomalous: ArrayLike) -> Difference:
    """Return the mean AUROC over the seeds of ``first`` minus that of ``second``, with DeLong's interval and p.

    Args:
        first, second: ``(N,)`` or ``(seeds, N)`` raw image scores, higher is more anomalous; the numbers of seeds may
            differ.
        anomalous: ``(N,)`` bool, at least two of each kind.

    Raises:
        DataError: a score that is not finite, unequal lengths, or fewer than two images of a kind.
    """
    labels = np.asarray(anomalous, dtype=bool).ravel()
    if min(int(labels.sum()), int((~labels).sum())) < 2:
        raise DataError("a paired test needs at least two normal and two anomalous images")
    one_value, one = _contributions(first, labels)
    other_value, other = _contributions(second, labels)
    value, contrast = one_value - other_value, one - other
    variance = sum(
        float(np.var(contrast[labels == kind], ddof=1)) / int((labels == kind).sum()) for kind in (False, True)
    )
    if variance < _ZERO:
        return Difference(value, value, value, 1.0 if abs(value) < 1e-12 else None, len(labels))
    error = math.sqrt(variance)
    low, high = max(-1.0, value - _Z95 * error), min(1.0, value + _Z95 * error)
    return Difference(value, low, high, math.erfc(abs(value) / error / math.sqrt(2)), len(labels))


def holm(p_values: list[float | None]) -> list[float | None]:
    """Return p-values adjusted for being several, by Holm's step-down method; None stays None and does not count."""
    known = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        adjusted[index] = largest
    return adjusted


def _contributions(scores: ArrayLike, labels: NDArray[np.bool_]) -> tuple[float, NDArray[np.float64]]:
    """Return the mean AUROC over seeds and what each image contributes: the share of the other kind it beats."""
    rows = np.atleast_2d(np.asarray(scores, dtype=np.float64))
    if rows.ndim != 2 or rows.shape[1] != len(labels) or not len(rows):
        raise DataError(f"scores of shape {rows.shape} and {len(labels)} labels; there must be one score an image")
    if not np.isfinite(rows).all():
        raise DataError("a paired test needs a finite score for every image")
    normals, anomalies = int((~labels).sum()), int(labels.sum())
    result = np.empty(rows.shape)
    for row, share in zip(rows, result, strict=True):
        pooled = _midranks(row)
        share[labels] = (pooled[labels] - _midranks(row[labels])) / normals
        share[~labels] = 1.0 - (pooled[~labels] - _midranks(row[~labels])) / anomalies
    return float(result[:, labels].mean()), result.mean(axis=0)


def _midranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ranks from 1, ties with the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[places.ravel()], dtype=np.float64)
