"""Shares with their exact intervals, the escapes that scores allow, and what mistakes cost; each computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from edgead.evaluation.costs import Costs, parse_costs
from edgead.evaluation.decisions import ImageScore, by_defect, count_decisions
from edgead.metrics.shares import RATES, Share, allowed_escapes
from edgead.runtime.errors import ConfigError, DataError
from edgead.runtime.frame import Decision


def allowed(normal: list[float], defective: list[float], rates: tuple[float, ...] = RATES) -> list[tuple[float, ...]]:
    labels = [False] * len(normal) + [True] * len(defective)
    return [
        (one.threshold, one.false_alarms.count, one.escapes.count)
        for one in allowed_escapes([*normal, *defective], labels, rates)
    ]


def test_a_share_has_the_exact_interval() -> None:
    from scipy.stats import beta

    for count, n in ((0, 20), (3, 40), (20, 20)):
        share = Share(count, n)
        assert share.value == count / n
        assert share.low == pytest.approx(beta.ppf(0.025, count, n - count + 1) if count else 0, abs=1e-9)
        assert share.high == pytest.approx(beta.ppf(0.975, count + 1, n - count) if count < n else 1, abs=1e-9)
    assert (Share(3, 40).percent, Share(3, 40).interval) == ("7.5 %", "1.6 to 20.4 %")
    nothing = Share(0, 0)
    assert nothing.to_dict() == {"value": None, "low": 0.0, "high": 1.0}
    assert (nothing.percent, nothing.interval) == ("–", "–")


def test_the_threshold_is_the_smallest_that_keeps_the_rate() -> None:
    normal = [float(score) for score in range(1, 41)]
    # 40 good images: none may be rejected at 0 and 1 %, two at 5 %.
    assert allowed(normal, [40.0, 40.5, 38.0, 38.5, 2.0]) == [(40.0, 0, 4), (40.0, 0, 4), (38.0, 2, 2)]
    hundred = [float(score) for score in range(100)]
    assert [point[1] for point in allowed(hundred, [1.0])] == [0, 1, 5]
    assert allowed(hundred, [1.0], (0.29,))[0][:2] == (70.0, 29)  # 0.29 * 100 is 28.999999999999996


def test_a_tie_is_an_escape_and_no_false_alarm() -> None:
    # Two may be rejected, but the three highest are equal: rejecting any of them rejects all.
    normal = [1.0] * 37 + [5.0] * 3
    assert allowed(normal, [5.0, 5.1, 1.0])[2] == (5.0, 0, 2)
    assert allowed([2.0] * 20, [2.0, 3.0]) == [(2.0, 0, 1)] * 3


@pytest.mark.parametrize("seed", range(5))
def test_every_smaller_threshold_breaks_the_rate(seed: int) -> None:
    random = np.random.default_rng(seed)
    normal = np.round(random.normal(size=60), 1)
    for point in allowed_escapes([*normal, 9.0], [False] * 60 + [True]):
        most = int(point.rate * 60)
        assert (normal > point.threshold).sum() == point.false_alarms.count <= most
        assert (normal > np.nextafter(point.threshold, -np.inf)).sum() > most


def test_no_defect_or_every_defect_passes() -> None:
    assert [point[2] for point in allowed([1.0, 2.0, 3.0], [4.0, 5.0])] == [0, 0, 0]
    assert [point[2] for point in allowed([1.0, 2.0, 3.0], [0.5, 0.6])] == [2, 2, 2]
    (point,) = allowed_escapes([1.0, 2.0], [False, False], (0.0,))
    assert point.to_dict()["escape_rate"]["value"] is None


def test_scores_that_say_nothing_are_refused() -> None:
    with pytest.raises(DataError, match="no good image"):
        allowed_escapes([1.0], [True])
    with pytest.raises(DataError, match="not finite"):
        allowed_escapes([1.0, float("nan")], [False, True])


def image(label: str, score: float, decision: Decision | None = None) -> ImageScore:
    decided = decision or (Decision.ANOMALY if score > 1 else Decision.OK)
    return ImageScore(f"{label}/{score}.png", label, label != "good", score, 1.0, decided)


def test_kinds_of_defects_are_counted_apart() -> None:
    images = [image("good", 0.5), image("good", 2.0), image("dent", 0.4), image("dent", 3.0), image("scratch", 4.0)]
    # A router's stranger is no escape, though its nearest head gave it a low score.
    images.append(image("scratch", 0.1, Decision.NOT_INSPECTED))
    dent, scratch = by_defect(images)
    assert (dent.label, dent.images, dent.escapes, dent.not_inspected) == ("dent", 2, 1, 0)
    assert (scratch.label, scratch.images, scratch.escapes, scratch.not_inspected) == ("scratch", 2, 0, 1)
    assert dent.to_dict()["escape_rate"]["value"] == 0.5
    assert scratch.escape_share == Share(0, 1)
    found = count_decisions(images)
    assert found.to_dict() == {"false_alarms": 1, "normal": 2, "escapes": 1, "anomalous": 3, "not_inspected": 1}


def test_costs_of_a_thousand_parts() -> None:
    # 20 defective parts of which a quarter passes, 980 good ones of which a tenth is rejected.
    assert float(Costs(50.0, 2.0, 0.02).of(0.25, 0.1)) == pytest.approx(20 * 0.25 * 50 + 980 * 0.1 * 2)
    assert parse_costs(None, None, 0.02) is None
    with pytest.raises(ConfigError, match="both --cost-escape and --cost-false-alarm"):
        parse_costs(1.0, None, 0.02)
