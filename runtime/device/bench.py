"""``edgead bench``: camera-to-decision latency of each backend and precision, with its accuracy beside it."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgead.runtime.backends import available, choose
from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.bundle.manifest import Manifest
from edgead.runtime.bundle.references import expected_inferences
from edgead.runtime.decision.verdict import Verdict
from edgead.runtime.device.bench_report import Accuracy, BenchReport
from edgead.runtime.device.bench_turns import ROUND, Candidate, measure_for, measure_frames
from edgead.runtime.device.board_status import describe_board
from edgead.runtime.errors import BackendError, BackendUnavailable, BundleError, ConfigError
from edgead.runtime.frame import Frame
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
MOST_SECONDS = 86_400.0

_POOL_BYTES = 256 << 20  # different frames held; enough of them that none stays in the processor's cache


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
        length = ROUND if rate_fps is None else math.ceil(frames / 2)
        during: list[dict[str, Any]] = []
        if duration_s is None:
            measure_frames(candidates, pool, frames, length, rate_fps, progress)
        else:
            during = measure_for(candidates, pool, duration_s, rate_fps, progress)
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
    candidates = [Candidate(inspector, "") for inspector in inspectors]
    for candidate in candidates:
        candidate.warm(pool, WARM_UP)
    measure_frames(candidates, pool, frames, turn, None, progress)
    return [candidate.latency() for candidate in candidates]


def check_frames(frames: int, frame_size: tuple[int, int]) -> None:
    """Raise `ConfigError` where a number of frames or their size is out of range."""
    if frames < 1:
        raise ConfigError(f"--frames must be at least 1, got {frames}")
    if not all(16 <= side <= 16384 for side in frame_size):
        raise ConfigError(f"--frame-size must lie between 16x16 and 16384x16384, got {frame_size[0]}x{frame_size[1]}")


def _open_all(
    bundle: Bundle, names: Sequence[str], precisions: Sequence[str], threads: int | None, stack: ExitStack
) -> tuple[list[Candidate], dict[str, str]]:
    wanted = list(dict.fromkeys(choose(name)[0] for name in names))
    # A reduced-precision variant of a backend is measured where it is asked for, as it is used nowhere else.
    tried = wanted or [name for name in available() if not name.endswith("-bf16")]
    if not tried:
        choose("auto")  # says how to install one
    candidates: list[Candidate] = []
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
                candidates.append(Candidate(stack.enter_context(inspector), precision))
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


def _versions() -> dict[str, str]:
    import PIL

    return {
        "edgead": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "pillow": PIL.__version__,
    }
