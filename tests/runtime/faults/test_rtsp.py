"""A real RTSP camera that is frozen, killed, garbled, and comes back with other pictures."""

from __future__ import annotations

import json
import random
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from edgead.runtime.frame import Decision
from edgead.runtime.streaming.grabber import Survival
from edgead.runtime.streaming.stream import Stream
from tests.runtime.faults.doubles import Brightness, Runner, check_ledger, inspector
from tests.waiting import LONG_S, wait_for

BITS = 16
ROOT = Path(__file__).resolve().parents[3]


class NumberReader:
    """An inspector that notes which picture it was shown, and passes it on."""

    threshold = 1e9

    def __init__(self, delay=0.0):
        self.seen = []  # (picture number, monotonic s, frame index)
        self._inspector = inspector(Brightness(delay))
        self._inspector.set_threshold(self.threshold)

    def __call__(self, frame):
        grey = frame.image[:, :, 1]
        column = grey.shape[1] // BITS
        middle = grey[grey.shape[0] // 4, column // 2 :: column][:BITS]
        number = sum(1 << bit for bit, level in enumerate(middle) if level > 128)
        self.seen.append((number, time.monotonic(), frame.index))
        return self._inspector(frame)


# A camera that is away for a second is looked for after half of it.
SURVIVAL = Survival(first_s=0.3, longest_s=1.0)


def start(camera, judge=None, query="?silence=1.5&max_age=1", **options):
    judge = judge or NumberReader()
    runner = Runner(Stream(judge, camera.url + query, survival=SURVIVAL, **options))
    wait_for(lambda: runner.stream.summary.frames.inspected >= 10)
    return runner, judge


def health(runner):
    (source,) = runner.stream.summary.sources.values()
    return source.health


def no_stale_ok(results, limit_ms=1000.0):
    for result in results:
        assert result.decision is not Decision.OK or result.timings["wait"] < limit_ms


@pytest.mark.parametrize("seconds", [0.7, 3.5])
def test_a_frozen_camera_comes_back_and_nothing_from_before_is_new(rtsp, seconds):
    camera = rtsp()
    runner, judge = start(camera)
    camera.stop()
    until = time.monotonic() + seconds
    # What was on its way has arrived once nothing comes for so long.
    wait_for(lambda: judge.seen[-1][1] < time.monotonic() - 0.3)
    count = len(judge.seen)
    wait_for(lambda: time.monotonic() > until and (seconds < 1.5 or health(runner).state == "reconnecting"))
    assert len(judge.seen) == count, "nothing is judged while nothing comes"
    last = judge.seen[-1][0]
    camera.resume()
    wait_for(lambda: judge.seen[-1][0] > last + 20)
    results = runner.end()
    if seconds > 1.5:
        assert health(runner).reconnects >= 1
        assert "delivered nothing for 1.5 s" in health(runner).last_loss
    numbers = [number for number, _, _ in judge.seen]
    assert numbers == sorted(numbers), "no picture from before the loss comes after it"
    no_stale_ok(results)
    check_ledger(runner.stream, results)


def test_a_killed_camera_comes_back_with_another_size_and_frames_are_numbered_on(rtsp):
    camera = rtsp()
    runner, judge = start(camera)
    camera.kill()
    wait_for(lambda: health(runner).state == "reconnecting")
    count = len(judge.seen)
    time.sleep(0.3)
    assert len(judge.seen) == count
    camera.start("256x192")
    wait_for(lambda: len(judge.seen) > count + 20)
    results = runner.end()
    assert health(runner).reconnects == 1
    assert health(runner).resized == 1
    assert judge.seen[-1][0] < judge.seen[count - 1][0] + 10**4
    check_ledger(runner.stream, results)
    no_stale_ok(results)


class Garbler(threading.Thread):
    """Passes TCP on, and while ``share`` is above 0 overwrites bytes of what the camera sends."""

    def __init__(self, port):
        super().__init__(daemon=True)
        self.target, self.share, self.garbled = port, 0.0, 0
        self._chance = random.Random(3)
        self._server = socket.create_server(("127.0.0.1", 0))
        self._server.settimeout(0.2)
        self._closing = False
        self.port = self._server.getsockname()[1]
        self.start()

    def run(self):
        while not self._closing:
            try:
                client, _ = self._server.accept()
            except OSError:
                continue
            try:
                camera = socket.create_connection(("127.0.0.1", self.target), timeout=5)
            except OSError:
                client.close()
                continue
            threading.Thread(target=self._pass_on, args=(client, camera, False), daemon=True).start()
            threading.Thread(target=self._pass_on, args=(camera, client, True), daemon=True).start()

    def _pass_on(self, source, target, garble):
        with source, target:
            source.settimeout(30)
            try:
                while data := source.recv(4096):
                    if garble and self._chance.random() < self.share and len(data) > 200:
                        data = bytearray(data)
                        for _ in range(8):
                            data[self._chance.randrange(60, len(data))] = self._chance.randrange(256)
                        self.garbled += 1
                    target.sendall(data)
                target.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def close(self):
        self._closing = True
        self.join()
        self._server.close()


def test_garbled_packets_never_end_the_stream(rtsp):
    camera = rtsp()
    garbler = Garbler(camera.port)
    camera.url = camera.url.replace(str(camera.port), str(garbler.port))
    try:
        runner, judge = start(camera)
        garbler.share = 0.15
        wait_for(lambda: garbler.garbled > 20)
        garbler.share = 0.0
        count = len(judge.seen)
        wait_for(lambda: len(judge.seen) > count + 20)
        results = runner.end()
    finally:
        garbler.close()
    check_ledger(runner.stream, results)
    no_stale_ok(results)
    assert runner.error is None


def soak(rtsp, seconds, survey_s):
    """Two cameras for so long: nothing grows, nothing is lost. Returns what was counted."""
    cameras = [rtsp(fps=30, seconds=int(seconds + LONG_S)) for _ in range(2)]
    command = [sys.executable, "-m", "tests.runtime.faults.soak", str(seconds), str(survey_s)]
    done = subprocess.run(
        [*command, *(f"{camera.url}?silence={LONG_S:g}" for camera in cameras)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=seconds + LONG_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    print(found["latency_ms"], found["frames"])
    assert found["error"] is None
    assert found["frames"]["in_flight"] == 0
    assert found["reconnects"] == [0, 0]
    samples = found["samples"]
    assert len({threads for threads, _, _ in samples}) == 1, samples
    assert len({files for _, files, _ in samples}) == 1, samples
    half = len(samples) // 2
    grown = np.median([s[2] for s in samples[half:]]) - np.median([s[2] for s in samples[:half]])
    assert grown < 6.0, f"{grown:.1f} MB more in the second half"
    return found


def test_two_cameras_at_30_fps_keep_memory_threads_and_files_flat(rtsp):
    soak(rtsp, 20.0, 0.5)


@pytest.mark.slow
def test_ten_minutes_of_two_cameras(rtsp):
    """On a machine that has nothing else to do: here rates and latency count too."""
    found = soak(rtsp, 600.0, 2.0)
    assert all(28 * 600 < captured < 31 * 605 for captured in found["captured"])
    assert found["latency_ms"]["p99"] < 2 * 1e3 / 30
