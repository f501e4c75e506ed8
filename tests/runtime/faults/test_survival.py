"""Cameras that are lost, silent or stuck, and come back: numbers rise, the ledger adds up, nothing old is judged."""

from __future__ import annotations

import threading

import pytest

from edgead.runtime.errors import SourceError, SourceLost
from edgead.runtime.frame import Decision
from edgead.runtime.streaming.grabber import Survival
from edgead.runtime.streaming.stream import Stream
from tests.runtime.faults.doubles import QUICK, Brightness, Device, Runner, check_ledger, inspector
from tests.waiting import LONG_S, wait_for


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    wait_for(lambda: not [t for t in threading.enumerate() if t not in before and t.name.startswith("edgead")])


def run(device, backend=None, survival=QUICK, **options):
    # A long queue: on a busy machine nothing may be late here.
    return Runner(Stream(inspector(backend), device.open(), survival=survival, queue_size=100, **options))


def health(runner):
    (source,) = runner.stream.summary.sources.values()
    return source.health


def judged(runner, number):
    return lambda: runner.stream.summary.frames.inspected >= number


def test_a_lost_camera_is_opened_again_and_frames_are_numbered_on():
    device = Device(policy="every")
    runner = run(device)
    for round_number in range(4):
        for _ in range(5):
            device.push()
        device.command("lose" if round_number % 2 else "break")
    device.push()
    wait_for(judged(runner, 21))
    results = runner.end()
    assert [result.frame_index for result in results] == list(range(21))
    assert [result.name for result in results] == [str(number) for number in range(21)]
    assert (health(runner).reconnects, health(runner).attempts, device.opened) == (4, 4, 5)
    assert "stopped after 5 frames" in health(runner).last_loss
    assert runner.stream.summary.errors == []
    assert device.closed == device.opened
    check_ledger(runner.stream, results)


def test_a_camera_that_stays_away_is_tried_without_end_and_its_state_is_seen(caplog):
    device = Device()
    runner = run(device)
    device.push()
    wait_for(judged(runner, 1))
    device.there = False
    device.command("lose")
    wait_for(lambda: health(runner).attempts > 8)
    assert health(runner).state == "reconnecting"
    assert health(runner).last_loss == "cannot open camera; it is away"
    device.there = True
    device.push()
    wait_for(judged(runner, 2))
    assert (health(runner).state, health(runner).reconnects) == ("running", 1)
    check_ledger(runner.stream, runner.end())
    said = [record.getMessage() for record in caplog.records]
    assert any("stopped after 1 frames; opening it again" in line for line in said)
    assert sum("is still away" in line for line in said) == 1, "the same trouble is said once"
    assert any("camera is back after" in line for line in said)


