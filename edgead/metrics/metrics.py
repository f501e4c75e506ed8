"""How well a detector separates good from defective, with an interval for every figure.

All metrics are functions of how many images (or pixels) of either kind lie at or above each score. So both levels share
one form, a histogram an image: at image level every different score is a bin of its own; at pixel level the bins are
quantiles of the pooled pixels (`count_pixels`). A bootstrap resample is then a weighted sum of histograms, and 1000
resamples of 292 images take a matrix product instead of 1000 sorts of 19 million pixels.

Intervals: 95 % percentile bootstrap over images, normal and anomalous ones resampled separately, seeded; widened where
needed so that the value lies inside. They say how far the figure would move with another draw of test images, not with
another training run; a figure that no resample can move (AUROC 1 of two separated groups) has an interval of width 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgead.runtime.errors import ConfigError, DataError

_COARSE_BINS = 2048
_CHUNK = 1 << 19  # float64 values in one array of one step of the bootstrap


BOOTSTRAP = 1000

_QUANTILES = 1 << 16  # of either kind of pixel; each makes two fine bins

_Floats = NDArray[np.float64]
_Pixels = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure in [0, 1] and its 95 % bootstrap interval ``low <= value <= high``.

    Attributes:
        draws: ``(resamples,)`` float64, the figure on each resample; empty without a bootstrap. The k-th resamples of
            two metrics with the same images, labels, seed and number of resamples are the same images, so that means
            and differences of draws are a joint bootstrap. Shorter where a resample has no such figure.
    """

    value: float
    low: float
    high: float
    draws: NDArray[np.float64] = field(default_factory=lambda: np.empty(0), repr=False, compare=False)

    def to_dict(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}


def image_auroc(scores: ArrayLike, anomalous: ArrayLike, *, bootstrap: int = BOOTSTRAP, seed: int = 0) -> Metric:
    """Return the area under the ROC curve: how often an anomalous image scores above a normal one, ties half.

    Args:
        scores: ``(N,)`` raw image scores, higher is more anomalous.
        anomalous: ``(N,)`` bool.
        bootstrap: resamples; 0 gives an interval of width 0.
        seed: of the resampling.

    Raises:
        DataError: a score that is not finite, unequal lengths, or only one kind of image.
    """
    return _image_metric(_auroc, scores, anomalous, bootstrap, seed)


def f1_max(scores: ArrayLike, anomalous: ArrayLike, *, bootstrap: int = BOOTSTRAP, seed: int = 0) -> Metric:
    """Return the best F1 (anomalous is positive) that any threshold on the image score reaches.

    The threshold is chosen on the test images themselves, so this is an upper bound of what a line gets, and the
    interval leans to the high side. Arguments and errors as `image_auroc`.
    """
    return _image_metric(_f1_max, scores, anomalous, bootstrap, seed)


def false_alarm_rate_at_zero_escapes(
    scores: ArrayLike, anomalous: ArrayLike, *, bootstrap: int = BOOTSTRAP, seed: int = 0
) -> Metric:
    """Return the share of normal images that a threshold without any escape rejects.

    `ANOMALY` means score > threshold, so the threshold must lie below the lowest anomalous score, and a normal image
    with exactly that score is rejected as well: a tie counts as a false alarm. The upper end of the interval is the
    value itself, since a resample cannot hold a defect harder than the hardest one seen. Arguments and errors as
    `image_auroc`.
    """
    return _image_metric(_zero_escapes, scores, anomalous, bootstrap, seed)


# Curves. All take (B, bins) counts in ascending order of score, one row a resample, and return (B,).


def _auroc(normal: _Floats, anomalous: _Floats) -> _Floats:
    below = np.cumsum(normal, axis=1) - normal / 2
    return np.asarray((anomalous * below).sum(axis=1) / (normal.sum(axis=1) * anomalous.sum(axis=1)))


def _f1_max(normal: _Floats, anomalous: _Floats) -> _Floats:
    false_alarms = _at_or_above(normal)
    hits = _at_or_above(anomalous)
    return np.asarray((2 * hits / np.maximum(hits + false_alarms + hits[:, :1], 1)).max(axis=1))


def _zero_escapes(normal: _Floats, anomalous: _Floats) -> _Floats:
    lowest = (anomalous > 0).argmax(axis=1)
    rejected = _at_or_above(normal)
    return np.asarray(rejected[np.arange(len(lowest)), lowest] / rejected[:, 0])


def _at_or_above(counts: _Floats) -> _Floats:
    return np.asarray(np.cumsum(counts[:, ::-1], axis=1)[:, ::-1])


# Image level.


def _image_metric(
    curve: Callable[[_Floats, _Floats], _Floats], scores: ArrayLike, anomalous: ArrayLike, bootstrap: int, seed: int
) -> Metric:
    values = np.asarray(scores, dtype=np.float64).ravel()
    labels = np.asarray(anomalous, dtype=bool).ravel()
    if len(values) != len(labels):
        raise DataError(f"{len(values)} scores and {len(labels)} labels; there must be one of each an image")
    if not np.isfinite(values).all():
        count = int((~np.isfinite(values)).sum())
        raise DataError(f"{count} of {len(values)} image scores are not finite; metrics need a score for every image")
    if labels.all() or not labels.any():
        missing = "normal" if labels.any() else "anomalous"
        raise DataError(f"metrics need normal and anomalous images; there is no {missing} one among {len(labels)}")
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    is_anomalous = labels[order]

    def of(weights: _Floats) -> _Floats:
        weights = weights[:, order]
        normal = np.add.reduceat(weights * ~is_anomalous, starts, axis=1)
        return curve(normal, np.add.reduceat(weights * is_anomalous, starts, axis=1))

    exact = of(np.ones((1, len(values))))
    return _metric(exact, [of(weights) for weights in _resamples(labels, bootstrap, seed)], exact)


# Bootstrap.


def _resamples(labels: NDArray[np.bool_], bootstrap: int, seed: int) -> Iterator[_Floats]:
    """Yield ``(b, N)`` weights, how often each image was drawn, normal and anomalous images drawn separately."""
    if bootstrap < 0:
        raise ConfigError(f"the number of bootstrap resamples must be 0 or more, got {bootstrap}")
    random = np.random.default_rng(seed)
    rows = max(1, _CHUNK // max(len(labels), _COARSE_BINS))
    for start in range(0, bootstrap, rows):
        weights = np.zeros((min(rows, bootstrap - start), len(labels)))
        for kind in (False, True):
            members = np.flatnonzero(labels == kind)
            if len(members):
                share = np.full(len(members), 1.0 / len(members))
                weights[:, members] = random.multinomial(len(members), share, size=len(weights))
        yield weights


def _metric(exact: _Floats, replicates: list[_Floats], rough: _Floats) -> Metric:
    value = float(exact[0])
    drawn = np.concatenate([*replicates, np.empty(0)])
    if not len(drawn):
        return Metric(value, value, value)
    drawn = drawn + (value - float(rough[0]))
    low, high = np.percentile(drawn, (2.5, 97.5))
    return Metric(value, max(0.0, min(value, float(low))), min(1.0, max(value, float(high))), drawn)


# Pixel level.
