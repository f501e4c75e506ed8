"""``edgead bench``: camera-to-decision latency of each backend and precision, with its accuracy beside it."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgead.runtime.backends import available, choose
from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.bundle.manifest import Manifest
from edgead.runtime.bundle.references import expected_inferences
from edgead.runtime.decision.verdict import Verdict
from edgead.runtime.device.bench_report import Accuracy, BenchReport, BenchRow
from edgead.runtime.device.board_status import describe_board
from edgead.runtime.errors import BackendError, BackendUnavailable, BundleError, ConfigError
from edgead.runtime.frame import Decision, Frame
from edgead.runtime.imaging.decode import decode_image
from edgead.runtime.imaging.preprocess import resize
from edgead.runtime.inspection.inspector import Inspector
from edgead.runtime.machine import describe_machine
from edgead.runtime.progress import StepProgress
from edgead.runtime.status.latency import Latency
from edgead.runtime.version import __version__

DEFAULT_FRAMES = 200
DEFAULT_FRAME_SIZE = (1280, 1024)
WARM_UP = 10

# A round per candidate, then the next one: whatever else the machine does meanwhile meets all of them alike.
_ROUND = 20
_SETTLE = 2  # uncounted frames at the start of a round, for caches and for threads that still spin
_POOL_BYTES = 256 << 20  # different frames held; enough of them that none stays in the processor's cache
_SAMPLE_S = 60.0  # between two looks at the board in a long run
MOST_SECONDS = 86_400.0
_SPIN_S = 0.001  # sleeping ends late by less than this, so the rest is spent looking at the clock


# More than six parameters: the options of ``edgead bench``, which scripts pass by name.
def bench(
    path: str | Path,
    *,
    backends: Sequence[str] = (),
    precisions: Sequence[str] = (),
    frames: int = DEFAULT_FRAMES,
    rate_fps: float | None = None,
    frame_size: tuple[int, int] = DEFAULT_FRAME_SIZE,
    threads: int | None = None,
    duration_s: float | None = None,
    progress: StepProgress | None = None,
) -> BenchReport:
    """Measure a bundle on this device.

    The frames are the bundle's references, resized to ``frame_size``, in the channel order of OpenCV's cameras. Each
    backend is warmed up, and then they take turns in one process.

    Args:
        path: a ``.edgead`` file.
        backends: registry names or ``auto``; none means every installed one of full precision.
        precisions: keys of the bundle's precisions; none means those that are made for each backend.
        frames: counted frames a backend and precision.
        rate_fps: None: the next frame follows each decision. Otherwise frames come on a fixed schedule, and latency
            counts from the scheduled time, also for a frame that waited because the one before was late (so a slow
            frame is not hidden by those it delayed: no coordinated omission).
        frame_size: ``(width, height)`` of the camera, in pixels; a bundle that judges a region of frames of one size
            has that one, whatever is asked for.
        threads: CPU threads of each backend; None leaves the choice to it.
        duration_s: measure for so many seconds in place of ``frames``, all candidates together, and look at the board
            every minute: what a device keeps up when it is warm.
        progress: called with (done, total) counted frames, or seconds.

    Raises:
        BundleError: damaged, unsafe, or without references.
        BackendUnavailable, BackendError: a named backend is missing or fails, or none is installed.
        ConfigError: a number out of range, unknown backend.
    """
    check_frames(frames, frame_size)
    if rate_fps is not None and not 0.01 <= rate_fps <= 100_000:
        raise ConfigError(f"--rate must lie between 0.01 and 100000 frames a second, got {rate_fps}")
    if duration_s is not None and not 1 <= duration_s <= MOST_SECONDS:
        raise ConfigError(f"--duration must lie between 1 and {MOST_SECONDS:.0f} seconds, got {duration_s:g}")
    with Bundle.open(path) as bundle, ExitStack() as stack:
        images = {name: decode_image(png, name) for name, png in bundle.references()}
        if not images:
            raise BundleError(f"{path} holds no reference images to make frames of; export it again")
        candidates, skipped = _open_all(bundle, backends, precisions, threads, stack)
        known = _expected_verdicts(bundle)
        frame_size = bundle.view().frame_size or frame_size
        pool = frame_pool(list(images.values()), frame_size)
        for candidate in candidates:
            candidate.accuracy = _accuracy(candidate.inspector, images, known)
            candidate.warm(pool, WARM_UP)
        before = describe_board()
        # With a schedule a queue may build up, and only a long run shows it.
        length = _ROUND if rate_fps is None else math.ceil(frames / 2)
        during: list[dict[str, Any]] = []
        if duration_s is None:
            _take_turns(candidates, pool, frames, length, rate_fps, progress)
        else:
            during = _take_turns_for(candidates, pool, duration_s, rate_fps, progress)
        # At once, while the board is as warm as the figures are.
        after = describe_board()
        return BenchReport(
            bundle=str(path),
            model_sha256=bundle.sha256,
            frame_size=frame_size,
            frames=frames if duration_s is None else candidates[0].counted,
            duration_s=duration_s,
            warm_up=WARM_UP,
            rate_fps=rate_fps,
            machine=describe_machine(),
            board={"before": before, "after": after, **({"during": during} if duration_s is not None else {})},
            versions=_versions(),
            rows=tuple(candidate.row() for candidate in candidates),
            skipped=skipped,
        )


def take_turns(
    inspectors: Sequence[Inspector],
    images: Sequence[NDArray[np.uint8]],
    *,
    frames: int,
    turn: int,
    frame_size: tuple[int, int] = DEFAULT_FRAME_SIZE,
    progress: StepProgress | None = None,
) -> list[Latency]:
    """Return the camera-to-decision latency of several inspectors in one process, frame for frame as `bench` takes it.

    Args:
        inspectors: warmed up first, then measured in turns.
        images: ``(H, W, 3)`` uint8 RGB, at least one; resized to ``frame_size``, ``(width, height)`` in pixels.
        frames: counted frames of each inspector; turn: of those, how many before the next one's turn.
        progress: called with (done, total) counted frames.

    Raises:
        BackendError: an inspector gave no valid score for any frame.
    """
    pool = frame_pool(images, frame_size)
    candidates = [_Candidate(inspector, "") for inspector in inspectors]
    for candidate in candidates:
        candidate.warm(pool, WARM_UP)
    _take_turns(candidates, pool, frames, turn, None, progress)
    return [candidate.latency() for candidate in candidates]


@dataclass(slots=True)
class _Candidate:
    """One backend and precision while it is measured; times in ms."""

    inspector: Inspector
    precision: str
    accuracy: Accuracy | None = None
    end_to_end: list[float] = field(default_factory=list)
    stages: dict[str, list[float]] = field(default_factory=dict)
    busy_s: float = 0.0
    queued: int = 0
    failed: int = 0
    reason: str = ""
    decisions: dict[str, int] = field(default_factory=lambda: dict.fromkeys((d.value for d in Decision), 0))

    def warm(self, pool: Sequence[NDArray[np.uint8]], frames: int) -> None:
        """Judge a few frames without counting them."""
        for number in range(frames):
            self.inspector(Frame(pool[number % len(pool)], number, time.monotonic_ns(), "bench", "bgr"))

    def count(self, pool: Sequence[NDArray[np.uint8]], number: int, captured_ns: int, *, queued: bool) -> None:
        """Judge one frame and count it."""
        started_ns = time.monotonic_ns()
        result = self.inspector(Frame(pool[number % len(pool)], number, captured_ns, "bench", "bgr"))
        done_ns = time.monotonic_ns()
        self.decisions[result.decision.value] += 1
        self.queued += queued
        if not math.isfinite(result.score):
            self.failed += 1
            self.reason = result.reason or "no valid score"
            return
        self.end_to_end.append((done_ns - captured_ns) / 1e6)
        for name, value in {"wait": (started_ns - captured_ns) / 1e6, **result.timings}.items():
            self.stages.setdefault(name, []).append(value)

    @property
    def counted(self) -> int:
        return len(self.end_to_end) + self.failed

    def latency(self) -> Latency:
        if not self.end_to_end:
            raise BackendError(f"{self.inspector.describe().name} gave no valid score for any frame ({self.reason})")
        return _latency(self.end_to_end)

    def row(self) -> BenchRow:
        assert self.accuracy is not None
        latency = self.latency()
        return BenchRow(
            backend=self.inspector.describe(),
            why=self.inspector.why,
            precision=self.precision,
            latency=latency,
            stages={name: _latency(values) for name, values in self.stages.items()},
            throughput_fps=len(self.end_to_end) / self.busy_s,
            queued=self.queued,
            inspected=len(self.end_to_end),
            failed=self.failed,
            decisions=self.decisions,
            accuracy=self.accuracy,
        )


def check_frames(frames: int, frame_size: tuple[int, int]) -> None:
    """Raise `ConfigError` where a number of frames or their size is out of range."""
    if frames < 1:
        raise ConfigError(f"--frames must be at least 1, got {frames}")
    if not all(16 <= side <= 16384 for side in frame_size):
        raise ConfigError(f"--frame-size must lie between 16x16 and 16384x16384, got {frame_size[0]}x{frame_size[1]}")


def _open_all(
    bundle: Bundle, names: Sequence[str], precisions: Sequence[str], threads: int | None, stack: ExitStack
) -> tuple[list[_Candidate], dict[str, str]]:
    wanted = list(dict.fromkeys(choose(name)[0] for name in names))
    # A reduced-precision variant of a backend is measured where it is asked for, as it is used nowhere else.
    tried = wanted or [name for name in available() if not name.endswith("-bf16")]
    if not tried:
        choose("auto")  # says how to install one
    candidates: list[_Candidate] = []
    skipped: dict[str, str] = {}
    for name in tried:
        for precision in dict.fromkeys(precisions) or meant_for(bundle.manifest, name):
            try:
                inspector = Inspector.open(bundle.path, backend=name, precision=precision, threads=threads)
            except BackendError as error:
                if wanted:
                    raise
                skipped[name] = str(error)
            else:
                candidates.append(_Candidate(stack.enter_context(inspector), precision))
    if not candidates:
        raise BackendUnavailable(f"no backend can run {bundle.path}: {'; '.join(skipped.values())}")
    return candidates, skipped


def meant_for(manifest: Manifest, backend: str) -> list[str]:
    """Return the precisions of a bundle that are made for a backend, fp32 first."""
    meant = sorted(
        (key for key, entry in manifest.precisions.items() if backend in entry.runtimes),
        key=lambda key: (key != "fp32", key),
    )
    return meant or ["fp32"]


def frame_pool(images: Sequence[NDArray[np.uint8]], frame_size: tuple[int, int]) -> list[NDArray[np.uint8]]:
    """Return the references at camera size, in BGR as OpenCV's cameras deliver."""
    width, height = frame_size
    fitting = max(2, _POOL_BYTES // (3 * width * height))
    return [np.ascontiguousarray(resize(image, height, width)[:, :, ::-1]) for image in images[:fitting]]


def _expected_verdicts(bundle: Bundle) -> dict[str, Verdict]:
    limits = bundle.manifest.limits()
    return {name: limits.judge(one, 0) for name, one in expected_inferences(bundle.expected()).items()}


def _accuracy(inspector: Inspector, images: dict[str, NDArray[np.uint8]], expected: dict[str, Verdict]) -> Accuracy:
    differences, changed = [0.0], []
    for index, (name, image) in enumerate(images.items()):
        result = inspector(Frame(image, index, time.monotonic_ns(), "references"))
        verdict = expected[name]
        difference = abs(result.score - verdict.score)
        differences.append(difference if math.isfinite(difference) else math.inf)
        if result.decision is not verdict.decision or result.category != verdict.category:
            changed.append(name)
    return Accuracy(len(images), max(differences), tuple(changed))


def _take_turns(
    candidates: Sequence[_Candidate],
    pool: Sequence[NDArray[np.uint8]],
    frames: int,
    length: int,
    rate_fps: float | None,
    progress: StepProgress | None,
) -> None:
    done = 0
    for number, first in enumerate(range(0, frames, length)):
        turn = range(first, min(first + length, frames))
        order = candidates if number % 2 == 0 else candidates[::-1]
        for candidate in order:
            candidate.warm(pool, _SETTLE)
            _run_turn(candidate, pool, turn, rate_fps)
            done += len(turn)
            if progress is not None:
                progress(done, frames * len(candidates))


def _take_turns_for(
    candidates: Sequence[_Candidate],
    pool: Sequence[NDArray[np.uint8]],
    seconds: float,
    rate_fps: float | None,
    progress: StepProgress | None,
) -> list[dict[str, Any]]:
    """Measure for so many seconds; returns the board as it was every minute, looked at between two turns."""
    begun, samples = time.monotonic(), []
    due, first = begun + _SAMPLE_S, 0
    # On a schedule a turn is a second of it, so that a queue may build up in each.
    length = _ROUND if rate_fps is None else max(_ROUND, math.ceil(rate_fps))
    while (now := time.monotonic()) < begun + seconds:
        if now >= due:
            samples.append(describe_board())
            due = now + _SAMPLE_S
        for candidate in candidates if first // length % 2 == 0 else candidates[::-1]:
            candidate.warm(pool, _SETTLE)
            _run_turn(candidate, pool, range(first, first + length), rate_fps)
        first += length
        if progress is not None:
            progress(min(int(time.monotonic() - begun), int(seconds)), int(seconds))
    return samples


def _run_turn(candidate: _Candidate, pool: Sequence[NDArray[np.uint8]], turn: range, rate_fps: float | None) -> None:
    begun_ns = time.monotonic_ns()
    for index, number in enumerate(turn):
        if rate_fps is None:
            candidate.count(pool, number, time.monotonic_ns(), queued=False)
            continue
        due_ns = begun_ns + round(index * 1e9 / rate_fps)
        late = time.monotonic_ns() > due_ns and index > 0
        _wait_until(due_ns)
        candidate.count(pool, number, due_ns, queued=late)
    candidate.busy_s += (time.monotonic_ns() - begun_ns) / 1e9


def _wait_until(due_ns: int) -> None:
    left = (due_ns - time.monotonic_ns()) / 1e9
    if left > _SPIN_S:
        time.sleep(left - _SPIN_S)
    while time.monotonic_ns() < due_ns:
        pass


def _latency(values_ms: Sequence[float]) -> Latency:
    """Percentiles by nearest rank, exact: a few hundred values need no histogram."""
    ordered = sorted(values_ms)
    p50, p95, p99 = (ordered[math.ceil(share * len(ordered)) - 1] for share in (0.5, 0.95, 0.99))
    return Latency(p50, p95, p99, ordered[-1], len(ordered))


def _versions() -> dict[str, str]:
    import PIL

    return {
        "edgead": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "pillow": PIL.__version__,
    }
