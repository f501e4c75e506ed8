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

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgead.runtime.errors import ConfigError, DataError
from edgead.runtime.imaging.anomaly_map import resize_map

FPR_LIMIT = 0.3
BOOTSTRAP = 1000

_QUANTILES = 1 << 16  # of either kind of pixel; each makes two fine bins
_COARSE_BINS = 2048
_SAMPLED_PIXELS = 1 << 22
_CHUNK = 1 << 19  # float64 values in one array of one step of the bootstrap

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


@dataclass(frozen=True, slots=True)
class PixelCounts:
    """Histograms of the pixel scores of a test set, bins in ascending order of score; made by `count_pixels`.

    Attributes:
        normal, anomalous: ``(bins,)`` float64, pixels of either kind, all images together, fine bins.
        overlap: ``(bins,)`` float64, every anomalous pixel weighted with 1 / size of its connected component.
        image_normal, image_anomalous, image_overlap: ``(N, coarse bins)`` float64, the same an image.
        image_components: ``(N,)`` float64, connected components of the mask.
        is_anomalous: ``(N,)`` bool, images that came with a mask.
    """

    normal: _Floats
    anomalous: _Floats
    overlap: _Floats
    image_normal: _Floats
    image_anomalous: _Floats
    image_overlap: _Floats
    image_components: _Floats
    is_anomalous: NDArray[np.bool_]


def count_pixels(maps: Sequence[NDArray[np.float32]], masks: Sequence[NDArray[np.bool_] | None]) -> PixelCounts:
    """Sort the pixels of a test set into histograms, from which `pixel_auroc` and `aupro` are computed.

    The fine bins are cut at 65536 quantiles of the normal pixels and as many of the anomalous ones, and every quantile
    is a bin of its own, so ties are counted as ties. A bin between two quantiles holds about 1/65536 of the pixels: a
    metric of the bins errs by less than 1e-5 against a sort of all pixels, and by nothing where either kind has at most
    65536 different scores on at most 4 million pixels. Memory is bounded by the maps, the masks and about 0.2 GiB.

    Args:
        maps: one ``(gh, gw)`` float32 anomaly map an image, on the detector's grid or larger; each is resized
            bilinearly (`resize_map`) to the size of the masks.
        masks: one ``(h, w)`` bool mask an image, all of one size, True where anomalous; None for a normal image.

    Raises:
        DataError: a map that is not finite, unequal lengths or sizes, no anomalous pixel or no normal one.
    """
    if len(maps) != len(masks):
        raise DataError(f"{len(maps)} anomaly maps and {len(masks)} masks; there must be one entry an image in both")
    kinds = {(mask.shape, mask.dtype.name) for mask in masks if mask is not None}
    shapes = {shape for shape, _ in kinds}
    if len(shapes) != 1 or {name for _, name in kinds} != {"bool"}:
        raise DataError(f"pixel metrics need boolean masks of one size, got {sorted(kinds) or 'no mask at all'}")
    height, width = shapes.pop()

    def split() -> Iterator[tuple[_Pixels, _Pixels, NDArray[np.bool_] | None]]:
        for index, (anomaly_map, mask) in enumerate(zip(maps, masks, strict=True)):
            pixels = resize_map(anomaly_map, height, width)
            if not np.isfinite(pixels).all():
                raise DataError(f"anomaly map {index} holds values that are not finite; the model is broken there")
            if mask is None:
                yield pixels.ravel(), np.empty(0, np.float32), None
            else:
                yield pixels[~mask], pixels[mask], mask

    edges = _pooled_quantiles(split, len(maps))
    bins = len(edges)
    coarse = np.arange(bins) * min(bins, _COARSE_BINS) // bins
    fine = np.zeros((3, bins))
    image = np.zeros((3, len(maps), int(coarse[-1]) + 1))
    components = np.zeros(len(maps))
    for index, (normal, anomalous, mask) in enumerate(split()):
        # Sorted queries walk through the edges in order, which is several times faster than random ones.
        parts: list[tuple[int, NDArray[np.intp], _Floats | None]] = [(0, _bin(edges, np.sort(normal)), None)]
        if mask is not None:
            places = _bin(edges, anomalous)
            labels, components[index] = _components(mask)
            parts += [(1, places, None), (2, places, 1.0 / np.bincount(labels)[labels])]
        for kind, places, weights in parts:
            fine[kind] += np.bincount(places, weights, minlength=bins)
            image[kind, index] = np.bincount(coarse[places], weights, minlength=image.shape[2])
    if not fine[0].any() or not fine[1].any():
        missing = "an anomalous" if fine[0].any() else "a normal"
        raise DataError(f"pixel metrics need at least one anomalous and one normal pixel; no mask has {missing} one")
    return PixelCounts(
        normal=fine[0],
        anomalous=fine[1],
        overlap=fine[2],
        image_normal=image[0],
        image_anomalous=image[1],
        image_overlap=image[2],
        image_components=components,
        is_anomalous=np.array([mask is not None for mask in masks]),
    )


def pixel_auroc(pixels: PixelCounts, *, bootstrap: int = BOOTSTRAP, seed: int = 0) -> Metric:
    """Return the area under the ROC curve over all pixels of all images, ties half.

    The interval comes from about 2048 bins an image, shifted by what that costs the value itself; on 292 images of
    256x256 its ends were within 2e-6 of resamples of all pixels.
    """
    resamples = _pixel_resamples(pixels, bootstrap, seed)
    replicates = [_auroc(weights @ pixels.image_normal, weights @ pixels.image_anomalous) for weights in resamples]
    rough = _auroc(pixels.image_normal.sum(0)[None], pixels.image_anomalous.sum(0)[None])
    return _metric(_auroc(pixels.normal[None], pixels.anomalous[None]), replicates, rough)


