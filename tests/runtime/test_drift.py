"""The drift watch: what it lets pass, what it warns of, and that it costs a stream nothing."""

from __future__ import annotations

import logging
import time
from types import SimpleNamespace

import numpy as np
import pytest

from edgead.runtime.decision.baseline import PICTURE_SIGNALS, QUANTILES, SIGNALS, Normals, picture_signals, sharpness
from edgead.runtime.decision.drift import LEAST_PARTS, DriftWatch
from edgead.runtime.frame import Decision, Frame, Result
from edgead.runtime.imaging.view import View
from edgead.runtime.sinks.drift import DriftSink

STEP = {"score": 1.0, "level": 0.1, "brightness": 8.0, "focus": 30.0}
CENTER = {"score": 10.0, "level": 2.0, "brightness": 120.0, "focus": 400.0}


def draw(random: np.random.Generator, **shifts: float) -> dict[str, float]:
    """Signals of one part; a shift is in standard deviations of the good ones."""
    return {name: CENTER[name] + STEP[name] * (random.normal() + shifts.get(name, 0.0)) for name in SIGNALS}


def watch(images: int = 200, **options: int) -> DriftWatch:
    random = np.random.default_rng(0)
    rows = [draw(random) for _ in range(images)]
    return DriftWatch({None: Normals.of({name: [row[name] for row in rows] for name in SIGNALS})}, **options)


def inspected(normals: dict[str | None, Normals]) -> SimpleNamespace:
    return SimpleNamespace(view=View(64, 80), normals=normals)


def test_good_parts_raise_no_alarm_however_many_they_are():
    one, random = watch(), np.random.default_rng(1)
    assert not any(one.observe("0", None, draw(random)) for _ in range(5000))
    assert [state.drifting for state in one.report()] == [False] * len(SIGNALS)


@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize("side", [-1, 1])
def test_a_shift_of_good_parts_raises_one_alarm_and_its_end_takes_it_back(signal, side):
    one, random = watch(window=100), np.random.default_rng(1)
    for _ in range(200):
        one.observe("0", None, draw(random))
    raised = [state for _ in range(200) for state in one.observe("0", None, draw(random, **{signal: 3.0 * side}))]
    assert [(state.signal, state.drifting) for state in raised] == [(signal, True)]
    assert ("above" if side > 0 else "below") in raised[0].explain()
    back = [state for _ in range(200) for state in one.observe("0", None, draw(random))]
    assert [(state.signal, state.drifting) for state in back] == [(signal, False)]
    assert "is back" in back[0].explain()


def test_a_single_bad_part_is_no_drift():
    one, random = watch(), np.random.default_rng(1)
    values = [draw(random, score=50.0 if part % 4 == 0 else 0.0) for part in range(1000)]
    assert not any(one.observe("0", None, value) for value in values)


def test_each_source_and_category_has_a_window_of_its_own():
    random = np.random.default_rng(1)
    one = DriftWatch({"bolt": watch()._normals[None], "nut": watch()._normals[None]})
    for _ in range(300):
        one.observe("dark", "bolt", draw(random, brightness=-4.0))
        one.observe("light", "bolt", draw(random))
        one.observe("light", "nut", draw(random))
        one.observe("light", "unknown", draw(random, brightness=-4.0))
    drifting = [(state.source_id, state.category, state.signal) for state in one.report() if state.drifting]
    assert drifting == [("dark", "bolt", "brightness")]
    assert len(one.report()) == 3 * len(SIGNALS)


def test_nothing_is_said_before_there_are_enough_parts_or_where_normals_are_few():
    random = np.random.default_rng(1)
    one = watch()
    assert not any(one.observe("0", None, draw(random, focus=9.0)) for _ in range(LEAST_PARTS - 1))
    assert one.report() == []
    few = watch(images=19)
    assert not few.active
    assert few.observe("0", None, draw(random)) == []


def test_light_and_focus_are_watched_where_only_a_few_images_were_judged():
    random = np.random.default_rng(1)
    rows = [draw(random) for _ in range(60)]
    judged = {name: [row[name] for row in rows[:12]] for name in ("score", "level")}
    pictures = {name: [row[name] for row in rows] for name in PICTURE_SIGNALS}
    normals = Normals.of({**judged, **pictures})
    assert (normals.images, normals.pictures, normals.count("score"), normals.count("focus")) == (12, 60, 12, 60)
    one = DriftWatch({None: normals})
    assert one.active
    assert one.watches(None)
    changed = [state for _ in range(300) for state in one.observe("0", None, draw(random, score=9.0, focus=-9.0))]
    assert [state.signal for state in changed] == ["focus"]
    assert {state.signal for state in one.report()} == set(PICTURE_SIGNALS)


def test_a_value_that_is_not_finite_is_left_out():
    one, random = watch(), np.random.default_rng(1)
    for _ in range(300):
        one.observe("0", None, {**draw(random), "score": float("nan")})
    assert one.report() == []


def test_normals_that_are_all_alike_still_allow_what_nobody_sees():
    normals = Normals(50, {name: (CENTER[name],) * QUANTILES for name in SIGNALS})
    one = DriftWatch({None: normals})
    assert not any(one.observe("0", None, {**CENTER, "brightness": 121.5}) for _ in range(300))
    assert any(one.observe("0", None, {**CENTER, "brightness": 125.0}) for _ in range(300))


