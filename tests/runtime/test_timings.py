"""Percentiles against the exact ones of numpy, in bounded memory."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgead.runtime.status.latency import Histogram, Latency, Timings


@pytest.mark.parametrize(
    "values",
    [
        np.random.default_rng(0).lognormal(2.0, 0.7, 20_000),
        np.random.default_rng(1).uniform(0.01, 900.0, 5_000),
        np.array([3.0]),
        np.array([1.0, 1000.0]),
        np.concatenate([np.full(980, 2.0), np.full(20, 500.0)]),
    ],
    ids=["lognormal", "uniform", "one", "two", "spikes"],
)
def test_percentiles_are_exact_to_one_percent(values):
    histogram = Histogram()
    for value in values:
        histogram.add(float(value))
    summary = histogram.summary()
    for got, share in ((summary.p50, 50), (summary.p95, 95), (summary.p99, 99)):
        exact = np.percentile(values, share, method="inverted_cdf")
        assert got == pytest.approx(exact, rel=0.01)
    assert summary.max == round(values.max(), 4)
    assert summary.count == len(values)


def test_text_and_json_round_the_same_time_to_the_same_digits():
    latency = Latency(1.45497, 1.44498, 2.00499, 9.99495, 9)
    written = latency.to_dict()
    for name, digits in (("p50", "1.46"), ("p95", "1.45"), ("p99", "2.00"), ("max", "9.99")):
        assert f"{getattr(latency, name):.2f}" == f"{written[name]:.2f}" == digits, name


def test_values_beyond_the_range_are_still_counted():
    histogram = Histogram()
    for value in (0.0, -1.0, 1e-9, 1e9):
        histogram.add(value)
    summary = histogram.summary()
    assert summary.count == 4
    assert summary.max == 1e9
    assert summary.p50 <= 1.01e-3


def test_non_finite_values_are_left_out():
    histogram = Histogram()
    histogram.add(math.nan)
    histogram.add(math.inf)
    assert histogram.summary() is None


def test_stages_are_kept_apart_and_bounded():
    timings = Timings()
    assert timings.summary() == (None, {})
    for number in range(200):
        timings.record(10.0, {"network": 8.0, f"made up {number}": 1.0})
    end_to_end, stages = timings.summary()
    assert end_to_end.p50 == pytest.approx(10.0, rel=0.01)
    assert stages["network"].count == 200
    assert stages["network"].p99 == pytest.approx(8.0, rel=0.01)
    assert len(stages) == 64
