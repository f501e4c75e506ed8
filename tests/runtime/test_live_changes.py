"""What may change while a stream runs: pause, another bundle, another threshold; batches; asyncio; pushed frames."""

from __future__ import annotations

import asyncio
import itertools
import math
import multiprocessing
import re
import threading
import time

import numpy as np
import pytest

from edgead.runtime.backends import batch_size
from edgead.runtime.decision.verdict import Limits
from edgead.runtime.errors import BundleError, ConfigError, DataError
from edgead.runtime.frame import Decision, Frame
from edgead.runtime.imaging.preprocess import resize
from edgead.runtime.inspection.inspector import Inspector
from edgead.runtime.sources import open_source
from edgead.runtime.sources.push import PushSource
from edgead.runtime.streaming.stream import Stream
from tests.runtime.faults.doubles import QUICK, Brightness, Device, Runner, check_ledger, inspector
from tests.waiting import LONG_S, wait_for

FAST = "synthetic://?fps=400&width=64&height=64"


def frames(runner):
    return runner.stream.summary.frames


# Pause


@pytest.mark.parametrize("policy", ["newest", "every"])
def test_a_paused_stream_judges_nothing_and_counts_what_passes(policy):
    device = Device(policy=policy)
    runner = Runner(Stream(inspector(), device.open(), survival=QUICK))
    device.push()
    wait_for(lambda: frames(runner).inspected == 1)
    runner.stream.pause()
    assert runner.stream.state == "paused"
    for _ in range(3):
        device.push()
    wait_for(lambda: frames(runner).captured == 4 and frames(runner).in_flight == 0)
    runner.stream.resume()
    device.push()
    wait_for(lambda: frames(runner).inspected == 2)
    results = runner.end()
    if policy == "newest":
        assert dict(frames(runner).dropped) == {"paused": 3}
        assert [result.frame_index for result in results] == [0, 4]
    else:
        assert dict(frames(runner).failed) == {"paused": 3}
        assert [result.decision.value for result in results] == ["OK", *["NOT_INSPECTED"] * 3, "OK"]
    check_ledger(runner.stream, results)


def test_files_wait_while_paused_and_none_is_lost(tmp_path):
    from PIL import Image

    for number in range(30):
        Image.fromarray(np.full((8, 8, 3), 50, np.uint8)).save(tmp_path / f"{number:02d}.png")
    runner = Runner(Stream(inspector(Brightness(delay=0.002)), tmp_path))
    runner.stream.pause()
    time.sleep(0.15)
    seen = len(runner.results)
    time.sleep(0.15)
    assert len(runner.results) == seen < 30
    runner.stream.resume()
    assert [result.frame_index for result in runner.join()] == list(range(30))


def test_a_paused_stream_can_be_stopped():
    device = Device()
    runner = Runner(Stream(inspector(), device.open(), survival=QUICK))
    runner.stream.pause()
    device.push()
    check_ledger(runner.stream, runner.end())


# Another threshold


def test_a_threshold_changes_between_two_frames_and_loses_none():
    judge = inspector()
    device = Device(policy="every")
    runner = Runner(Stream(judge, device.open(), queue_size=1000, survival=QUICK))
    for number in range(300):
        device.push(level=50)
        if number % 30 == 0:
            judge.set_threshold(40.0 if number % 60 else 100.0)
    wait_for(lambda: frames(runner).captured == 300 and not frames(runner).in_flight)
    results = runner.end()
    assert frames(runner).inspected == 300
    assert {result.threshold for result in results} <= {40.0, 100.0}
    for result in results:
        assert result.decision is (Decision.ANOMALY if result.score > result.threshold else Decision.OK)
    check_ledger(runner.stream, results)


def test_a_threshold_that_is_none_is_refused():
    judge = inspector()
    assert judge.set_threshold(7) == 100.0
    assert judge.threshold == 7.0
    with pytest.raises(ConfigError, match="finite"):
        judge.set_threshold(math.nan)
    with pytest.raises(ConfigError, match="no category 'plate'"):
        judge.set_threshold(1.0, "plate")
    assert judge.threshold == 7.0


def test_a_routed_model_has_a_threshold_for_each_category():
    judge = Inspector(Brightness(), height=8, width=8, threshold=Limits(1.0, {"plate": 2.0, "tile": 3.0}))
    assert judge.set_threshold(5.0, "tile") == 3.0
    assert dict(judge.limits.categories) == {"plate": 2.0, "tile": 5.0}
    with pytest.raises(ConfigError, match="for each category: plate, tile"):
        judge.set_threshold(1.0)


