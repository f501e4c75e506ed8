"""Backends that hang, raise or answer nonsense; clocks that jump; 200 faults in a row from a seeded fuzzer."""

from __future__ import annotations

import random
import threading
import time

import numpy as np
import pytest
from PIL import Image

from edgead.runtime.errors import BackendError
from edgead.runtime.frame import Decision
from edgead.runtime.streaming.stream import Stream
from tests.runtime.faults.doubles import QUICK, Brightness, Device, Runner, check_ledger, inspector
from tests.waiting import LONG_S, wait_for


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    wait_for(lambda: not [t for t in threading.enumerate() if t not in before and t.name.startswith("edgead")])


def frames(runner):
    return runner.stream.summary.frames


@pytest.mark.parametrize("policy", ["newest", "every"])
def test_while_the_backend_hangs_nothing_is_ok_and_the_loop_goes_on_when_it_is_back(policy):
    device, backend = Device(policy=policy), Brightness()
    runner = Runner(Stream(inspector(backend), device.open(), hang_s=2.0, survival=QUICK))
    device.push()
    wait_for(lambda: frames(runner).inspected == 1)
    device.push(level=16)
    wait_for(lambda: runner.stream.state == "hung")
    for _ in range(3):
        device.push()
        taken = frames(runner).captured
        wait_for(lambda taken=taken: frames(runner).captured > taken or frames(runner).in_flight == 0)
    wait_for(lambda: frames(runner).captured == 5 and frames(runner).in_flight == 0)
    assert runner.stream.summary.hangs == 1
    backend.go.set()
    wait_for(lambda: runner.stream.state == "running")
    device.push()
    wait_for(lambda: frames(runner).inspected == 2)
    results = runner.end()
    failed, dropped = dict(frames(runner).failed), dict(frames(runner).dropped)
    if policy == "every":
        assert [result.decision.value for result in results] == ["OK", *["NOT_INSPECTED"] * 4, "OK"]
        assert (failed, dropped) == ({"backend hung": 4}, {})
    else:
        assert [result.decision.value for result in results] == ["OK", "NOT_INSPECTED", "OK"]
        assert failed == {"backend hung": 1}
        assert sum(dropped.values()) == 3
        assert set(dropped) <= {"backend hung", "superseded"}
    assert results[1].reason == "backend hung: no answer for 2 s"
    check_ledger(runner.stream, results)


def test_a_backend_that_does_not_come_back_ends_the_stream_with_the_reason():
    device, backend = Device(), Brightness()
    stream = Stream(inspector(backend), device.open(), hang_s=0.1, give_up_s=0.4, drain_s=0.1, survival=QUICK)
    runner = Runner(stream)
    device.push(level=16)
    results = runner.join()
    assert isinstance(runner.error, BackendError)
    assert "has not returned for 0.4 s" in stream.summary.errors[0]
    check_ledger(stream, results)
    backend.go.set()


def test_files_wait_for_a_backend_that_hangs(tmp_path):
    for number in range(6):
        Image.fromarray(np.full((8, 8, 3), 16 if number == 1 else 50, np.uint8)).save(tmp_path / f"{number}.png")
    backend = Brightness()
    runner = Runner(Stream(inspector(backend), tmp_path, hang_s=2.0))
    wait_for(lambda: runner.stream.state == "hung")
    wait_for(lambda: len(runner.results) == 2)
    time.sleep(0.2)
    assert len(runner.results) == 2
    backend.go.set()
    results = runner.join()
    assert [result.decision.value for result in results] == ["OK", "NOT_INSPECTED", *["OK"] * 4]
    check_ledger(runner.stream, results)


def test_stop_ends_a_stream_whose_backend_hangs():
    device, backend = Device(policy="every"), Brightness()
    runner = Runner(Stream(inspector(backend), device.open(), drain_s=0.3, survival=QUICK))
    device.push(level=16)
    assert backend.entered.wait(LONG_S)
    device.push()
    wait_for(lambda: frames(runner).captured == 2)
    results = runner.end()
    assert [(result.decision, result.reason) for result in results] == [(Decision.NOT_INSPECTED, "stopped")] * 2
    check_ledger(runner.stream, results)
    backend.go.set()