def test_brightness_and_focus_are_those_of_the_green_channel():
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (40, 60, 3), np.uint8)
    signals = picture_signals(image)
    assert signals["brightness"] == pytest.approx(image[:, :, 1].mean())
    wide = image[:, :, 1].astype(float)
    laplacian = [
        [wide[y - 1, x] + wide[y + 1, x] + wide[y, x - 1] + wide[y, x + 1] - 4 * wide[y, x] for x in range(1, 59)]
        for y in range(1, 39)
    ]
    assert signals["focus"] == pytest.approx(np.var(laplacian))
    assert sharpness(np.zeros((2, 50), np.uint8)) == 0.0


def test_the_sink_measures_at_network_size_warns_once_and_takes_no_more_than_it_may(caplog):
    random = np.random.default_rng(0)
    pictures = random.integers(100, 140, (8, 64, 80, 3), np.uint8)
    rows = [{"score": 1.0, "level": 0.5, **picture_signals(pictures[index % 8])} for index in range(30)]
    normals = Normals.of({name: [row[name] for row in rows] for name in SIGNALS})
    sink = DriftSink(DriftWatch({None: normals}), inspected({None: normals}))
    caplog.set_level(logging.WARNING, "edgead.drift")
    taken = 0
    for index in range(400):
        frame = Frame(pictures[index % 8] // 2, index, index * 1_000_000, "0")
        result = Result(1.0, 5.0, Decision.OK, index, frame.timestamp_ns, "0", map=np.full((4, 4), 0.5, np.float32))
        if sink.accepts(result, frame):
            taken += 1
            sink.write(result, frame)
    # A burst, and then 10 a second of the 400 ms that these frames are apart.
    assert 200 <= taken <= 205
    warned = [record.getMessage() for record in caplog.records]
    assert any("brightness has drifted below" in text and "check lamp" in text for text in warned)
    assert len(warned) == len({text.split(" has drifted")[0] for text in warned})


def test_another_bundle_is_watched_with_its_own_normals(caplog):
    caplog.set_level(logging.INFO, "edgead.drift")
    picture = np.random.default_rng(0).integers(100, 140, (64, 80, 3), np.uint8)
    signals = {"score": 1.0, "level": 0.5, **picture_signals(picture)}
    old, new = (Normals(50, {name: (signals[name] * share,) * QUANTILES for name in SIGNALS}) for share in (2.0, 1.0))
    inspector = inspected({None: old})
    sink = DriftSink(DriftWatch({None: old}), inspector)

    def show(parts: int) -> None:
        for index in range(parts):
            frame = Frame(picture, index, index * 10**9, "0")
            result = Result(1.0, 5.0, Decision.OK, index, index * 10**9, "0", map=np.full((4, 4), 0.5, np.float32))
            assert sink.accepts(result, frame)
            sink.write(result, frame)

    show(100)
    assert all(state.drifting for state in sink.watch.report())
    inspector.normals = {None: new}
    show(1)
    assert sink.watch.report() == []
    show(100)
    assert not any(state.drifting for state in sink.watch.report())


def test_the_sink_leaves_out_what_was_not_inspected():
    sink = DriftSink(watch(), inspected({}))
    result = Result(float("nan"), 5.0, Decision.NOT_INSPECTED, 0, 0, "0")
    assert not sink.accepts(result, None)
    assert not sink.accepts(result, Frame(np.zeros((64, 64, 3), np.uint8), 0, 0, "0"))


def test_a_drifting_line_says_so_while_it_runs_on_the_page_and_to_prometheus():
    from edgead.runtime.dashboard.state import Board
    from edgead.runtime.sinks import open_sink
    from edgead.runtime.streaming.stream import Stream

    signals = {"score": 1.0, "level": 0.5, "brightness": 250.0, "focus": 1e9}  # nothing of the made camera is like that
    normals = {None: Normals(50, {name: (value,) * QUANTILES for name, value in signals.items()})}
    drift = DriftSink(DriftWatch(normals), inspected(normals))

    def judge(frame: Frame) -> Result:
        grid = np.full((4, 4), 0.5, np.float32)
        return Result(1.0, 5.0, Decision.OK, frame.index, frame.timestamp_ns, frame.source_id, map=grid)

    board, metrics = Board(time.monotonic_ns), open_sink("prometheus://127.0.0.1:0")
    source = "synthetic://?fps=500&frames=150&width=64&height=64&policy=every"
    with Stream(judge, source, sinks=[drift, metrics]) as stream:
        board.attach(lambda: stream.summary)
        summary = stream.run()
        drifting = {state.signal for state in summary.drift if state.drifting}
        assert drifting == {"brightness", "focus"}
        shown = [one["text"] for one in board.state(0)["drift"] if one["drifting"]]
        assert any("brightness has drifted below" in text for text in shown)
        lines = [line for line in metrics.exposition().decode().splitlines() if line.startswith("edgead_drift{")]
        assert {line.split('signal="')[1].split('"')[0]: float(line.split()[-1]) for line in lines} == {
            "score": 0, "level": 0, "brightness": 1, "focus": 1,
        }  # fmt: skip