# Another bundle


def threshold_section(value):
    return {
        "value": value,
        "target_false_alarm_rate": 0.01,
        "n_normals": 120,
        "low": 0.0002,
        "high": 0.03,
        "supported": True,
    }


def test_another_bundle_goes_on_under_load_and_no_frame_is_lost(make_bundle):
    first = make_bundle("first.edgead")
    other = make_bundle("other.edgead", threshold=threshold_section(19.0))
    with Inspector.open(first, backend="onnxruntime", threads=1) as judge:
        source = open_source(FAST + "&policy=every&frames=1200")
        runner = Runner(Stream(judge, source, queue_size=2000))
        wait_for(lambda: frames(runner).inspected > 20)
        for path in (other, first, other):
            judge.swap(path)
            count = frames(runner).inspected
            wait_for(lambda count=count: frames(runner).inspected > count + 20)
        results = runner.join()
    assert frames(runner).inspected == frames(runner).captured == 1200
    assert [result.frame_index for result in results] == list(range(1200))
    changes = [a.threshold for a, b in itertools.pairwise(results) if a.threshold != b.threshold]
    assert changes == [20.0, 19.0, 20.0]
    assert results[-1].threshold == 19.0


def test_a_bundle_that_does_not_fit_changes_nothing(make_bundle, tmp_path, tiny_model, tiny_references):
    first = make_bundle("first.edgead")
    cut = tmp_path / "cut.edgead"
    cut.write_bytes(first.read_bytes()[:-100])
    weights = -tiny_model.weights
    wrong = make_bundle("wrong.edgead", model=type(tiny_model)(weights))
    bare = {f"references/{name}": None for name in tiny_references} | {"references/expected.npz": None}
    unproved = make_bundle("unproved.edgead", files=bare)
    picture = Frame(np.full((31, 45, 3), 100, np.uint8), 0, 0, "test")
    with Inspector.open(first, backend="onnxruntime") as judge:
        judge.set_threshold(33.0)
        before = judge(picture)
        for path, error, message in (
            (tmp_path / "none.edgead", BundleError, "does not exist"),
            (cut, BundleError, "cut"),
            (wrong, BundleError, "does not decide here as it did"),
            (unproved, BundleError, "nothing can be proved"),
        ):
            with pytest.raises(error, match=message):
                judge.swap(path)
            after = judge(picture)
            assert (after.score, after.threshold) == (before.score, 33.0)
        judge.swap(first)
        assert judge.threshold == 20.0
    with pytest.raises(ConfigError, match="opened from a bundle"):
        inspector().swap(first)


def test_a_bundle_with_another_region_is_refused(make_bundle):
    region = {"frame_width": 45, "frame_height": 31, "x": 2, "y": 2, "width": 40, "height": 25, "mask": None}
    rule = {"height": 8, "width": 10, "resize": "reduce-bilinear/1"}
    first = make_bundle("first.edgead")
    other = make_bundle("other.edgead", input={**rule, "region": region}, files={"references/expected.npz": None})
    with (
        Inspector.open(first, backend="onnxruntime") as judge,
        pytest.raises(ConfigError, match="another region"),
    ):
        judge.swap(other)


def test_swapping_leaves_no_copy_of_the_old_model_on_the_disk(make_bundle, tmp_path, monkeypatch):
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    first = make_bundle("first.edgead")
    with Inspector.open(first, backend="onnxruntime") as judge:
        count = len(list((tmp_path / "scratch").rglob("*")))
        for _ in range(3):
            judge.swap(first)
        assert len(list((tmp_path / "scratch").rglob("*"))) == count
    assert not list((tmp_path / "scratch").rglob("*"))


# Batches


def test_frames_of_several_cameras_are_judged_together():
    devices = [Device(f"camera{number}", policy="every") for number in range(4)]
    backend = Brightness()
    sizes = []
    run = backend.run
    backend.run = lambda images: (sizes.append(len(images)), run(images))[1]
    stream = Stream(inspector(backend), [d.open() for d in devices], batch=4, batch_deadline_s=LONG_S, survival=QUICK)
    runner = Runner(stream)
    for level in (50, 60):
        for number, device in enumerate(devices):
            device.push(level=level + number)
        wait_for(lambda level=level: frames(runner).inspected == (4 if level == 50 else 8))
    results = runner.end()
    assert sizes == [4, 4]
    assert {(r.source_id, r.frame_index): r.score for r in results} == {
        (f"camera{number}", index): 50.0 + 10 * index + number for number in range(4) for index in range(2)
    }
    check_ledger(stream, results)


