"""DeLong's test against its definition by pairs, a bootstrap, and what must hold by symmetry."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgead.metrics.delong import compare_auroc, holm
from edgead.metrics.metrics import image_auroc
from edgead.runtime.errors import DataError


def by_pairs(first, second, anomalous):
    """Difference and variance by comparing every anomalous image with every normal one (DeLong 1988, eq. 4 to 7)."""
    anomalous = np.asarray(anomalous, bool)
    placements = []
    for rows in (np.atleast_2d(first), np.atleast_2d(second)):
        wins = [
            (row[anomalous][:, None] > row[~anomalous]) + 0.5 * (row[anomalous][:, None] == row[~anomalous])
            for row in rows
        ]
        placements.append(np.mean(wins, axis=0))
    kernel = placements[0] - placements[1]
    m, n = kernel.shape
    by_anomalous, by_normal = kernel.mean(axis=1), kernel.mean(axis=0)
    value = kernel.mean()
    variance = ((by_anomalous - value) ** 2).sum() / (m - 1) / m + ((by_normal - value) ** 2).sum() / (n - 1) / n
    return value, variance


def drawn(seed, images=80, seeds=1, ties=False):
    random = np.random.default_rng(seed)
    anomalous = random.random(images) < 0.4
    anomalous[:4] = [True, True, False, False]
    part = random.normal(size=images)
    rows = [1.2 * anomalous + 0.7 * part + random.normal(size=images) for _ in range(seeds)]
    scores = np.round(rows, 0 if ties else 12)
    return scores, anomalous, part, random


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seeds", [(1, 1), (3, 3), (2, 5)])
def test_equals_the_definition_by_pairs(ties, seeds):
    first, anomalous, part, random = drawn(sum(seeds), seeds=seeds[0], ties=ties)
    second = np.round(
        [0.8 * anomalous + 0.7 * part + random.normal(size=80) for _ in range(seeds[1])], 0 if ties else 12
    )
    found = compare_auroc(first, second, anomalous)
    value, variance = by_pairs(first, second, anomalous)
    assert found.value == pytest.approx(value, abs=1e-12)
    assert (found.high - found.low) / 2 / 1.959963984540054 == pytest.approx(math.sqrt(variance), rel=1e-10)
    assert found.p == pytest.approx(math.erfc(abs(value) / math.sqrt(2 * variance)), rel=1e-9)
    assert found.images == 80
    # The difference is that of the figures everyone knows.
    means = [np.mean([image_auroc(row, anomalous, bootstrap=0).value for row in rows]) for rows in (first, second)]
    assert found.value == pytest.approx(means[0] - means[1], abs=1e-12)


@given(st.integers(0, 10_000), st.integers(4, 30))
@settings(max_examples=40, deadline=None)
def test_equals_the_definition_on_any_small_test_set(seed, images):
    random = np.random.default_rng(seed)
    anomalous = np.arange(images) < max(2, images // 3)
    first, second = random.integers(0, 5, (2, images)).astype(float)
    value, variance = by_pairs(first, second, anomalous)
    found = compare_auroc(first, second, anomalous)
    assert found.value == pytest.approx(value, abs=1e-12)
    if variance > 1e-20:
        assert found.low == pytest.approx(max(-1, value - 1.959963984540054 * math.sqrt(variance)), abs=1e-9)


def test_interval_agrees_with_a_bootstrap_of_the_same_images():
    first, anomalous, part, random = drawn(7, images=400, seeds=3)
    second = [0.9 * anomalous + 0.7 * part + random.normal(size=400) for _ in range(3)]
    found = compare_auroc(first, second, anomalous)
    draws = np.mean([image_auroc(row, anomalous, bootstrap=2000, seed=5).draws for row in first], axis=0) - np.mean(
        [image_auroc(row, anomalous, bootstrap=2000, seed=5).draws for row in second], axis=0
    )
    low, high = np.percentile(draws, (2.5, 97.5))
    width = found.high - found.low
    assert low == pytest.approx(found.low, abs=0.12 * width)
    assert high == pytest.approx(found.high, abs=0.12 * width)
    # Pairing is what makes it narrow: images drawn separately for the two would give this.
    apart = math.hypot(
        *(np.std(np.mean([image_auroc(r, anomalous, seed=5).draws for r in rows], axis=0)) for rows in (first, second))
    )
    assert np.std(draws) < 0.9 * apart


def test_p_is_uniform_where_there_is_no_difference():
    values = []
    for seed in range(300):
        first, anomalous, part, random = drawn(seed, images=120)
        second = 1.2 * anomalous + 0.7 * part + random.normal(size=120)
        values.append(compare_auroc(first, second, anomalous).p)
    # Of 300, 15 ± 3.8 lie below 0.05 where the test keeps its level.
    assert 4 <= sum(p < 0.05 for p in values) <= 28
    assert 0.42 < np.mean(values) < 0.58


def test_turning_it_round_turns_the_sign():
    first, anomalous, part, random = drawn(3)
    second = anomalous + part + random.normal(size=80)
    one, other = compare_auroc(first, second, anomalous), compare_auroc(second, first, anomalous)
    assert one.value == pytest.approx(-other.value)
    assert (one.low, one.high) == (pytest.approx(-other.high), pytest.approx(-other.low))
    assert one.p == pytest.approx(other.p)
    scaled = compare_auroc(np.exp(first), 3 * second - 7, anomalous)  # AUROC knows ranks only
    assert scaled.p == pytest.approx(one.p)


def test_the_same_scores_differ_by_nothing():
    first, anomalous, *_ = drawn(4)
    found = compare_auroc(first, first, anomalous)
    assert (found.value, found.low, found.high, found.p) == (0, 0, 0, 1.0)
    perfect = np.where(anomalous, 2.0, 1.0)
    assert compare_auroc(perfect, perfect * 3, anomalous).p == 1.0


def test_a_difference_without_variance_has_no_p():
    anomalous = np.array([True, True, False, False])
    found = compare_auroc([2.0, 2, 1, 1], [1.0, 1, 2, 2], anomalous)
    assert (found.value, found.p) == (1.0, None)


@pytest.mark.parametrize(
    ("first", "second", "anomalous", "said"),
    [
        ([1.0, 2, 3], [1.0, 2, 3], [True, False, False], "at least two"),
        ([1.0, 2, 3, 4], [1.0, 2, 3], [True, True, False, False], "one score an image"),
        ([1.0, 2, 3, math.nan], [1.0, 2, 3, 4], [True, True, False, False], "finite"),
    ],
)
def test_what_cannot_be_tested_is_refused(first, second, anomalous, said):
    with pytest.raises(DataError, match=said):
        compare_auroc(first, second, anomalous)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, None, 0.9]) == [1.0, None, 1.0]
    assert holm([]) == []
