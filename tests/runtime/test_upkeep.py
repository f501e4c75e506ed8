"""What a stream looks after by itself: another bundle, self-tests, drift, and the log of what was done."""

from __future__ import annotations

import logging
import threading

import numpy as np
import pytest

from edgead.runtime.dashboard.sink import LivePage
from edgead.runtime.decision.baseline import QUANTILES, SIGNALS
from edgead.runtime.decision.drift import DriftWatch
from edgead.runtime.errors import ConfigError
from edgead.runtime.frame import Decision
from edgead.runtime.inspection.inspector import Inspector
from edgead.runtime.sinks import Sink
from edgead.runtime.sinks.drift import DriftSink
from edgead.runtime.streaming.config import StreamConfig
from edgead.runtime.streaming.stream import Stream
from tests.runtime.faults.doubles import Runner, drifted, fall_ill, inspector, recover
from tests.waiting import LONG_S, lines, wait_for

pytest.importorskip("onnxruntime")
CAMERA = "synthetic://?fps=200&width=64&height=64&policy=every"


class Told(Sink):
    """Keeps what a stream tells its sinks."""

    name = "told"
    keeps_frames = False

    def __init__(self):
        self.events = []

    def note(self, event, fields):
        self.events.append((event, dict(fields)))

    def write(self, result, frame):
        pass

    @property
    def names(self):
        return [event for event, _ in self.events]


def judged(runner):
    return runner.stream.summary.frames.inspected


def newest(runner):
    return runner.results[-1] if runner.results else None


# Another bundle


def test_reload_goes_on_with_the_bundle_as_it_is_now(make_bundle, tiny_threshold, caplog):
    bundle = make_bundle("line.edgead")
    other = make_bundle("other.edgead", threshold={**tiny_threshold.to_dict(), "value": 19.0})
    told = Told()
    with Inspector.open(bundle, backend="onnxruntime", threads=1) as inspect:
        before = inspect.bundle[1]
        runner = Runner(inspect.stream(CAMERA, sinks=[told]))
        wait_for(lambda: judged(runner) > 3)
        other.replace(bundle)
        runner.stream.reload()
        wait_for(lambda: newest(runner).threshold == 19.0)
        wait_for(lambda: "reloaded" in told.names)
        after = inspect.bundle[1]
        bundle.write_bytes(b"damaged")
        runner.stream.reload()
        wait_for(lambda: "not reloaded" in told.names)
        count = judged(runner)
        wait_for(lambda: judged(runner) > count + 3)
        results = runner.end()
    assert told.names == ["reload", "reloaded", "reload", "not reloaded"]
    assert [fields["sha256"] for _, fields in told.events] == [before, after, after, after]
    assert before != after
    assert [result.threshold for result in results] == sorted((result.threshold for result in results), reverse=True)
    assert "was not reloaded, and the old one goes on" in caplog.text


def test_what_is_asked_for_before_the_start_is_done_then_and_nothing_after_the_end(make_bundle):
    told = Told()
    with Inspector.open(make_bundle(), backend="onnxruntime") as inspect:
        stream = inspect.stream(CAMERA, sinks=[told])
        stream.reload()
        runner = Runner(stream)
        wait_for(lambda: "reloaded" in told.names)
        runner.end()
        stream.reload()
        stream.self_test()
    assert told.names == ["reload", "reloaded"]
    wait_for(lambda: not [thread for thread in threading.enumerate() if thread.name == "edgead-upkeep"])


# Self-tests


def test_nothing_is_inspected_from_a_failed_self_test_to_one_that_passes(make_bundle, caplog):
    caplog.set_level(logging.INFO, "edgead.stream")
    told = Told()
    with Inspector.open(make_bundle(), backend="onnxruntime") as inspect:
        runner = Runner(inspect.stream(CAMERA, sinks=[told]))
        runner.stream.self_test()
        wait_for(lambda: told.names == ["self-test passed"])
        fall_ill(inspect, drifted)
        runner.stream.self_test()
        # A busy machine may be too slow for the camera, which is another reason.
        wait_for(lambda: runner.results and "self-test failed: " in (newest(runner).reason or ""))
        recover(inspect)
        runner.stream.self_test()
        wait_for(lambda: newest(runner).decision is not Decision.NOT_INSPECTED)
        wait_for(lambda: len(told.names) == 3)
        runner.end()
    assert told.names == ["self-test passed", "self-test failed", "self-test passed"]
    assert "the score differs by" in told.events[1][1]["problems"][0]
    assert "nothing is inspected from now on" in caplog.text
    assert "passes again" in caplog.text


def test_self_tests_come_by_themselves(make_bundle):
    told = Told()
    with Inspector.open(make_bundle(), backend="onnxruntime") as inspect:
        runner = Runner(inspect.stream(CAMERA, sinks=[told], self_test_hours=1e-6))
        wait_for(lambda: len(told.names) > 2)
        runner.end()
    assert set(told.names) == {"self-test passed"}


