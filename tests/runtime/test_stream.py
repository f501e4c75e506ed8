"""The camera loop: what is judged, in which order, what is counted, and that nothing is left behind."""

from __future__ import annotations

import json
import os
import queue
import signal
import threading
import time
from operator import attrgetter

import numpy as np
import pytest
from PIL import Image

from edgead.runtime.backends import BackendInfo
from edgead.runtime.errors import BackendError, ConfigError, SourceError, SourceLost
from edgead.runtime.frame import BadFrame, Decision, Frame, Inference
from edgead.runtime.imaging.decode import read_image
from edgead.runtime.inspection.inspector import Inspector
from edgead.runtime.sinks import Sink
from edgead.runtime.sources import Delivery, Source
from edgead.runtime.sources.folder import list_images
from edgead.runtime.sources.push import PushSource
from edgead.runtime.streaming.stream import Stream
from tests.waiting import LONG_S, wait_for

SHAPE = (8, 8, 3)


class Brightness:
    """A real backend: the score is the mean grey value, the map the picture itself; it may take its time."""

    def __init__(self, delay=0.0, gate=None):
        self.delay = delay
        self.gate = gate
        self.entered = threading.Event()

    def run(self, images):
        self.entered.set()
        if self.gate is not None:
            assert self.gate.wait(LONG_S)
        time.sleep(self.delay)
        score = images.mean(axis=(1, 2, 3), dtype=np.float64)
        if (score == 13).any():
            raise BackendError("unlucky")
        if (score == 14).any():
            raise ZeroDivisionError("a defect of the library")
        score[score == 15] = np.nan
        return Inference(score.astype(np.float32), images[..., 0].astype(np.float32))

    def describe(self):
        return BackendInfo("brightness", "numpy", "fp32", "cpu", 1, np.__version__)

    def close(self):
        pass


def inspector(backend=None, **options):
    return Inspector(backend or Brightness(**options), height=8, width=8, threshold=100.0)