def test_a_batch_waits_no_longer_than_its_deadline():
    device = Device()
    runner = Runner(Stream(inspector(), device.open(), batch=8, batch_deadline_s=0.05, survival=QUICK))
    device.push()
    wait_for(lambda: frames(runner).inspected == 1)  # no other frame comes
    runner.end()


def test_a_frame_that_spoils_a_batch_spoils_itself_only():
    device = Device(policy="every")
    runner = Runner(Stream(inspector(), device.open(), batch=4, batch_deadline_s=LONG_S, survival=QUICK))
    for level in (50, 14, 15, 200):
        device.push(level=level)
    wait_for(lambda: frames(runner).captured == 4 and not frames(runner).in_flight)
    results = runner.end()
    assert [result.decision.value for result in results] == ["OK", "NOT_INSPECTED", "NOT_INSPECTED", "ANOMALY"]
    check_ledger(runner.stream, results)


def test_max_frames_is_exact_with_batches():
    stream = Stream(inspector(), FAST + "&policy=every", batch=4, max_frames=7)
    results = list(stream)
    assert [result.frame_index for result in results] == list(range(7))
    check_ledger(stream, results)


def test_batches_need_an_inspector_that_has_them():
    with pytest.raises(ConfigError, match="one by one"):
        Stream(lambda _: None, FAST, batch=2)
    assert batch_size("onnxruntime", 4) == 0
    assert batch_size("tensorrt", 4) == 4


# Asyncio


def test_async_for_gives_every_result_and_leaves_the_loop_free():
    ticks = []

    async def tick():
        while True:
            ticks.append(1)
            await asyncio.sleep(0.005)

    async def main():
        ticking = asyncio.create_task(tick())
        with inspector(Brightness(delay=0.005)) as judge:
            numbers = [r.frame_index async for r in judge.stream(FAST + "&policy=every&frames=40", max_frames=20)]
        ticking.cancel()
        return numbers

    assert asyncio.run(main()) == list(range(20))
    assert len(ticks) > 1


def test_async_for_raises_what_the_stream_raises():
    device = Device()
    device.command("lose")

    async def main():
        async for _ in Stream(inspector(), device.open()):
            pass

    with pytest.raises(Exception, match="stopped after 0 frames"):
        asyncio.run(main())


def test_leaving_or_cancelling_async_for_releases_everything():
    async def leave():
        with Stream(inspector(), FAST) as stream:
            async for result in stream:
                if result.frame_index > 3:
                    break
        return stream

    async def cancel():
        stream = Stream(inspector(), FAST)

        async def consume():
            async for _ in stream:
                pass

        task = asyncio.create_task(consume())
        while not stream.summary.frames.inspected:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return stream

    for main in (leave, cancel):
        stream = asyncio.run(main())
        assert stream.state == "ended"
        assert stream.summary.frames.in_flight == 0
        wait_for(lambda: not [t for t in threading.enumerate() if t.name.startswith("edgead")])


# Forks


def _try_in_copy(call, answers):
    try:
        call()
        answers.put("it came back")
    except ConfigError as error:
        answers.put(str(error))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_gets_an_error_instead_of_a_lock_that_nobody_releases():
    backend = Brightness()
    picture = np.full((8, 8, 3), 16, np.uint8)  # held by the backend until it may go
    used, context = inspector(backend), multiprocessing.get_context("fork")
    busy = threading.Thread(target=used, args=(picture,))
    busy.start()
    assert backend.entered.wait(LONG_S)
    stream = used.stream(PushSource())
    answers = context.Queue()
    for call in (lambda: used(picture), lambda: used.swap("x.edgead"), used.self_test, stream.run):
        child = context.Process(target=_try_in_copy, args=(call, answers))
        child.start()
        assert "opened before the process was forked" in answers.get(timeout=LONG_S)
        child.join(LONG_S)
        assert child.exitcode == 0
    backend.go.set()
    busy.join(LONG_S)
    stream.close()
    used.close()


# Pushed frames


def test_pushed_frames_are_judged_in_order_with_their_own_times():
    source = PushSource("robot", policy="every")
    stamp = time.monotonic_ns()
    runner = Runner(inspector().stream(source))
    for level in range(5):
        assert source.push(np.full((8, 8, 3), 50 + level, np.uint8), stamp + level, name=f"part-{level}") == level
    source.push(np.full((8, 8), 90, np.uint8))
    source.end()
    results = runner.join()
    assert [result.score for result in results] == [50, 51, 52, 53, 54, 90]
    assert [result.timestamp_ns for result in results[:5]] == [stamp + level for level in range(5)]
    assert results[2].name == "part-2"
    check_ledger(runner.stream, results)


