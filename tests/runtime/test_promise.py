"""The promised false-alarm rate, watched: no wrong warning beyond the stated risk, drift found in time, p-values."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from edgead.runtime import Inspector
from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.dashboard.state import Board
from edgead.runtime.decision.conformal import MOST_SCORES, kept_scores, normal_scores, p_value
from edgead.runtime.decision.false_alarm_watch import FalseAlarmWatch
from edgead.runtime.decision.verdict import Limits
from edgead.runtime.device.recalibration import calibrate_bundle
from edgead.runtime.errors import ConfigError
from edgead.runtime.frame import Decision, Inference
from edgead.runtime.imaging.decode import read_image
from edgead.runtime.sinks import open_sink
from edgead.runtime.streaming.stream import Stream
from tests.runtime.faults.doubles import inspector


def broken_at(rejected: np.ndarray, rate: float) -> int | None:
    """The part at which a run is first warned of."""
    watch = FalseAlarmWatch(rate)
    for one in rejected:
        watch.observe(rejected=bool(one))
    return watch.state.broken_at


@pytest.mark.parametrize("rate", [0.01, 0.05])
def test_over_2000_whole_runs_under_the_promise_no_more_than_the_risk_are_warned(rate: float) -> None:
    """400 parts each, looked at after every part; the warnings come early in a run or not at all."""
    random = np.random.default_rng(0)
    warned = sum(broken_at(random.random(400) < rate, rate) is not None for _ in range(2000))
    # 5 % are allowed; about 2 % are seen.
    assert warned <= 100
    assert warned > 0  # a watch that never warns proves nothing


@pytest.mark.parametrize(
    ("rate", "true", "good", "within"),
    [(0.01, 0.05, 0, 450), (0.01, 0.10, 0, 150), (0.05, 0.25, 0, 80), (0.01, 0.10, 2000, 350), (0.05, 0.25, 2000, 250)],
)
def test_a_rate_that_rose_is_found_within_so_many_parts(rate: float, true: float, good: int, within: int) -> None:
    """In 19 of 20 runs, from the start or after many good parts."""
    random = np.random.default_rng(1)
    found = 0
    for _ in range(60):
        at = broken_at(np.concatenate([random.random(good) < rate, random.random(within) < true]), rate)
        found += at is not None
    assert found >= 57


def test_the_evidence_is_a_bet_whose_mean_is_one() -> None:
    """Exactly, by all 2^12 courses of twelve parts with their chances: fair where the rate is the promised one."""
    rate, mean = 0.1, 0.0
    for course in range(1 << 12):
        watch = FalseAlarmWatch(rate)
        bits = [bool(course >> part & 1) for part in range(12)]
        for bit in bits:
            watch.observe(rejected=bit)
        mean += watch.state.evidence * np.prod([rate if bit else 1 - rate for bit in bits])
    assert mean == pytest.approx(1.0, abs=1e-9)


def test_neither_a_long_good_run_nor_one_of_rejects_leaves_the_numbers() -> None:
    watch = FalseAlarmWatch(0.01)
    for _ in range(20_000):
        watch.observe(rejected=False)
    assert 0.0 < watch.state.evidence < 1.0
    for _ in range(5_000):
        watch.observe(rejected=True)
    assert np.isfinite(watch.state.evidence)
    assert watch.state.broken
    assert 20_000 < (watch.state.broken_at or 0) < 20_010
    assert "no longer holds" in watch.state.explain()


@pytest.mark.parametrize(("rate", "risk"), [(0.0, 0.05), (1.0, 0.05), (0.01, 0.0), (float("nan"), 0.05)])
def test_a_rate_or_risk_that_is_none_is_refused(rate: float, risk: float) -> None:
    with pytest.raises(ConfigError, match="must lie between 0 and 1"):
        FalseAlarmWatch(rate, risk=risk)


# p-values


def test_a_good_parts_p_value_is_at_most_u_with_a_chance_of_at_most_u() -> None:
    random = np.random.default_rng(2)
    found = []
    for _ in range(4000):
        scores = random.gamma(2.0, size=40)
        found.append(p_value(float(scores[0]), sorted(scores[1:].tolist())))
    for share in (0.025, 0.1, 0.5):
        assert np.mean(np.array(found) <= share) <= share + 3 * np.sqrt(share * (1 - share) / 4000)
    assert min(found) == 1 / 40


@pytest.mark.parametrize(("score", "expected"), [(0.5, 1.0), (1.0, 1.0), (2.5, 0.5), (3.0, 0.5), (4.0, 0.25)])
def test_a_p_value_counts_scores_not_below(score: float, expected: float) -> None:
    assert p_value(score, [1.0, 2.0, 3.0]) == expected


def test_many_scores_are_thinned_by_rank() -> None:
    kept = kept_scores(np.random.default_rng(0).permutation(20_000).astype(float).tolist())
    assert len(kept) == MOST_SCORES
    assert (kept[0], kept[-1]) == (0.0, 19_999.0)
    assert abs(p_value(15_000.0, kept) - 0.25) < 1e-3


@pytest.mark.parametrize(
    "table", [None, 3, [], {"fp32": "12"}, {"fp32": [2.0, 1.0]}, {"fp32": [1.0, None]}, {"fp32": [True]}, {"fp32": []}]
)
def test_what_is_no_list_of_scores_is_taken_for_absent(table: object) -> None:
    assert normal_scores({"held_out_scores": table}, "fp32", {"fp32": 2.0}) == {}


def test_a_reduced_precision_takes_the_scores_on_its_own_scale() -> None:
    provenance = {"held_out_scores": {"fp32": [1.0, 2.0], "fp32/bolt": [3.0], "int8-cpu/bolt": [5.0]}}
    assert normal_scores(provenance, "int8-cpu", {"fp32": 4.0, "int8-cpu": 8.0}) == {None: (2.0, 4.0)}
    assert normal_scores(provenance, "int8-cpu", {"fp32/bolt": 4.0, "int8-cpu/bolt": 8.0}) == {"bolt": (5.0,)}
    assert normal_scores(provenance, "int8-cpu", {"fp32": -4.0, "int8-cpu": 8.0}) == {}


def test_a_changed_threshold_leaves_p_values_and_a_part_without_score_has_none() -> None:
    limits = Limits(2.0, normal_scores={None: (1.0, 2.0, 3.0)})
    scores = Inference(np.array([2.5, np.nan], np.float32), np.zeros((2, 1, 1), np.float32))
    _, changed = limits.changed(9.0, None, "model")
    assert (limits.judge(scores, 0).p_value, changed.judge(scores, 0).p_value) == (0.5, 0.5)
    assert changed.judge(scores, 0).decision is Decision.OK
    assert limits.judge(scores, 1).p_value is None
    assert Limits(2.0).judge(scores, 0).p_value is None


# On real bundles


@pytest.fixture
def parts(tmp_path):
    from PIL import Image

    random = np.random.default_rng(5)
    (tmp_path / "parts").mkdir()
    for number in range(30):
        picture = random.integers(80, 130, (31, 45, 3), dtype=np.uint8)
        Image.fromarray(picture).save(tmp_path / "parts" / f"{number:02d}.png")
    return tmp_path / "parts"


def test_calibrated_scores_say_how_unusual_a_part_is(make_bundle, parts, tmp_path) -> None:
    out = tmp_path / "new.edgead"
    calibrate_bundle(make_bundle(), parts, out)
    with Bundle.open(out) as bundle:
        scores = bundle.manifest.provenance["held_out_scores"]["fp32"]
    assert len(scores) == 30
    with Inspector.open(out, backend="onnxruntime") as inspect:
        results = [inspect(read_image(file)) for file in sorted(parts.iterdir())]
    assert sorted(result.p_value for result in results) == pytest.approx([(1 + k) / 31 for k in range(1, 31)])
    assert results[0].to_dict()["p_value"] == pytest.approx(results[0].p_value, abs=1e-6)


def test_a_run_of_good_parts_that_are_rejected_breaks_the_promise(make_bundle, parts, tiny_threshold, caplog) -> None:
    """The threshold says 3 % at most; it is set so low that every part is rejected."""
    low = make_bundle(threshold=tiny_threshold.to_dict() | {"value": 0.01})
    metrics = open_sink("prometheus://127.0.0.1:0")
    caplog.set_level(logging.WARNING, "edgead.promise")
    board = Board()
    with Inspector.open(low, backend="onnxruntime") as inspect:
        summary = inspect.stream(parts, sinks=[metrics], known_good=True).run()
        lines = metrics.exposition().decode().splitlines()
    (state,) = summary.promise
    assert (state.parts, state.false_alarms, state.broken, state.rate) == (30, 30, True, 0.03)
    assert (state.broken_at or 99) < 6
    assert [record.message for record in caplog.records if "no longer holds" in record.message]
    assert summary.to_dict()["promise"][0]["broken"] is True
    assert 'edgead_promise_broken{category=""} 1.0' in lines
    board.attach(lambda: summary)
    assert board.state(0)["promise"][0]["text"] == state.explain()


def test_a_run_that_keeps_the_promise_says_so_and_one_not_known_to_be_good_nothing(make_bundle, parts) -> None:
    with Inspector.open(make_bundle(), backend="onnxruntime") as inspect:
        (state,) = inspect.stream(parts, known_good=True).run().promise
        assert (state.parts, state.false_alarms, state.broken) == (30, 0, False)
        assert "nothing speaks against" in state.explain()
        assert inspect.stream(parts).run().promise == ()
        inspect.set_threshold(0.01)  # which promises nothing
        (state,) = inspect.stream(parts, known_good=True).run().promise
        assert state.parts == 0


def test_another_bundle_begins_the_test_anew(make_bundle, parts, tiny_threshold) -> None:
    from edgead.runtime.sinks.promise import PromiseSink

    first, second = make_bundle(), make_bundle("b.edgead", threshold=tiny_threshold.to_dict() | {"high": 0.2})
    with Inspector.open(first, backend="onnxruntime") as inspect:
        sink = PromiseSink(inspect)
        results = [inspect(read_image(file)) for file in sorted(parts.iterdir())[:5]]
        for result in results:
            sink.write(result, None)
        assert (sink.report()[0].parts, sink.report()[0].rate) == (5, 0.03)
        inspect.swap(second)
        sink.write(results[0], None)
        assert (sink.report()[0].parts, sink.report()[0].rate) == (1, 0.2)


def test_without_a_promise_there_is_nothing_to_watch(make_bundle, parts, tiny_threshold) -> None:
    with pytest.raises(ConfigError, match="only an inspector that was opened from a bundle"):
        Stream(lambda frame: frame, parts, known_good=True)
    with pytest.raises(ConfigError, match="edgead calibrate"):
        inspector().stream(parts, known_good=True)
    imported = tiny_threshold.to_dict() | {"n_normals": 0, "low": 0.0, "high": 1.0, "supported": False}
    with (
        Inspector.open(make_bundle(threshold=imported), backend="onnxruntime") as inspect,
        pytest.raises(ConfigError, match="edgead calibrate"),
    ):
        inspect.stream(parts, known_good=True)


def test_the_same_bundle_reloaded_does_not_mend_a_broken_promise(make_bundle, parts, tiny_threshold) -> None:
    from edgead.runtime.sinks.promise import PromiseSink

    low = make_bundle(threshold=tiny_threshold.to_dict() | {"value": 0.01})
    other = make_bundle("b.edgead", threshold=tiny_threshold.to_dict() | {"high": 0.2})
    with Inspector.open(low, backend="onnxruntime") as inspect:
        sink = PromiseSink(inspect)
        results = [inspect(read_image(file)) for file in sorted(parts.iterdir())[:8]]
        for result in results:
            sink.write(result, None)
        assert sink.report()[0].broken
        inspect.swap(low)
        sink.write(results[0], None)
        assert [(state.parts, state.broken) for state in sink.report()] == [(9, True)]
        inspect.swap(other)
        sink.write(inspect(read_image(sorted(parts.iterdir())[0])), None)
        assert [(state.rate, state.broken) for state in sink.report()] == [(0.03, True), (0.2, False)]
