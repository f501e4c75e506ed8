"""Pixel AUROC and AUPRO over maps of any number of images, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgead.metrics.metrics import (
    _COARSE_BINS,
    _QUANTILES,
    BOOTSTRAP,
    Metric,
    _at_or_above,
    _auroc,
    _Floats,
    _metric,
    _Pixels,
    _resamples,
)
from edgead.runtime.errors import ConfigError, DataError
from edgead.runtime.imaging.anomaly_map import resize_map

FPR_LIMIT = 0.3


_SAMPLED_PIXELS = 1 << 22


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


def _pixel_resamples(pixels: PixelCounts, bootstrap: int, seed: int) -> Iterator[_Floats]:
    """Yield resamples without those that drew no normal pixel, or nothing but empty masks: they have no metric."""
    normal = pixels.image_normal.sum(axis=1)
    for weights in _resamples(pixels.is_anomalous, bootstrap, seed):
        yield weights[(weights @ pixels.image_components > 0) & (weights @ normal > 0)]


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
