"""Thresholds: the order statistic, its place between scores, its interval, and honesty about small n."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta, expon, norm

from edgead.runtime.decision.threshold import calibrate, false_alarm_interval, normals_needed
from edgead.runtime.errors import ConfigError, DataError


def test_order_statistic_and_halfway_to_the_next_score_where_that_is_near():
    scores = np.arange(1.0, 200.0)  # n = 199: k = ceil(200 * 0.99) = 198
    threshold = calibrate(scores, 0.01)
    assert threshold.value == 198.5
    assert threshold.supported
    assert (threshold.low, threshold.high) == pytest.approx(beta.ppf([0.025, 0.975], 2, 198), abs=1e-9)


def test_too_few_normals_is_said_plainly():
    threshold = calibrate(np.array([1.0, 2.0, 4.0]), 0.01)
    assert not threshold.supported
    assert threshold.value == 5.5  # the largest score plus the median of the last gaps
    assert "cannot support" in threshold.explain()
    assert "is from 3 held-out good parts" in threshold.explain()
    assert "99 good parts" in threshold.explain()
    assert normals_needed(0.01) == 99
    assert calibrate(np.arange(99.0), 0.01).supported
    assert not calibrate(np.arange(98.0), 0.01).supported


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=2, max_size=300), st.sampled_from([0.3, 0.1, 0.01, 0.001]))
def test_above_its_score_also_as_float32_and_the_rate_holds_on_the_calibration_set(scores, target):
    threshold = calibrate(scores, target)
    assert 0.0 <= threshold.low <= threshold.high <= 1.0
    above = np.array(scores) > threshold.value
    if not threshold.supported:
        # Too few to say: it may lie below an odd one, never below the bulk.
        assert above.mean() <= 0.5
        return
    rank = math.ceil((len(scores) + 1) * (1 - target) - 1e-9)
    anchor = sorted(scores)[min(rank, len(scores) - 1) - 1]  # one image alone decides nothing
    if rank == len(scores):
        assert threshold.value > anchor
        return
    larger = [score for score in scores if score > anchor]
    following = np.nextafter(np.float32(anchor), np.float32(np.inf))
    assert threshold.value > anchor
    assert np.float32(threshold.value) > np.float32(anchor)
    assert not larger or threshold.value < min(larger) or min(larger) == following
    assert above.mean() <= target


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=2, max_size=120))
def test_a_higher_target_never_gives_a_higher_threshold(scores):
    targets = [0.001, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5]
    values = [calibrate(scores, target).value for target in targets]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("target", [0.001, 0.01, 0.02])
def test_at_most_one_of_few_normals_lies_above(target):
    usual = norm.ppf((np.arange(59) + 0.5) / 59, 28, 3.5)
    threshold = calibrate([*usual, 70.0], target)  # as of a real image that was overexposed
    assert usual.max() < threshold.value < 70.0
    assert threshold.supported == (target == 0.02)
    assert (threshold.low, threshold.high) == pytest.approx(beta.ppf([0.025, 0.975], 2, 59), abs=1e-9)


@pytest.mark.parametrize("largest", [199.0, 1000.0, 1e6])
def test_one_odd_image_does_not_move_the_threshold_far(largest):
    threshold = calibrate([*np.arange(1.0, 199.0), largest], 0.01)
    assert threshold.value == (198.5 if largest == 199.0 else 199.0)  # a usual gap above 198
    assert (threshold.low, threshold.high) == pytest.approx(beta.ppf([0.025, 0.975], 2, 198), abs=1e-9)


@pytest.mark.parametrize("odd", [60.0, 90.0, 1000.0])
def test_without_enough_normals_one_odd_image_moves_the_threshold_little(odd):
    usual = calibrate([*np.arange(40.0)], 0.01)
    assert usual.value == 40.0  # above the largest, by a usual gap
    moved = calibrate([*np.arange(40.0), odd], 0.01)
    # 12 scores above the edge of 28, their median excess 6.5; half of 1 % of 41 is aimed at.
    extrapolated = 28.0 + 6.5 / math.log(2) * math.log(2 * 12 / (0.01 * 41))
    assert moved.value == pytest.approx(min(extrapolated, odd + 1.0))
    assert (moved.supported, moved.n_normals) == (False, 41)
    if odd > moved.value:
        assert (moved.low, moved.high) == pytest.approx(beta.ppf([0.025, 0.975], 2, 40), abs=1e-9)


def test_the_extrapolated_rate_is_near_the_target_for_an_exponential_tail():
    rng = np.random.default_rng(0)
    rates = [expon.sf(calibrate(rng.standard_exponential(60), 0.01).value) for _ in range(2000)]
    assert 0.01 < np.mean(rates) < 0.02


@pytest.mark.parametrize("score", [0.0, 7.25, -3.0, 1e6])
def test_equal_scores(score):
    for n in (2, 150):
        threshold = calibrate([score] * n, 0.01)
        assert score < threshold.value <= score + 1e-3 * max(abs(score), 1e-3)
        assert np.float32(threshold.value) > score


def test_neighbours_in_float32():
    anchor = np.float32(1e6)
    scores = [float(anchor)] * 98 + [float(np.nextafter(anchor, np.float32(np.inf)))]
    threshold = calibrate(scores, 0.02)
    assert np.float32(threshold.value) > anchor
    # Nothing fits between the two, so that none of the 99 is an anomaly, and the interval says so.
    assert (threshold.low, threshold.high) == pytest.approx(beta.ppf([0.025, 0.975], 1, 99), abs=1e-9)


@pytest.mark.parametrize("target", [0.01, 0.05])
@pytest.mark.parametrize("draw", ["standard_normal", "standard_exponential"])
def test_the_mean_false_alarm_rate_is_the_target(draw, target):
    rng = np.random.default_rng(0)
    survival = {"standard_normal": norm.sf, "standard_exponential": expon.sf}[draw]
    rates = [survival(calibrate(getattr(rng, draw)(200), target).value) for _ in range(800)]
    assert 0.85 * target < np.mean(rates) <= 1.03 * target


def test_interval_covers_the_true_rate():
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(400):
        threshold = calibrate(rng.normal(size=150), 0.05)
        true_rate = 0.5 * np.frompyfunc(__import__("math").erfc, 1, 1)(threshold.value / 2**0.5)
        covered += threshold.low <= true_rate <= threshold.high
    assert covered / 400 > 0.9


@pytest.mark.parametrize(("n", "below"), [(1, 1), (20, 20), (320, 318), (5000, 4950)])
def test_interval_equals_scipy(n, below):
    assert false_alarm_interval(n, below) == pytest.approx(beta.ppf([0.025, 0.975], n - below + 1, below), abs=1e-8)


def test_wrong_input():
    with pytest.raises(DataError, match="at least 2"):
        calibrate([1.0])
    with pytest.raises(DataError, match="no finite score"):
        calibrate([1.0, float("nan")])
    with pytest.raises(ConfigError, match="between 0 and 1"):
        calibrate([1.0, 2.0], 0.0)
