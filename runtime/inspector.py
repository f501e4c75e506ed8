"""From a frame to a decision: the same code for evaluation, checks and the camera loop."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgead.runtime.backends import Backend, BackendInfo, Inference, choose
from edgead.runtime.errors import BackendError, ConfigError, EdgeadError, suggest
from edgead.runtime.frame import Decision, Frame, Result
from edgead.runtime.limits import Limits
from edgead.runtime.preprocess import resize
from edgead.runtime.threshold import Threshold

if TYPE_CHECKING:
    from edgead.runtime.manifest import Manifest


class Inspector:
    """Judges frames with one backend and one threshold.

    Thread-safe: calls are judged one at a time. Use as a context manager, or call `close`.

    Args:
        backend: anything that keeps the `Backend` protocol; closed together with the inspector.
        height, width: network size in pixels.
        threshold: raw score; `ANOMALY` iff score > threshold. A routed backend takes `Limits`, which hold one for each
            category.
        name: what is inspected, for messages.
        why: one line on how the backend was chosen.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        height: int,
        width: int,
        threshold: Threshold | Limits | float,
        name: str = "",
        why: str = "",
    ) -> None:
        self.height = height
        self.width = width
        self.name = name
        self.why = why
        if not isinstance(threshold, Limits):
            threshold = Limits(threshold.value if isinstance(threshold, Threshold) else float(threshold))
        self.limits = threshold
        self._backend = backend
        self._precision: str | None = None
        self._lock = threading.Lock()
        self._cleanup = ExitStack()
        self._cleanup.callback(backend.close)

    @property
    def threshold(self) -> float:
        """The threshold of frames that no category is known of; a routed model has others in ``limits``."""
        return self.limits.value

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        backend: str = "auto",
        precision: str | None = None,
        threads: int | None = None,
        batch: int = 1,
    ) -> Inspector:
        """Open a bundle on this device.

        Args:
            path: a ``.edgead`` file; every check of design section 2 runs before anything of it is used.
            backend: registry name or ``auto``; a named backend never falls back to another.
            precision: a key of the manifest's ``precisions``; None means ``fp32``.
            threads: CPU threads of the backend; None leaves the choice to it.
            batch: batch size the backend is compiled for.

        Raises:
            BundleError: the bundle is damaged, unsafe or newer than this version.
            BackendUnavailable: the backend's library is missing.
            ConfigError: unknown backend or precision.
        """
        from edgead.runtime.bundle import Bundle
        from edgead.runtime.routed import open_model

        chosen, why = choose(backend)
        with Bundle.open(Path(path)) as bundle, ExitStack() as stack:
            manifest = bundle.manifest
            precision = precision or "fp32"
            if precision not in manifest.precisions:
                known = suggest(precision, manifest.precisions)
                raise ConfigError(f"{bundle.path} has no precision '{precision}'.{known}")
            entry = manifest.precisions[precision]
            _require_parity(manifest, entry.file, chosen)
            model = stack.enter_context(bundle.model_files(precision))
            opened = open_model(chosen, manifest, model, precision, threads=threads, batch=batch, bundle=bundle.path)
            inspector = cls(
                opened,
                height=manifest.input.height,
                width=manifest.input.width,
                threshold=manifest.limits(precision),
                name=manifest.name,
                why=why,
            )
            # A runtime cannot tell what is in a graph; it only knows what it computes the rest in.
            inspector._precision = "int8" if precision.startswith("int8") else None
            # The backend maps the extracted weights; they go when the inspector goes.
            inspector._cleanup.push(stack.pop_all())
        return inspector

    def set_threshold(self, value: float, category: str | None = None) -> float:
        """Judge with another threshold from the next frame on, and return the one it replaces.

        It holds for this inspector only; ``edgead calibrate`` writes one into a bundle.

        Args:
            value: raw score; `ANOMALY` iff score > value.
            category: of a routed model, which has one for each.

        Raises:
            ConfigError: not a finite number, or no such category.
        """
        value = float(value)
        if not math.isfinite(value):
            raise ConfigError(f"a threshold is a finite number, not {value}")
        with self._lock:
            limits = self.limits
            if category is None and limits.categories:
                raise ConfigError(f"a routed model has a threshold for each category: {', '.join(limits.categories)}")
            if category is None:
                before, self.limits = limits.value, Limits(value)
            elif category in limits.categories:
                before = limits.categories[category]
                self.limits = Limits(limits.value, {**limits.categories, category: value})
            else:
                raise ConfigError(f"{self.name} has no category '{category}'.{suggest(category, limits.categories)}")
        return before

    def __call__(self, frame: Frame | NDArray[np.uint8]) -> Result:
        """Judge one frame.

        Args:
            frame: a `Frame`, or an ``(H, W, 3)`` uint8 RGB or ``(H, W)`` uint8 grey array.

        Returns:
            A `Result`; where the backend fails or the score is not finite, `NOT_INSPECTED` with the reason.

        Raises:
            DataError: the array has another shape or dtype.
        """
        if not isinstance(frame, Frame):
            frame = Frame(frame, 0, time.monotonic_ns(), "array", "gray" if frame.ndim == 2 else "rgb")
        return self.inspect_batch((frame,))[0]

    def inspect_batch(self, frames: Sequence[Frame]) -> list[Result]:
        """Judge several frames in one run of the network; stage times are shared equally between them."""
        if not frames:
            return []
        started = time.perf_counter()
        images = np.empty((len(frames), self.height, self.width, 3), np.uint8)
        for slot, frame in zip(images, frames, strict=True):
            slot[...] = resize(frame.image, self.height, self.width, frame.layout)
        prepared = time.perf_counter()
        try:
            with self._lock:
                inference = self._backend.run(images)
        except EdgeadError as error:
            return [self._not_inspected(frame, str(error)) for frame in frames]
        inferred = time.perf_counter()
        results = []
        for index, frame in enumerate(frames):
            verdict = self.limits.judge(inference, index)
            timings = {
                "preprocess": (prepared - started) * 1e3 / len(frames),
                "network": (inferred - prepared) * 1e3 / len(frames),
                "decide": (time.perf_counter() - inferred) * 1e3 / len(frames),
            }
            results.append(
                Result(
                    score=verdict.score,
                    threshold=verdict.threshold,
                    decision=verdict.decision,
                    frame_index=frame.index,
                    timestamp_ns=frame.timestamp_ns,
                    source_id=frame.source_id,
                    category=verdict.category,
                    map=inference.map[index],
                    timings=timings,
                    reason=verdict.reason,
                    name=frame.name,
                )
            )
        return results

    def describe(self) -> BackendInfo:
        """Return what really runs."""
        info = self._backend.describe()
        return info if self._precision is None else replace(info, precision=self._precision)

    def close(self) -> None:
        """Release the backend and the extracted files; calling it twice is allowed."""
        with self._lock:
            self._cleanup.close()
            self._backend = _Closed(self._backend.describe())

    def __enter__(self) -> Inspector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _not_inspected(self, frame: Frame, reason: str) -> Result:
        return Result(
            score=float("nan"),
            threshold=self.threshold,
            decision=Decision.NOT_INSPECTED,
            frame_index=frame.index,
            timestamp_ns=frame.timestamp_ns,
            source_id=frame.source_id,
            reason=reason,
            name=frame.name,
        )


def _require_parity(manifest: Manifest, file: str, backend: str) -> None:
    """Refuse a backend of reduced precision unless the bundle proves that it changed no decision."""
    if not backend.endswith("-bf16"):
        return
    record = manifest.parity.get(file, {}).get(backend)
    fallback = backend.removesuffix("-bf16")
    if record is None:
        raise ConfigError(
            f"{manifest.name} holds no parity evidence for '{backend}'; use '{fallback}' or export it again"
        )
    changed = record.flips + record.borderline
    if changed:
        raise ConfigError(
            f"'{backend}' changed {changed} of {record.images} decisions when {manifest.name} was exported; "
            f"use '{fallback}'"
        )


class _Closed:
    """Stands in for a released backend, so that a late frame is NOT_INSPECTED and never a crash."""

    def __init__(self, info: BackendInfo) -> None:
        self._info = info

    def run(self, images: NDArray[np.uint8]) -> Inference:  # noqa: ARG002 - keeps the protocol
        raise BackendError("the inspector is closed")

    def describe(self) -> BackendInfo:
        return self._info

    def close(self) -> None:
        pass