def test_delays_double_up_to_a_limit_and_half_of_each_is_chance():
    survival = Survival(first_s=0.5, longest_s=30.0)
    assert [survival.delay_s(number, 1.0) for number in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert survival.delay_s(0, 0.0) == 0.25
    assert survival.delay_s(10**6, 0.0) == 15.0


def test_a_camera_that_never_delivered_ends_the_stream_unless_told_to_wait():
    device = Device()
    device.command("lose")
    runner = run(device)
    assert runner.join() == []
    assert isinstance(runner.error, SourceLost)

    device = Device()
    for _ in range(3):
        device.command("lose")
    runner = run(device, survival=Survival(first_s=0.01, longest_s=0.02, wait=True))
    wait_for(lambda: health(runner).attempts == 3)
    assert health(runner).state == "waiting"
    device.push()
    wait_for(judged(runner, 1))
    check_ledger(runner.stream, runner.end())


def test_a_source_that_ends_by_itself_is_not_opened_again():
    device = Device()
    runner = run(device)
    device.push()
    device.command("end")
    assert len(runner.join()) == 1
    assert (device.opened, runner.error) == (1, None)


def test_a_silent_camera_is_opened_again():
    device = Device(silence_s=0.1)
    runner = run(device)
    device.push()
    wait_for(lambda: device.opened >= 3)
    assert "delivered nothing for 0.1 s" in health(runner).last_loss
    device.push()
    wait_for(judged(runner, 2))
    results = runner.end()
    assert [result.frame_index for result in results] == [0, 1]
    wait_for(lambda: health(runner).stuck == 0)  # its driver came back when it was closed
    check_ledger(runner.stream, results)


def test_a_triggered_camera_may_be_silent():
    device = Device(policy="every", silence_s=None)
    runner = run(device)
    device.push()
    wait_for(judged(runner, 1))
    threading.Event().wait(0.4)
    device.push()
    wait_for(judged(runner, 2))
    runner.end()
    assert device.opened == 1


def test_a_driver_that_never_returns_is_left_behind_and_what_it_still_says_is_refused():
    device = Device(silence_s=0.1)
    backend = Brightness()
    runner = run(device, backend)
    device.push()
    wait_for(judged(runner, 1))
    device.command("hang")
    device.push()
    wait_for(judged(runner, 2))
    wait_for(lambda: health(runner).stuck == 1)
    assert health(runner).reconnects >= 1
    device.release.set()
    wait_for(lambda: health(runner).stuck == 0)
    device.push()
    wait_for(judged(runner, 3))
    results = runner.end()
    assert [result.name for result in results] == ["0", "1", "2"]
    assert 200.0 not in backend.seen, "the frame of the driver that hung is never judged"
    check_ledger(runner.stream, results)


def test_so_many_threads_are_left_behind_and_no_more():
    device = Device(silence_s=0.05)
    runner = run(device)
    device.push()
    wait_for(judged(runner, 1))
    for _ in range(QUICK.stuck):
        device.command("hang")
    wait_for(lambda: health(runner).stuck == QUICK.stuck)
    opened = device.opened
    threading.Event().wait(0.5)
    assert (health(runner).stuck, device.opened) == (QUICK.stuck, opened)
    device.release.set()
    wait_for(lambda: health(runner).stuck == 0)
    device.push()
    wait_for(judged(runner, 2))
    check_ledger(runner.stream, runner.end())


def test_stop_ends_a_stream_whose_driver_hangs(caplog):
    device = Device(silence_s=None)
    runner = run(device, drain_s=0.2)
    device.push()
    wait_for(judged(runner, 1))
    device.command("hang")
    assert device.hanging.wait(LONG_S)
    results = runner.end()
    # The end was asked for, so that this is said, and is no failure.
    assert runner.stream.summary.errors == []
    assert any("does not return from its driver" in record.getMessage() for record in caplog.records)
    assert health(runner).stuck == 1
    check_ledger(runner.stream, results)
    device.release.set()
    wait_for(lambda: health(runner).stuck == 0)


def test_nothing_that_waited_before_a_loss_is_judged_after_it():
    device = Device()
    backend = Brightness()
    runner = run(device, backend, hang_s=LONG_S)
    device.push(level=16)
    assert backend.entered.wait(LONG_S)
    device.push(level=60)  # waits while the backend is busy
    wait_for(lambda: runner.stream.summary.frames.captured == 2)
    device.command("lose")
    wait_for(lambda: runner.stream.summary.frames.dropped.get("source lost") == 1)
    device.push(level=70)
    wait_for(lambda: runner.stream.summary.frames.captured == 3)
    backend.go.set()
    wait_for(judged(runner, 2))
    results = runner.end()
    assert [result.frame_index for result in results] == [0, 2]
    assert 60.0 not in backend.seen
    check_ledger(runner.stream, results)


def test_parts_that_were_seen_before_a_loss_are_judged_where_each_counts():
    device = Device(policy="every")
    backend = Brightness()
    runner = run(device, backend, hang_s=LONG_S)
    device.push(level=16)
    assert backend.entered.wait(LONG_S)
    device.push(level=60)
    device.command("lose")
    device.push(level=70)
    wait_for(lambda: runner.stream.summary.frames.captured == 3)
    backend.go.set()
    wait_for(judged(runner, 3))
    assert [result.frame_index for result in runner.end()] == [0, 1, 2]


def test_another_size_in_mid_stream_is_counted_and_judged():
    device = Device(policy="every")
    runner = run(device)
    for shape in ((8, 8, 3), (8, 8, 3), (16, 24, 3), (16, 24, 3), (8, 8)):
        device.push(shape=shape)
    wait_for(lambda: runner.stream.summary.frames.captured == 5)
    results = runner.end()
    assert health(runner).resized == 2
    # The last one is grey and says that it is RGB: that is a failure of its own.
    assert [result.decision for result in results] == [Decision.OK] * 4 + [Decision.NOT_INSPECTED]
    check_ledger(runner.stream, results)


def test_one_camera_that_is_away_does_not_disturb_the_other():
    left, right = Device("left"), Device("right")
    runner = Runner(Stream(inspector(), [left.open(), right.open()], survival=QUICK))
    left.push()
    right.push()
    wait_for(judged(runner, 2))
    left.there = False
    left.command("lose")
    for number in range(20):
        right.push()
        wait_for(judged(runner, 3 + number))
    states = {name: source.health.state for name, source in runner.stream.summary.sources.items()}
    assert states == {"left": "reconnecting", "right": "running"}
    check_ledger(runner.stream, runner.end())


def test_a_first_opening_that_fails_is_an_error():
    device = Device()
    device.there = False
    with pytest.raises(SourceError, match="cannot open camera"):
        device.open()
