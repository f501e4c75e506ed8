"""Metrics against scikit-learn, and against their definitions written out slowly."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.metrics import precision_recall_curve, roc_auc_score

from edgead.metrics.metrics import Metric, f1_max, false_alarm_rate_at_zero_escapes, image_auroc
from edgead.metrics.pixels import aupro, count_pixels, pixel_auroc
from edgead.runtime.errors import ConfigError, DataError
from edgead.runtime.imaging.anomaly_map import resize_map

IMAGE_METRICS = [image_auroc, f1_max, false_alarm_rate_at_zero_escapes]

# Few different values, so that most cases have ties.
SCORED = st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=30).filter(
    lambda rows: len({anomalous for _, anomalous in rows}) == 2
)


def columns(rows: list[tuple[int, bool]]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    return np.array([score / 3 for score, _ in rows]), np.array([anomalous for _, anomalous in rows])


@settings(deadline=None, max_examples=80)
@given(SCORED)
def test_image_auroc_is_sklearns(rows: list[tuple[int, bool]]) -> None:
    scores, anomalous = columns(rows)
    assert image_auroc(scores, anomalous, bootstrap=0).value == pytest.approx(
        roc_auc_score(anomalous, scores), abs=1e-12
    )


@settings(deadline=None, max_examples=80)
@given(SCORED)
def test_f1_max_is_sklearns_best(rows: list[tuple[int, bool]]) -> None:
    scores, anomalous = columns(rows)
    precision, recall, _ = precision_recall_curve(anomalous, scores)
    best = max(2 * p * r / (p + r) for p, r in zip(precision, recall, strict=True) if p + r > 0)
    assert f1_max(scores, anomalous, bootstrap=0).value == pytest.approx(best, abs=1e-12)


@settings(deadline=None, max_examples=80)
@given(SCORED)
def test_zero_escapes_by_trying_every_threshold(rows: list[tuple[int, bool]]) -> None:
    scores, anomalous = columns(rows)
    thresholds = [-1.0, *(scores - 1e-9)]  # ANOMALY iff score > threshold
    rates = [(scores[~anomalous] > t).mean() for t in thresholds if (scores[anomalous] > t).all()]
    assert false_alarm_rate_at_zero_escapes(scores, anomalous, bootstrap=0).value == pytest.approx(min(rates))


def test_a_tie_with_the_easiest_escape_is_a_false_alarm() -> None:
    assert false_alarm_rate_at_zero_escapes([0, 1, 2, 2, 3], [False, False, False, True, True]).value == pytest.approx(
        1 / 3
    )


@pytest.mark.parametrize("metric", IMAGE_METRICS)
def test_intervals_agree_with_a_slow_bootstrap(metric) -> None:
    random = np.random.default_rng(3)
    scores = np.round(np.concatenate((random.normal(0, 1, 40), random.normal(1.2, 1, 30))), 1)
    anomalous = np.arange(70) >= 40
    fast = metric(scores, anomalous, bootstrap=2000, seed=1)
    drawn = []
    for _ in range(2000):
        picks = np.concatenate((random.integers(0, 40, 40), random.integers(40, 70, 30)))
        drawn.append(metric(scores[picks], anomalous[picks], bootstrap=0).value)
    low, high = np.percentile(drawn, (2.5, 97.5))
    assert fast.low <= fast.value <= fast.high
    width = high - low
    assert fast.low == pytest.approx(min(low, fast.value), abs=0.15 * width)
    assert fast.high == pytest.approx(max(high, fast.value), abs=0.15 * width)


@settings(deadline=None, max_examples=40)
@given(SCORED, st.sampled_from(IMAGE_METRICS))
def test_an_interval_holds_its_value_and_repeats(rows: list[tuple[int, bool]], metric) -> None:
    scores, anomalous = columns(rows)
    first = metric(scores, anomalous, bootstrap=50, seed=7)
    assert 0 <= first.low <= first.value <= first.high <= 1
    assert first == metric(scores, anomalous, bootstrap=50, seed=7)


def test_intervals_narrow_with_more_images() -> None:
    random = np.random.default_rng(0)

    def width(count: int) -> float:
        scores = np.concatenate((random.normal(0, 1, count), random.normal(1, 1, count)))
        metric = image_auroc(scores, np.arange(2 * count) >= count)
        return metric.high - metric.low

    assert width(1000) < width(50) / 2


def test_the_seed_matters_and_zero_resamples_mean_no_interval() -> None:
    scores, anomalous = [0, 1, 2, 1.5, 3, 4], [False, False, False, True, True, True]
    values = {image_auroc(scores, anomalous, bootstrap=20, seed=seed) for seed in range(8)}
    assert len(values) > 1
    assert image_auroc(scores, anomalous, bootstrap=0) == Metric(*[image_auroc(scores, anomalous).value] * 3)


@pytest.mark.parametrize("metric", IMAGE_METRICS)
@pytest.mark.parametrize(
    ("scores", "anomalous", "message"),
    [
        ([0.1, np.nan, 0.3], [False, True, True], "1 of 3 image scores are not finite"),
        ([0.1, np.inf], [False, True], "not finite"),
        ([0.1, 0.2], [True, True], "no normal one"),
        ([0.1, 0.2], [False, False], "no anomalous one"),
        ([], [], "no anomalous one"),
        ([0.1, 0.2], [True], "2 scores and 1 labels"),
    ],
)
def test_refuses_what_has_no_metric(metric, scores, anomalous, message: str) -> None:
    with pytest.raises(DataError, match=message):
        metric(scores, anomalous)


def test_huge_scores_do_not_overflow() -> None:
    assert image_auroc([-1e308, 0, 1e308], [False, False, True]).value == 1


def test_refuses_a_negative_number_of_resamples() -> None:
    with pytest.raises(ConfigError, match="bootstrap"):
        image_auroc([0, 1], [False, True], bootstrap=-1)


# Pixel level.


def slow_aupro(maps: NDArray[np.float32], masks: list[NDArray[np.bool_] | None], limit: float) -> float:
    """State the definition: one point a threshold, trapezoids, linear at the limit."""
    normal = np.concatenate([m.ravel() if mask is None else m[~mask] for m, mask in zip(maps, masks, strict=True)])
    regions = []
    for anomaly_map, mask in zip(maps, masks, strict=True):
        if mask is not None:
            labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
            regions += [anomaly_map[labels == region + 1] for region in range(count)]
    thresholds = np.unique(maps)[::-1]
    rate = np.array([0.0] + [(normal >= t).mean() for t in thresholds])
    overlap = np.array([0.0] + [np.mean([(region >= t).mean() for region in regions]) for t in thresholds])
    # At equal rates the curve is vertical; np.interp would take either end, so the limit is cut by hand.
    area = 0.0
    for a, b, p, q in zip(rate[:-1], rate[1:], overlap[:-1], overlap[1:], strict=True):
        end = min(b, limit)
        if end > a:
            area += (end - a) * (p + (p + (q - p) * (end - a) / (b - a))) / 2
    return area / limit


def random_case(seed: int, levels: int, images: int = 5, side: int = 9):
    random = np.random.default_rng(seed)
    maps = (random.integers(0, levels, (images, side, side)) / 7).astype(np.float32)
    masks: list[NDArray[np.bool_] | None] = [None]
    masks += [random.random((side, side)) < random.choice((0.02, 0.2, 0.5)) for _ in range(images - 1)]
    masks[-1][0, 0] = True
    maps[-1][masks[-1]] += 0.3
    return maps, masks


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.sampled_from((3, 40, 10**6)), st.sampled_from((0.05, 0.3, 1.0)))
def test_pixel_metrics_are_their_definitions(seed: int, levels: int, limit: float) -> None:
    maps, masks = random_case(seed, levels)
    pixels = count_pixels(maps, masks)
    labels = np.concatenate([np.zeros(81, bool), *(mask.ravel() for mask in masks[1:])])
    assert pixel_auroc(pixels, bootstrap=0).value == pytest.approx(roc_auc_score(labels, maps.ravel()), abs=1e-9)
    assert aupro(pixels, fpr_limit=limit, bootstrap=0).value == pytest.approx(slow_aupro(maps, masks, limit), abs=1e-9)


def test_diagonal_neighbours_are_one_region() -> None:
    mask = np.zeros((4, 4), bool)
    mask[0, 0] = mask[1, 1] = mask[3, 3] = True
    anomaly_map = np.zeros((4, 4), np.float32)
    anomaly_map[0, 0] = anomaly_map[1, 1] = 1
    # The region of two pixels is found at once, that of one pixel only together with all normal ones.
    assert aupro(count_pixels([anomaly_map], [mask]), fpr_limit=1.0, bootstrap=0).value == pytest.approx(0.75)


@pytest.fixture(scope="module")
def large_case():
    """292 images at 256x256 from maps of 32x32, as long as the largest shared category."""
    random = np.random.default_rng(0)
    maps = random.gamma(2.0, size=(292, 32, 32)).astype(np.float32)
    masks: list[NDArray[np.bool_] | None] = [None] * 100
    for index in range(100, 292):
        mask = np.zeros((256, 256), bool)
        for _ in range(3):
            y, x = random.integers(0, 220, 2)
            mask[y : y + random.integers(3, 36), x : x + random.integers(3, 36)] = True
            maps[index, y // 8 : y // 8 + 3, x // 8 : x // 8 + 3] += random.gamma(1.5)
        masks.append(mask)
    return maps, masks


def test_large_sets_are_fast_and_still_exact(large_case) -> None:
    maps, masks = large_case
    started = time.process_time()
    pixels = count_pixels(maps, masks)
    auroc, overlap = pixel_auroc(pixels), aupro(pixels)
    assert time.process_time() - started < 15

    labels = np.stack([np.zeros((256, 256), bool) if mask is None else mask for mask in masks])
    full = resize_map(maps, 256, 256)
    normal = np.sort(full[~labels])
    anomalous = full[labels]
    places = np.searchsorted(normal, anomalous, "left") + np.searchsorted(normal, anomalous, "right")
    assert auroc.value == pytest.approx(places.sum() / 2 / len(normal) / len(anomalous), abs=1e-7)

    # AUPRO without ties: a pixel counts from the false-positive rate on at which it is found, up to the limit.
    rate = 1 - np.searchsorted(normal, anomalous, "left") / len(normal)
    gain = np.maximum(0.3 - rate, 0) / 0.3
    weights = []
    for mask in masks[100:]:
        found, _ = ndimage.label(mask, structure=np.ones((3, 3)))
        weights.append(1.0 / np.bincount(found[mask])[found[mask]])
    weight = np.concatenate(weights)
    assert overlap.value == pytest.approx((gain * weight).sum() / weight.sum(), abs=1e-6)


def test_pixel_intervals_agree_with_a_slow_bootstrap(large_case) -> None:
    maps, masks = large_case
    chosen = [*range(0, 20), *range(100, 130)]
    maps, masks = maps[chosen], [None if masks[i] is None else masks[i][::8, ::8] for i in chosen]
    pixels = count_pixels(maps, masks)
    random = np.random.default_rng(5)
    draws = [np.concatenate((random.integers(0, 20, 20), random.integers(20, 50, 30))) for _ in range(120)]
    counted = [count_pixels([maps[i] for i in picks], [masks[i] for i in picks]) for picks in draws]
    for metric in (pixel_auroc, aupro):
        fast = metric(pixels, bootstrap=2000)
        slow = [metric(part, bootstrap=0).value for part in counted]
        # Mean and spread of 120 resamples, which are known better than the ends of their interval.
        assert fast.high - fast.low == pytest.approx(4 * np.std(slow), rel=0.3)
        assert (fast.high + fast.low) / 2 == pytest.approx(np.mean(slow), abs=0.5 * np.std(slow))


def test_a_mask_without_pixels_is_allowed() -> None:
    maps, masks = random_case(1, 10**6)
    masks[1] = np.zeros((9, 9), bool)
    pixels = count_pixels(maps, masks)
    for metric in (pixel_auroc(pixels), aupro(pixels)):
        assert 0 <= metric.low <= metric.value <= metric.high <= 1
    # Drawn alone it has no metric, and such a resample is omitted instead of turning the interval to NaN.
    both = count_pixels(maps[[0, 1, 4]], [None, masks[1], masks[4]])
    assert np.isfinite([aupro(both).low, pixel_auroc(both).low]).all()


@pytest.mark.parametrize("metric", [pixel_auroc, aupro])
def test_a_perfect_and_a_blind_map(metric) -> None:
    mask = np.zeros((8, 8), bool)
    mask[2:4, 2:5] = True
    assert metric(count_pixels([mask.astype(np.float32)], [mask])).value == pytest.approx(1)
    blind = metric(count_pixels([np.ones((8, 8), np.float32)], [mask])).value
    assert blind == pytest.approx(0.5 if metric is pixel_auroc else 0.15)


def test_pixel_metrics_refuse_what_has_none() -> None:
    mask = np.zeros((4, 4), bool)
    mask[0, 0] = True
    good = np.zeros((4, 4), np.float32)
    broken = good.copy()
    broken[1, 1] = np.nan
    with pytest.raises(DataError, match="map 1 holds values that are not finite"):
        count_pixels([good, broken], [mask, None])
    with pytest.raises(DataError, match="no mask at all"):
        count_pixels([good], [None])
    with pytest.raises(DataError, match="no mask has an anomalous one"):
        count_pixels([good], [np.zeros((4, 4), bool)])
    with pytest.raises(DataError, match="normal one"):
        count_pixels([good], [np.ones((4, 4), bool)])
    with pytest.raises(DataError, match="one size"):
        count_pixels([good, good], [mask, np.zeros((5, 4), bool)])
    with pytest.raises(DataError, match="boolean"):
        count_pixels([good], [mask.astype(np.uint8)])
    with pytest.raises(DataError, match="2 anomaly maps and 1 masks"):
        count_pixels([good, good], [mask])
    with pytest.raises(ConfigError, match="limit"):
        aupro(count_pixels([good], [mask]), fpr_limit=0.0)