def aupro(pixels: PixelCounts, *, fpr_limit: float = FPR_LIMIT, bootstrap: int = BOOTSTRAP, seed: int = 0) -> Metric:
    """Return the area under the per-region overlap curve up to a false-positive rate, divided by that rate.

    Overlap: the share of a defect's pixels at or above the threshold, mean over all 8-connected components of all
    masks, so that a small defect counts as much as a large one; false-positive rate: over all normal pixels of all
    images. Linear interpolation at the limit (Bergmann et al., IJCV 2021, section 5.3). Interval as `pixel_auroc`.

    Raises:
        ConfigError: the limit is not in (0, 1].
    """
    if not 0.0 < fpr_limit <= 1.0:
        raise ConfigError(f"the false-positive rate limit must be above 0 and at most 1, got {fpr_limit}")

    def area(normal: _Floats, overlap: _Floats, components: _Floats) -> _Floats:
        return _partial_area(normal, overlap / components[:, None], fpr_limit)

    replicates = [
        area(weights @ pixels.image_normal, weights @ pixels.image_overlap, weights @ pixels.image_components)
        for weights in _pixel_resamples(pixels, bootstrap, seed)
    ]
    total = pixels.image_components.sum()[None]
    rough = area(pixels.image_normal.sum(0)[None], pixels.image_overlap.sum(0)[None], total)
    return _metric(area(pixels.normal[None], pixels.overlap[None], total), replicates, rough)


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


def _partial_area(normal: _Floats, overlap: _Floats, limit: float) -> _Floats:
    zero = np.zeros((len(normal), 1))
    rate = np.concatenate((zero, _at_or_above(normal)[:, ::-1]), axis=1)
    rate /= rate[:, -1:]
    height = np.concatenate((zero, _at_or_above(overlap)[:, ::-1]), axis=1)
    # Every step counts with the part of it that lies left of the limit; the curve is linear within a step.
    width = np.diff(np.minimum(rate, limit), axis=1)
    step = np.diff(rate, axis=1)
    share = np.divide(width, step, out=np.zeros_like(step), where=step > 0)
    rise = np.diff(height, axis=1)
    return np.asarray((width * (height[:, :-1] + rise * share / 2)).sum(axis=1) / limit)


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


def _pixel_resamples(pixels: PixelCounts, bootstrap: int, seed: int) -> Iterator[_Floats]:
    """Yield resamples without those that drew no normal pixel, or nothing but empty masks: they have no metric."""
    normal = pixels.image_normal.sum(axis=1)
    for weights in _resamples(pixels.is_anomalous, bootstrap, seed):
        yield weights[(weights @ pixels.image_components > 0) & (weights @ normal > 0)]


def _metric(exact: _Floats, replicates: list[_Floats], rough: _Floats) -> Metric:
    value = float(exact[0])
    drawn = np.concatenate([*replicates, np.empty(0)])
    if not len(drawn):
        return Metric(value, value, value)
    drawn = drawn + (value - float(rough[0]))
    low, high = np.percentile(drawn, (2.5, 97.5))
    return Metric(value, max(0.0, min(value, float(low))), min(1.0, max(value, float(high))), drawn)


# Pixel level.


def _pooled_quantiles(
    split: Callable[[], Iterator[tuple[_Pixels, _Pixels, NDArray[np.bool_] | None]]], images: int
) -> _Pixels:
    """Return the ascending lower edges of the fine bins."""
    random = np.random.default_rng(0)
    budget = max(1, _SAMPLED_PIXELS // images)
    samples: tuple[list[_Pixels], list[_Pixels]] = ([], [])
    for normal, anomalous, _ in split():
        for sample, pixels in zip(samples, (normal, anomalous), strict=True):
            # Random places, not every k-th: a fixed step would meet the same columns of the grid again and again.
            few = len(pixels) <= budget
            sample.append(pixels if few else pixels[random.integers(0, len(pixels), budget)])
    quantiles = []
    for sample in samples:
        pooled = np.sort(np.concatenate(sample))
        distinct = np.unique(pooled)
        if len(distinct) > _QUANTILES:
            distinct = pooled[np.linspace(0, len(pooled) - 1, _QUANTILES).astype(np.intp)]
        quantiles.append(distinct)
    edges = np.concatenate(quantiles)
    # The second edge closes the bin of the quantile itself. Without it anomalous pixels would lie on lower edges,
    # below the normal ones of their bin, and be counted as tied with them.
    return np.unique(np.concatenate((edges, np.nextafter(edges, np.float32(np.inf)))))


def _bin(edges: _Pixels, pixels: _Pixels) -> NDArray[np.intp]:
    # Pixels below the first edge, which the sample missed, join the first bin.
    return np.maximum(np.searchsorted(edges, pixels, side="right") - 1, 0)


def _components(mask: NDArray[np.bool_]) -> tuple[NDArray[np.intp], int]:
    """Return the component of every anomalous pixel (from 0, in the order of ``mask[mask]``) and their number."""
    from scipy import ndimage

    labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
    return labels[mask] - 1, int(count)
