"""Cameras and backends that fail on command, and what they are watched with."""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import replace

import numpy as np

from edgead.runtime.backends import BackendInfo
from edgead.runtime.errors import BackendError
from edgead.runtime.frame import Frame, Inference
from edgead.runtime.inspection.inspector import Inspector
from edgead.runtime.sources import Delivery, Source
from edgead.runtime.streaming.grabber import Survival
from tests.waiting import LONG_S

SHAPE = (8, 8, 3)
# Losses are over in milliseconds here, so that hundreds fit into a test.
QUICK = Survival(first_s=0.01, longest_s=0.05, steady_s=LONG_S, opening_s=LONG_S, stuck=3)


class Device:
    """A camera as a thing: it can be away, come back, fall silent, and its driver can hang."""

    def __init__(self, name="camera", policy="newest", max_age_s=None, silence_s=None):
        self.name, self.delivery = name, Delivery(policy, max_age_s, silence_s)
        self.there = True
        self.shape = SHAPE
        self.opened = self.closed = self.made = 0
        self.hanging = threading.Event()
        self.release = threading.Event()  # lets hanging drivers go
        self._queue = queue.SimpleQueue()

    def push(self, level=50, **changes):
        """Make a picture; its number (since the device was made) is in its name."""
        self._queue.put((level, self.made, changes))
        self.made += 1

    def command(self, what):
        """``lose``, ``hang``, ``end``, ``break``: what the driver does when it comes to it."""
        self._queue.put(what)

    def open(self):
        return DeviceSource(self)


class DeviceSource(Source):
    def __init__(self, device):
        from edgead.runtime.errors import SourceError

        if not device.there:
            raise SourceError(f"cannot open {device.name}; it is away")
        device.opened += 1
        self.device = device
        self.source_id, self.live, self.delivery = device.name, True, device.delivery
        self._closed = threading.Event()

    def frames(self):
        from edgead.runtime.errors import SourceLost

        index = 0
        while not self._closed.is_set():
            try:
                item = self.device._queue.get(timeout=0.01)
            except queue.Empty:
                continue
            if self._closed.is_set():
                self.device._queue.put(item)  # not ours any more
                return
            if item == "lose":
                raise SourceLost(f"{self.source_id} stopped after {index} frames")
            if item == "break":
                raise KeyError("driver table")
            if item == "end":
                return
            if item == "hang":
                self.device.release.clear()
                self.device.hanging.set()
                assert self.device.release.wait(2 * LONG_S)
                if not self._closed.is_set():
                    continue  # let go before anybody minded
                # What comes now was captured before: nobody may judge it.
                yield Frame(np.full(SHAPE, 200, np.uint8), index, time.monotonic_ns(), self.source_id, name="old")
                return
            level, number, changes = item
            stamp = time.monotonic_ns() - int(changes.get("age_s", 0.0) * 1e9)
            image = np.full(changes.get("shape", self.device.shape), level, np.uint8)
            yield Frame(image, index, stamp, self.source_id, name=str(number))
            index += 1

    def close(self):
        if not self._closed.is_set():
            self.device.closed += 1
        self._closed.set()

    def reopener(self):
        return self.device.open


class Brightness:
    """The score is the mean grey value. Level 13 and 14 raise, 15 gives NaN, 16 hangs until it is let go."""

    def __init__(self, delay=0.0):
        self.delay = delay
        self.go = threading.Event()
        self.entered = threading.Event()
        self.seen = []

    def run(self, images):
        self.entered.set()
        score = images.mean(axis=(1, 2, 3), dtype=np.float64)
        self.seen += score.tolist()
        if (score == 16).any():
            assert self.go.wait(2 * LONG_S)
        time.sleep(self.delay)
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


def inspector(backend=None):
    return Inspector(backend or Brightness(), height=8, width=8, threshold=100.0)


class Ailing:
    """Passes a backend's results on, or spoils them."""

    def __init__(self, backend, spoil):
        self.backend, self.spoil = backend, spoil
        self.describe, self.close = backend.describe, backend.close

    def run(self, images):
        return self.spoil(self.backend.run(images))


def fall_ill(inspect: Inspector, spoil) -> None:
    inspect._model = replace(inspect._model, backend=Ailing(inspect._model.backend, spoil))


def recover(inspect: Inspector) -> None:
    fall_ill(inspect, lambda found: found)
    inspect._model.backend.backend = inspect._model.backend.backend.backend


def drifted(found: Inference) -> Inference:
    return Inference(found.score * 1.01, found.map * np.float32(1.01))


class Runner:
    """Runs a stream in a thread, like a program with a user interface does."""

    def __init__(self, stream):
        self.stream = stream
        self.results = []
        self.error = None
        # A daemon: a test that fails leaves it behind, and the process must end all the same.
        self.thread = threading.Thread(target=self._run, name="runner", daemon=True)
        self.thread.start()

    def _run(self):
        try:
            for result in self.stream:
                self.results.append(result)
        except Exception as error:  # noqa: BLE001
            self.error = error

    def join(self, seconds=LONG_S):
        self.thread.join(seconds)
        assert not self.thread.is_alive()
        return self.results

    def end(self):
        self.stream.stop()
        return self.join()


def check_ledger(stream, results):
    """The books of a stream that has ended, against the Results it gave."""
    summary = stream.summary
    frames = summary.frames
    assert frames.in_flight == 0
    settled = frames.inspected + sum(frames.dropped.values()) + sum(frames.failed.values())
    assert frames.captured == settled
    assert len(results) == frames.inspected + sum(frames.failed.values()) == sum(summary.decisions.values())
    for name in summary.sources:
        numbers = [result.frame_index for result in results if result.source_id == name]
        assert numbers == sorted(set(numbers)), "frame numbers rise, and none comes twice"