@pytest.mark.parametrize("judge", [inspector, lambda: inspector().__call__], ids=["no bundle", "callable"])
def test_without_a_bundle_there_is_nothing_to_reload_and_nothing_to_replay(judge):
    with Stream(judge(), CAMERA) as stream:
        for ask in (stream.reload, stream.self_test):
            with pytest.raises(ConfigError, match=r"needs an inspector that was opened from a bundle: Inspector\.open"):
                ask()
    with pytest.raises(ConfigError, match="self_test_hours needs an inspector that was opened from a bundle"):
        Stream(judge(), CAMERA, self_test_hours=1.0)


def test_every_sink_is_told_and_one_that_raises_prevents_a_reload_only(make_bundle):
    class Full(Told):
        name = "full"

        def note(self, event, fields):
            super().note(event, fields)
            raise OSError("disk full")

    told = Told()
    with Inspector.open(make_bundle(), backend="onnxruntime") as inspect:
        runner = Runner(inspect.stream(CAMERA, sinks=[Full(), told]))
        runner.stream.reload()
        runner.stream.self_test()
        wait_for(lambda: len(told.names) == 3)
        runner.end()
    assert told.names == ["reload", "not reloaded", "self-test passed"]
    assert told.events[1][1]["reason"] == "disk full"


# The audit log of the live page


def test_the_audit_log_holds_what_was_done_and_where_it_cannot_nothing_is_reloaded(make_bundle, tmp_path, caplog):
    bundle, audit = make_bundle(), tmp_path / "audit.jsonl"
    with Inspector.open(bundle, backend="onnxruntime") as inspect:
        page = LivePage("127.0.0.1:0", control=inspect, audit=audit)
        runner = Runner(inspect.stream(CAMERA, sinks=[page]))
        runner.stream.reload()
        runner.stream.self_test()
        wait_for(lambda: len(lines(audit)) == 3)
        records = lines(audit)
        audit.unlink()
        audit.mkdir()
        opened = inspect.network.describe()
        inspect.set_threshold(33.0)
        runner.stream.reload()
        wait_for(lambda: "was not reloaded, and the old one goes on: cannot write the audit log" in caplog.text)
        assert (inspect.network.describe(), inspect.threshold) == (opened, 33.0)
        runner.end()
    assert [record["event"] for record in records] == ["reload", "reloaded", "self-test passed"]
    assert all(record["schema"] == "edgead.action/1" and record["model"] == "tiny" for record in records)
    assert records[0]["bundle"] == str(bundle)


# Drift


@pytest.fixture
def bright(make_bundle):
    """A bundle whose good parts were far brighter and sharper than any of this file."""
    signals = {"score": 10.0, "level": 5.0, "brightness": 250.0, "focus": 1e9}
    normals = {"images": 50, "quantiles": {name: [signals[name]] * QUANTILES for name in SIGNALS}}
    return make_bundle(categories={"plate": {"n_train": 54, "normals": normals}})


@pytest.fixture
def parts(tmp_path):
    """A folder, because a camera's frames may be missed by a sink that is too slow."""
    from PIL import Image

    (tmp_path / "parts").mkdir()
    for number in range(60):
        Image.fromarray(np.full((8, 10, 3), 100, np.uint8)).save(tmp_path / "parts" / f"{number:02d}.png")
    return tmp_path / "parts"


def test_a_stream_watches_drift_where_normal_parts_are_known(bright, parts):
    with Inspector.open(bright, backend="onnxruntime") as inspect:
        summary = inspect.stream(parts, drain_s=LONG_S).run()
        assert {"brightness", "focus"} <= {state.signal for state in summary.drift if state.drifting}
        assert [report.name for report in summary.sinks] == ["drift watch"]
        without = inspect.stream(parts, drift=False).run()
        assert (without.drift, without.sinks) == ((), ())


def test_a_drift_watch_of_ones_own_is_the_only_one(bright, parts):
    with Inspector.open(bright, backend="onnxruntime") as inspect:
        own = DriftSink(DriftWatch(inspect.normals), inspect)
        summary = inspect.stream(parts, sinks=[own], drain_s=LONG_S).run()
        assert list(summary.drift) == own.watch.report() != []
        assert len(summary.sinks) == 1


def test_where_normal_parts_are_not_known_nothing_is_watched(make_bundle, parts):
    with Inspector.open(make_bundle(), backend="onnxruntime") as inspect:
        assert inspect.stream(parts).run().sinks == ()


# What is asked for


def test_a_keyword_counts_more_than_the_config(parts):
    config = StreamConfig(max_frames=5, drift=False)
    assert inspector().stream(parts, config=config).run().frames.inspected == 5
    assert inspector().stream(parts, config=config, max_frames=3).run().frames.inspected == 3
    assert len(list(Stream(inspector(), parts, config=config))) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(({name: 0}, f"{name} must be above 0, not 0") for name in ("max_frames", "queue_size", "batch")),
        *(({name: -1.0}, f"{name} must be above 0") for name in ("duration_s", "hang_s", "give_up_s")),
        ({"self_test_hours": float("nan")}, "self_test_hours must be above 0, not nan"),
        ({"batch_deadline_s": -0.1}, "batch_deadline_s must be 0 or more"),
    ],
)
def test_numbers_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        StreamConfig(**options)
