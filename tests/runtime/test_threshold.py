"""Thresholds: the order statistic, its place between scores, its interval, and honesty about small n."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta

from edgead.runtime.decision.threshold import calibrate, false_alarm_interval, normals_needed
from edgead.runtime.errors import ConfigError, DataError


def test_order_statistic_midway_to_the_next_score():
    scores = np.arange(1.0, 200.0)  # n = 199: k = ceil(200 * 0.99) = 198
    threshold = calibrate(scores, 0.01)
    assert threshold.value == 198.5
    assert threshold.supported
    assert (threshold.low, threshold.high) == pytest.approx(beta.ppf([0.025, 0.975], 2, 198), abs=1e-9)


def test_too_few_normals_is_said_plainly():
    threshold = calibrate(np.array([1.0, 2.0, 4.0]), 0.01)
    assert not threshold.supported
    assert threshold.value == 5.0  # the largest score plus half the last gap
    assert "cannot support" in threshold.explain()
    assert "99 good parts" in threshold.explain()
    assert normals_needed(0.01) == 99
    assert calibrate(np.arange(99.0), 0.01).supported
    assert not calibrate(np.arange(98.0), 0.01).supported


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=2, max_size=300), st.sampled_from([0.3, 0.1, 0.01, 0.001]))
def test_never_on_a_score_and_rate_holds_on_the_calibration_set(scores, target):
    threshold = calibrate(scores, target)
    assert threshold.value not in scores
    assert np.mean(np.array(scores) > threshold.value) <= target
    assert 0.0 <= threshold.low <= threshold.high <= 1.0


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