def test_an_inspector_whose_backend_hangs_can_be_closed():
    backend = Brightness()
    judge = inspector(backend)
    stuck = threading.Thread(target=judge, args=(np.full((8, 8, 3), 16, np.uint8),))
    stuck.start()
    assert backend.entered.wait(LONG_S)
    judge.close()
    assert stuck.is_alive()
    backend.go.set()
    stuck.join()


def test_a_clock_that_jumps_lets_nothing_old_pass_and_nothing_stick():
    offset = [0]
    device = Device(max_age_s=LONG_S)
    stream = Stream(inspector(), device.open(), clock=lambda: time.monotonic_ns() + offset[0], survival=QUICK)
    runner = Runner(stream)
    device.push()
    wait_for(lambda: frames(runner).inspected == 1)
    offset[0] = 3600 * 10**9  # forward: what the camera stamps is an hour old
    device.push()
    wait_for(lambda: frames(runner).dropped.get("stale") == 1)
    offset[0] = -3600 * 10**9  # back: what it stamps lies in the future
    device.push()
    wait_for(lambda: frames(runner).failed.get("unreadable frame") == 1)
    offset[0] = 0
    device.push()
    wait_for(lambda: frames(runner).inspected == 2)
    results = runner.end()
    assert [result.decision.value for result in results] == ["OK", "NOT_INSPECTED", "OK"]
    check_ledger(stream, results)


@pytest.mark.parametrize(("seed", "policy"), [(1, "newest"), (2, "every")])
def test_200_random_faults_in_a_row(seed, policy):
    """Whatever happens, in whatever order: the books balance, and a frame that is OK was captured just now."""
    chance = random.Random(seed)
    device = Device(policy=policy, max_age_s=0.5, silence_s=0.1)
    backend = Brightness(delay=0.0005)
    stream = Stream(inspector(backend), device.open(), hang_s=0.05, give_up_s=LONG_S, queue_size=4, survival=QUICK)
    runner = Runner(stream)
    wait_for(lambda: (device.push(), frames(runner).inspected)[1])
    faults = {
        "lose": lambda: device.command("lose"),
        "break": lambda: device.command("break"),
        "away": lambda: (setattr(device, "there", False), device.command("lose")),
        "hang": lambda: device.command("hang"),
        "silence": lambda: time.sleep(0.12),
        "backend raises": lambda: device.push(level=13),
        "backend is broken": lambda: device.push(level=14),
        "NaN": lambda: device.push(level=15),
        "backend hangs": lambda: (backend.go.clear(), device.push(level=16), time.sleep(0.1)),
        "resized": lambda: setattr(device, "shape", chance.choice([(8, 8, 3), (9, 30, 3), (40, 7, 3)])),
        "old": lambda: device.push(age_s=3.0),
        "future": lambda: device.push(age_s=-30.0),
        "pause": lambda: (stream.pause(), device.push(), stream.resume()),
        "burst": lambda: [device.push() for _ in range(20)],
        "threshold": lambda: stream._judge._inspector.set_threshold(chance.choice([100.0, 101.0])),
    }
    done = dict.fromkeys(faults, 0)
    for number in range(200):
        # Slow ones less often, so that the test keeps its time.
        slow = ("silence", "hang", "away", "backend hangs")
        name = chance.choice(slow if number % 10 == 0 else sorted(set(faults) - set(slow)))
        done[name] += 1
        faults[name]()
        for _ in range(chance.randrange(4)):
            device.push()
        time.sleep(chance.random() * 0.015)
        summary = stream.summary.frames
        assert summary.captured >= summary.inspected  # the snapshot itself raises where the books do not balance
        if chance.random() < 0.5:
            device.there = True
            backend.go.set()
            device.release.set()
    assert min(done.values()) > 0
    device.there = True
    backend.go.set()
    # What was commanded is still on its way.
    marker = device.made
    deadline = time.monotonic() + LONG_S
    while not any(int(result.name) > marker for result in runner.results) and time.monotonic() < deadline:
        device.release.set()
        device.push()
        time.sleep(0.02)
    assert time.monotonic() < deadline, f"it does not go on after all of it: {stream.summary}"
    results = runner.end()
    assert runner.error is None
    check_ledger(stream, results)
    assert "old" not in {result.name for result in results}, "no frame of a driver that hung"
    for result in results:
        assert result.decision is not Decision.OK or result.timings["wait"] < 500.0, "no stale OK"
    assert sum(source.health.reconnects for source in stream.summary.sources.values()) > 5
    assert stream.summary.hangs > 0