class Camera(Source):
    """A live source that delivers what the test pushes."""

    def __init__(self, policy="newest", max_age_s=None, name="camera", live=True):
        self.source_id = name
        self.live = live
        self.delivery = Delivery(policy, max_age_s)
        self.closed = False
        self._queue = queue.Queue()
        self._count = 0

    def push(self, level=50, age_s=0.0):
        image = np.full(SHAPE, level, np.uint8)
        stamp = time.monotonic_ns() - int(age_s * 1e9)
        self._queue.put(Frame(image, self._count, stamp, self.source_id))
        self._count += 1

    def push_item(self, item):
        self._queue.put(item)

    def end(self):
        self._queue.put(None)

    def frames(self):
        while (item := self._queue.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item

    def close(self):
        self.closed = True
        self._queue.put(None)


class Collector(Sink):
    name = "collector"
    keeps_frames = True

    def __init__(self):
        self.got = []
        self.closed = 0

    def write(self, result, frame):
        self.got.append((result.frame_index, result.decision, frame))

    def close(self):
        self.closed += 1


class Runner:
    """Runs a stream in a thread, like a program with a user interface does."""

    def __init__(self, stream):
        self.stream = stream
        self.results = []
        self.thread = threading.Thread(target=lambda: self.results.extend(stream), name="runner")
        self.thread.start()

    def join(self):
        self.thread.join(LONG_S)
        assert not self.thread.is_alive()
        return self.results


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    wait_for(lambda: not [t for t in threading.enumerate() if t not in before and t.name.startswith("edgead")])


@pytest.fixture
def folder(tmp_path):
    def make(count, name="parts"):
        (tmp_path / name).mkdir()
        for number in range(count):
            Image.fromarray(np.full(SHAPE, 20 + number, np.uint8)).save(tmp_path / name / f"{number:03d}.png")
        return tmp_path / name

    return make


def indices(results):
    return [result.frame_index for result in results]


def adds_up(counts):
    return counts.captured == counts.inspected + counts.in_flight + sum(
        [*counts.dropped.values(), *counts.failed.values()]
    )


# Policies


def test_newest_judges_the_newest_frame_next_and_never_holds_the_camera_up():
    # The defect of a peer (full queue: 1 s blocked, the oldest frame thrown away, the new one not queued either).
    gate, camera = threading.Event(), Camera()
    backend = Brightness(gate=gate)
    runner = Runner(Stream(inspector(backend), camera))
    camera.push()
    assert backend.entered.wait(LONG_S)
    for _ in range(100):
        camera.push()
    # The inspector is busy all the while.
    wait_for(lambda: runner.stream.summary.frames.captured == 101)
    gate.set()
    camera.end()
    assert indices(runner.join()) == [0, 100]
    frames = runner.stream.summary.frames
    assert (frames.inspected, dict(frames.dropped), dict(frames.failed)) == (2, {"superseded": 99}, {})


def test_every_from_a_folder_loses_nothing(folder):
    stream = Stream(inspector(delay=0.002), folder(40))
    assert indices(stream) == list(range(40))
    assert stream.summary.frames.inspected == stream.summary.frames.captured == 40


def test_every_from_a_camera_gives_one_result_a_frame_in_order():
    gate, camera = threading.Event(), Camera("every")
    backend = Brightness(gate=gate)
    runner = Runner(Stream(inspector(backend), camera, queue_size=4))
    camera.push()
    assert backend.entered.wait(LONG_S)
    for _ in range(20):
        camera.push()
    wait_for(lambda: runner.stream.summary.frames.captured == 21)
    gate.set()
    camera.end()
    results = runner.join()
    assert indices(results) == list(range(21))
    judged = [result.frame_index for result in results if result.decision is Decision.OK]
    assert judged == [0, 17, 18, 19, 20]
    assert {r.reason for r in results if r.decision is Decision.NOT_INSPECTED} == {"not judged in time"}
    frames = runner.stream.summary.frames
    assert (frames.inspected, dict(frames.dropped), dict(frames.failed)) == (5, {}, {"not judged in time": 16})


@pytest.mark.parametrize("policy", ["newest", "every"])
def test_frames_over_their_age_are_never_judged(policy):
    camera = Camera(policy, max_age_s=LONG_S)
    runner = Runner(Stream(inspector(), camera))
    camera.push(age_s=2 * LONG_S)
    wait_for(lambda: runner.stream.summary.frames.captured == 1 and not runner.stream.summary.frames.in_flight)
    camera.push()
    wait_for(lambda: runner.stream.summary.frames.inspected == 1)
    camera.end()
    results = runner.join()
    frames = runner.stream.summary.frames
    if policy == "newest":
        assert indices(results) == [1]
        assert dict(frames.dropped) == {"stale": 1}
    else:
        assert [result.decision for result in results] == [Decision.NOT_INSPECTED, Decision.OK]
        assert results[0].reason == "not judged in time"
        assert dict(frames.failed) == {"not judged in time": 1}


def test_a_foreign_clock_is_not_inspected_instead_of_ageless():
    camera = Camera("every", max_age_s=1.0)
    camera.push_item(Frame(np.zeros(SHAPE, np.uint8), 0, time.time_ns() + 10**18, "camera"))
    camera.end()
    (result,) = Stream(inspector(), camera)
    assert result.decision is Decision.NOT_INSPECTED
    assert "time.monotonic_ns" in result.reason


def test_sources_take_turns():
    gate = threading.Event()
    cameras = [Camera("every", name=name, live=False) for name in ("left", "right")]
    for camera in cameras:
        for _ in range(5):
            camera.push()
        camera.end()
    runner = Runner(Stream(inspector(gate=gate), cameras))
    wait_for(lambda: runner.stream.summary.frames.captured >= 6)
    gate.set()
    names = [result.source_id for result in runner.join()]
    assert sorted(names) == ["left"] * 5 + ["right"] * 5
    assert abs(names[:6].count("left") - 3) <= 1
    summary = runner.stream.summary
    assert [source.frames.inspected for source in summary.sources.values()] == [5, 5]
    assert summary.frames.inspected == 10


# Failures


def test_failures_of_single_frames_are_not_inspected_and_the_stream_goes_on():
    camera = Camera("every", live=False)
    for level in (50, 13, 14, 15, 200):
        camera.push(level)
    camera.push_item(BadFrame(5, time.monotonic_ns(), "camera", "x.png is no image at rtsp://a:secret@h/1"))
    camera.push_item(Frame(np.zeros((4, 4), np.uint16), 6, time.monotonic_ns(), "camera"))
    camera.push(60)
    camera.end()
    stream = Stream(inspector(), camera)
    results = list(stream)
    kinds = [result.decision.value for result in results]
    assert kinds == ["OK", *["NOT_INSPECTED"] * 3, "ANOMALY", *["NOT_INSPECTED"] * 2, "OK"]
    assert "unlucky" in results[1].reason
    assert "a defect of the library" in results[2].reason
    assert results[3].reason == "non-finite score"
    assert "secret" not in results[5].reason
    assert all(result.threshold == 100.0 for result in results)
    summary = stream.summary
    assert summary.decisions == {"OK": 2, "ANOMALY": 1, "NOT_INSPECTED": 5}
    assert (summary.frames.inspected, sum(summary.frames.failed.values())) == (3, 5)
    assert summary.frames.failed["unreadable frame"] == 1
    assert summary.errors == []


@pytest.mark.parametrize("answer", [None, "OK", float("nan")])
def test_an_inspector_that_answers_nonsense_never_passes_a_part(answer):
    def judge(frame):
        if isinstance(answer, float):
            return inspector()(frame).__class__(answer, 1.0, Decision.OK, frame.index, frame.timestamp_ns)
        return answer

    camera = Camera("every", live=False)
    camera.push()
    camera.end()
    (result,) = Stream(judge, camera)
    assert result.decision is Decision.NOT_INSPECTED
    assert result.reason


def test_a_lost_source_ends_the_loop_with_its_error_after_all_results():
    left, right = (Camera("every", name=name, live=False) for name in ("left", "right"))
    left.push()
    left.push_item(SourceLost("left stopped after 1 frames"))
    for _ in range(3):
        right.push()
    right.end()
    results = []
    stream = Stream(inspector(), [left, right])
    with pytest.raises(SourceLost, match="left stopped"):
        results.extend(stream)
    assert len(results) == 4
    assert stream.summary.errors == ["left stopped after 1 frames"]
    assert stream.summary.sources["right"].error is None


def test_run_reports_a_source_that_breaks_in_its_own_way():
    camera = Camera("every")
    camera.push()
    camera.push_item(KeyError("driver table"))
    summary = Stream(inspector(), camera).run()
    assert summary.frames.inspected == 1
    assert summary.errors == ["camera failed: KeyError: 'driver table'"]


def test_a_driver_that_never_returns_is_named_and_does_not_hold_the_end_up():
    release, returned = threading.Event(), threading.Event()

    class Hanging(Camera):
        def frames(self):
            yield Frame(np.zeros(SHAPE, np.uint8), 0, time.monotonic_ns(), "camera")
            release.wait(LONG_S)
            returned.set()

    stream = Stream(inspector(), Hanging(), max_frames=1, drain_s=0.2)
    try:
        summary = stream.run()
        assert not returned.is_set()
        assert "does not return from its driver" in summary.errors[0]
    finally:
        release.set()


# Ends


def test_leaving_the_loop_early_leaves_nothing_behind():
    # A sink of an earlier test in this process may still be ending.
    before = set(threading.enumerate())
    camera, sink = Camera("every", live=False), Collector()
    for _ in range(50):
        camera.push()
    for result in (stream := Stream(inspector(), camera, sinks=[sink])):
        if result.frame_index == 3:
            break
    own = set(threading.enumerate()) - before
    assert not [thread.name for thread in own if thread.name.startswith("edgead")]
    assert camera.closed
    assert sink.closed == 1
    assert [index for index, _, _ in sink.got] == [0, 1, 2, 3]
    frames = stream.summary.frames
    assert frames.in_flight == 0
    assert adds_up(frames)
    assert frames.inspected == 4
    assert set(frames.dropped) == {"stopped"}


def test_an_exception_in_the_loop_leaves_nothing_behind():
    camera, sink = Camera(), Collector()
    camera.push()

    def consume():
        for _ in Stream(inspector(), camera, sinks=[sink]):
            raise RuntimeError("in the consumer")

    with pytest.raises(RuntimeError, match="in the consumer"):
        consume()
    assert camera.closed
    assert sink.closed == 1


def test_ctrl_c_in_the_middle_of_a_frame_keeps_the_ledger_right():
    def judge(_frame):
        raise KeyboardInterrupt

    camera = Camera()
    camera.push()
    stream = Stream(judge, camera)
    with pytest.raises(KeyboardInterrupt):
        stream.run()
    frames = stream.summary.frames
    assert (frames.captured, frames.in_flight, dict(frames.dropped)) == (1, 0, {"stopped": 1})


def test_stop_judges_what_was_captured():
    gate, camera = threading.Event(), Camera("every")
    runner = Runner(Stream(inspector(gate=gate), camera, queue_size=8, drain_s=LONG_S))
    for _ in range(6):
        camera.push()
    wait_for(lambda: runner.stream.summary.frames.captured == 6)
    runner.stream.stop()
    camera.push()
    gate.set()
    assert indices(runner.join()) == [0, 1, 2, 3, 4, 5]
    frames = runner.stream.summary.frames
    assert (frames.captured, frames.inspected, frames.in_flight) == (6, 6, 0)


def test_stop_judges_what_was_read_from_a_folder(folder):
    gate = threading.Event()
    runner = Runner(Stream(inspector(gate=gate), folder(20), drain_s=LONG_S))
    # One with the inspector, two read ahead, one in the hand of the grabber; no more is read.
    wait_for(lambda: runner.stream.summary.frames.captured == 4)
    time.sleep(0.05)
    assert runner.stream.summary.frames.captured == 4
    runner.stream.stop()
    gate.set()
    assert indices(runner.join()) == [0, 1, 2, 3]


def test_what_the_drain_has_no_time_for_is_not_inspected():
    camera = Camera("every")
    stream = Stream(inspector(delay=0.1), camera, queue_size=20, drain_s=0.15)
    runner = Runner(stream)
    for _ in range(15):
        camera.push()
    wait_for(lambda: stream.summary.frames.captured == 15 and stream.summary.frames.inspected)
    stream.stop()
    results = runner.join()
    assert indices(results) == list(range(15))
    assert results[-1].reason == "stopped"
    assert results[0].decision is Decision.OK


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX signals")
def test_stop_is_safe_in_a_signal_handler():
    stream = Stream(inspector(), "synthetic://?fps=200&width=64&height=64")
    before = signal.signal(signal.SIGTERM, lambda *_: stream.stop())

    def send():
        wait_for(lambda: stream.summary.frames.inspected > 5)
        os.kill(os.getpid(), signal.SIGTERM)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        summary = stream.run()
    finally:
        sender.join()
        signal.signal(signal.SIGTERM, before)
    assert summary.frames.inspected > 5
    assert summary.frames.in_flight == 0


@pytest.mark.parametrize("looks", ["_intake._ready", "_judge._worker._changed"])
def test_a_signal_just_before_a_wait_is_not_lost(looks):
    # Its handler runs in the thread that is about to wait, after the last look at what the handler changes.
    camera, returns = Camera(), threading.Event()
    if looks.startswith("_intake"):
        returns.set()
    stream = Stream(lambda _: returns.wait(LONG_S), camera, hang_s=2 * LONG_S, drain_s=0.0)
    runner = Runner(stream)
    wait_for(lambda: stream._judge._worker is not None)
    holder = attrgetter(looks)(stream)
    wait, came = holder.wait, threading.Event()

    def wait_after_the_signal(left=None):
        if threading.current_thread() is runner.thread and not came.is_set():
            came.set()
            stream.stop()
        return wait(left)

    holder.wait = wait_after_the_signal
    try:
        camera.push()
        assert came.wait(LONG_S)
        runner.join()
    finally:
        returns.set()
        camera.push()


def test_stop_wakes_a_stream_whose_camera_is_silent():
    camera = Camera()
    runner = Runner(Stream(inspector(), camera))
    wait_for(lambda: runner.stream.summary.seconds > 0)
    runner.stream.stop()
    assert runner.join() == []


def test_close_from_another_thread_ends_the_loop():
    runner = Runner(Stream(inspector(), "synthetic://?fps=500&width=64&height=64"))
    wait_for(lambda: runner.stream.summary.frames.inspected > 3)
    runner.stream.close()
    runner.join()
    assert runner.stream.summary.frames.in_flight == 0


@pytest.mark.parametrize("count", [1, 7])
def test_max_frames_is_exact_and_a_folder_is_read_no_further(folder, count):
    stream = Stream(inspector(), folder(20), max_frames=count)
    assert indices(stream) == list(range(count))
    assert (stream.summary.frames.captured, stream.summary.frames.inspected) == (count, count)


def test_max_frames_over_several_folders(folder):
    stream = Stream(inspector(), [folder(2, "a"), folder(9, "b")], max_frames=8)
    assert len(list(stream)) == 8
    assert stream.summary.frames.captured == 8


def test_duration_ends_a_camera_without_end():
    summary = Stream(inspector(), "synthetic://?fps=100&width=64&height=64", duration_s=0.4).run()
    assert summary.seconds >= 0.4
    assert 0 < summary.frames.inspected <= 100 * summary.seconds + 1


def test_a_stream_runs_once_and_tells_its_summary_at_any_time(folder):
    stream = Stream(inspector(), folder(3))
    assert stream.summary.frames.captured == 0
    assert json.loads(json.dumps(stream.summary.to_dict()))["latency_ms"]["p50"] is None
    assert len(list(stream)) == 3
    with pytest.raises(ConfigError, match="runs once"):
        list(stream)


def test_a_stream_that_never_ran_releases_its_source():
    camera, sink = Camera(), Collector()
    with Stream(inspector(), camera, sinks=[sink]):
        pass
    assert camera.closed
    assert sink.closed == 1


@pytest.mark.parametrize(
    ("sources", "options", "message"),
    [
        ([], {}, "needs a source"),
        (["synthetic://", "synthetic://"], {}, "given twice"),
        ("synthetic://", {"max_frames": 0}, "max_frames must be above 0"),
        ("synthetic://", {"duration_s": -1.0}, "duration_s must be above 0"),
        ("synthetic://", {"sinks": ["jsonl"]}, "unknown sink"),
    ],
)
def test_wrong_settings_are_refused(sources, options, message):
    with pytest.raises(ConfigError, match=message):
        Stream(inspector(), sources, **options)


def test_what_was_open_is_closed_when_the_next_cannot_be_opened():
    camera = Camera()
    with pytest.raises(SourceError):
        Stream(inspector(), [camera, "no/such/folder"])
    assert camera.closed


# The ledger and the summary


def test_ledger_adds_up_at_every_instant_seen_from_another_thread():
    stream = Stream(
        inspector(delay=0.004),
        ["synthetic://?fps=600&frames=300&width=64&height=64", "synthetic://?fps=200&seed=1&width=64&height=64"],
        duration_s=LONG_S,
    )
    runner = Runner(stream)
    seen = 0
    in_flight = set()
    while runner.thread.is_alive():
        summary = stream.summary
        if seen > 50 and summary.frames.dropped.get("superseded", 0) > 50:
            stream.stop()
        assert adds_up(summary.frames)
        assert all(adds_up(source.frames) for source in summary.sources.values())
        assert sum(source.frames.captured for source in summary.sources.values()) == summary.frames.captured
        in_flight.add(summary.frames.in_flight)
        seen += 1
    results = runner.join()
    frames = stream.summary.frames
    assert max(in_flight) <= 3  # one in each slot, one with the inspector
    assert frames.in_flight == 0
    assert frames.dropped["superseded"] > 50
    assert len(results) == frames.inspected + sum(frames.failed.values())


def test_summary_has_latency_from_capture_to_decision(folder):
    stream = Stream(inspector(delay=0.01), folder(8))
    results = list(stream)
    for result in results:
        timings = result.timings
        assert timings["network"] >= 10.0
        assert timings["end_to_end"] >= timings["wait"] + timings["preprocess"] + timings["network"]
    document = json.loads(json.dumps(stream.summary.to_dict(), allow_nan=False))
    assert document["schema"] == "edgead.run/1"
    assert document["frames"]["inspected"] == document["latency_ms"]["count"] == 8
    latency = document["latency_ms"]
    assert 10.0 <= latency["p50"] <= latency["p95"] <= latency["p99"] <= latency["max"]
    assert set(latency["stages"]) == {"wait", "preprocess", "network", "decide"}
    assert latency["stages"]["network"]["p50"] >= 9.9
    assert document["backend"]["name"] == "brightness"
    (source,) = document["sources"].values()
    assert (source["policy"], source["live"], source["captured"], source["error"]) == ("every", False, 8, None)


def test_real_images_through_the_loop(made_images):
    folder = next(path for path in sorted(made_images.glob("*/test/good")) if path.is_dir())
    stream = Stream(inspector(), folder)
    results = list(stream)
    judge = inspector()
    assert len(results) == stream.summary.frames.inspected > 5
    for result, path in zip(results, list_images(folder), strict=True):
        assert result.score == judge(read_image(path)).score


def test_a_part_that_nobody_judged_keeps_its_id():
    """Pushed out of the queue, paused, or stamped by another clock: the line must know which part was not inspected."""
    gate, source = threading.Event(), PushSource(policy="every")
    backend = Brightness(gate=gate)
    runner = Runner(Stream(inspector(backend), source, queue_size=2))
    picture = np.full((8, 10, 3), 100, np.uint8)
    source.push(picture, part_id="p0")
    assert backend.entered.wait(LONG_S)
    for number in range(1, 6):
        source.push(picture, part_id=f"p{number}")
    wait_for(lambda: runner.stream.summary.frames.captured == 6)
    gate.set()
    wait_for(lambda: runner.stream.summary.frames.in_flight == 0)
    runner.stream.pause()
    source.push(picture, part_id="p6")
    wait_for(lambda: runner.stream.summary.frames.captured == 7)
    runner.stream.resume()
    source.push(picture, part_id="p7", timestamp_ns=time.monotonic_ns() + int(3600e9))
    wait_for(lambda: runner.stream.summary.frames.captured == 8)
    source.close()
    results = runner.join()
    assert [result.part_id for result in results] == [f"p{number}" for number in range(8)]
    reasons = {result.part_id: result.reason for result in results if result.decision is Decision.NOT_INSPECTED}
    assert set(reasons) >= {"p1", "p2", "p3", "p6", "p7"}
    assert reasons["p1"] == "not judged in time"
    assert reasons["p6"] == "paused"
    assert "from the future" in (reasons["p7"] or "")