@pytest.mark.parametrize("layout", ["rgb", "bgr"])
def test_a_buffer_that_the_camera_fills_again_changes_no_frame(layout):
    source, buffer = PushSource("camera", policy="every", layout=layout), np.zeros((8, 8, 3), np.uint8)
    for level in (10, 100, 200):
        buffer[:] = level
        source.push(buffer)
    grey = np.full((8, 8), 50, np.uint8)
    source.push(grey)
    grey[:] = 0
    source.end()
    assert [int(frame.image.mean()) for frame in source.frames()] == [10, 100, 200, 50]


def test_a_buffer_is_shared_where_that_is_asked_for():
    source, buffer = PushSource(copy=False), np.zeros((8, 8, 3), np.uint8)
    source.push(buffer)
    assert np.shares_memory(next(source.frames()).image, buffer)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: PushSource(layout="RGB"), "unknown layout 'RGB'. Did you mean 'rgb'"),
        (lambda: PushSource(layout="gray"), "order of three channels"),
        (lambda: PushSource(policy="all"), "unknown policy 'all'"),
        (lambda: PushSource(max_age_s=0.0), "max_age_s must be above 0"),
        (lambda: Frame(np.zeros((8, 8, 3), np.uint8), 0, 0, "x", "brg"), "unknown layout 'brg'"),
        (lambda: resize(np.zeros((8, 8, 3), np.uint8), 4, 4, "BGR"), "unknown layout 'BGR'"),
    ],
)
def test_names_that_are_not_known_are_refused(make, said):
    # A layout that is taken for another one mixes up the channels, and every decision after it.
    with pytest.raises(ConfigError, match=re.escape(said)):
        make()


def test_pushing_never_waits_for_the_judge():
    source, backend = PushSource(), Brightness()
    runner = Runner(Stream(inspector(backend), source, hang_s=LONG_S))
    source.push(np.full((8, 8, 3), 16, np.uint8))
    assert backend.entered.wait(LONG_S)
    for _ in range(200):
        source.push(np.full((8, 8, 3), 50, np.uint8))
    # The judge is busy all the while.
    wait_for(lambda: frames(runner).captured == 201)
    backend.go.set()
    source.end()
    assert [result.frame_index for result in runner.join()] == [0, 200]


def test_what_is_no_picture_is_refused_where_it_is_pushed():
    source = PushSource()
    for picture, message in (
        (np.zeros((8, 8, 4), np.uint8), r"got \(8, 8, 4\) uint8"),
        (np.zeros((8, 8, 3), np.float32), "float32$"),
        (np.zeros((8, 8), np.uint16), r"uint16; shift its values .*\(image >> \(bits - 8\)\)"),
        ([[1, 2]], "got list"),
    ):
        with pytest.raises(DataError, match=message):
            source.push(picture)
    source.close()
    with pytest.raises(ConfigError, match="is closed"):
        source.push(np.zeros((8, 8, 3), np.uint8))


def test_a_picture_in_gpu_memory_is_copied_to_the_host(monkeypatch):
    from edgead.runtime.backends import cuda_copy

    held = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)

    class Runtime:
        """The two functions of cuda-bindings that the copy needs, on this machine's own memory."""

        class cudaMemcpyKind:  # noqa: N801
            cudaMemcpyDeviceToHost = 2  # noqa: N815

        def cudaStreamSynchronize(self, stream):  # noqa: N802
            assert stream == 7
            return (0,)

        def cudaMemcpy(self, to, source, size, kind):  # noqa: N802
            import ctypes

            assert kind == 2
            ctypes.memmove(to, source, size)
            return (0,)

    class Picture:
        def __init__(self, **changes):
            address = held.ctypes.data, False
            plain = {"shape": held.shape, "typestr": "|u1", "data": address, "strides": None, "version": 3, "stream": 7}
            self.__cuda_array_interface__ = {**plain, **changes}

    monkeypatch.setattr(cuda_copy, "load_cuda", Runtime)
    source = PushSource()
    source.push(Picture())
    with pytest.raises(DataError, match="C-contiguous"):
        source.push(Picture(strides=(48, 3, 1)))
    source.end()
    (frame,) = source.frames()
    assert np.array_equal(frame.image, held)
