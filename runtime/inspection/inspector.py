"""From a frame to a decision: the same code for evaluation, checks and the camera loop."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np
from numpy.typing import NDArray

from edgead.runtime.backends import Backend, BackendInfo
from edgead.runtime.backends.proxies import ClosedBackend, SharedBackend
from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.decision.baseline import Normals
from edgead.runtime.decision.threshold import Threshold
from edgead.runtime.decision.verdict import Limits
from edgead.runtime.errors import BackendError, BundleError, ConfigError, EdgeadError
from edgead.runtime.frame import Frame, Result
from edgead.runtime.imaging.alignment import Alignment
from edgead.runtime.imaging.decode import ALL_BITS, require_bits
from edgead.runtime.imaging.roi import Region
from edgead.runtime.imaging.tiling import Tiles
from edgead.runtime.imaging.view import View
from edgead.runtime.inspection.judged import JudgedResult, array_frame, judged, look, with_image
from edgead.runtime.inspection.loading import ServingModel, load_bundle, require_same_decisions, require_same_input
from edgead.runtime.inspection.run_config import RunConfig, RunOptions
from edgead.runtime.own_process import OwnProcess

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from edgead.runtime.sinks import Sink
    from edgead.runtime.sources import Source
    from edgead.runtime.streaming.config import StreamConfig, StreamOptions
    from edgead.runtime.streaming.stream import Stream

# A backend that hangs keeps the lock indefinitely; the program must end all the same.
_CLOSE_S = 2.0

_log = logging.getLogger("edgead.inspector")


class Inspector:
    """Judges frames with one backend and one threshold.

    Thread-safe: calls are judged one at a time, and `swap` and `set_threshold` take effect between two of them. Use as
    a context manager, or call `close`.

    Args:
        backend: anything that keeps the `Backend` protocol; closed together with the inspector.
        height, width: network size in pixels.
        threshold: raw score; `ANOMALY` iff score > threshold. A routed backend takes `Limits`, one for each category.
        name: what is inspected, for messages; bits: of 16-bit image files, see `read_image`; normals: as the property.
        why: one line on how the backend was chosen; ``left_out``: why a device profile that is there was not used.
        region, tiles, align: the part of frames that is judged, how it is cut (`TiledBackend`), how its pose is undone.
    """

    # More than six parameters: each describes the one model, and `open` reads them all from a bundle.
    def __init__(
        self,
        backend: Backend,
        *,
        height: int,
        width: int,
        threshold: Threshold | Limits | float,
        name: str = "",
        why: str = "",
        region: Region | None = None,
        tiles: Tiles | None = None,
        align: Alignment | None = None,
        bits: int = ALL_BITS,
        normals: Mapping[str | None, Normals] | None = None,
    ) -> None:
        self.view, self.region, self.tiles = View(height, width, region, tiles, align), region, tiles
        self.height, self.width, self.bits, self.why = height, width, require_bits(bits), why
        self.left_out: str | None = None
        if not isinstance(threshold, Limits):
            threshold = Limits(threshold.value if isinstance(threshold, Threshold) else float(threshold))
        cleanup = ExitStack()
        cleanup.callback(backend.close)
        self._model = ServingModel(backend, threshold, name, cleanup, normals=normals or {})
        self._asked: RunConfig | None = None
        self._bundle: tuple[Path, str] | None = None
        self._process, self._precision, self._unfit = OwnProcess(), "fp32", ""
        self._lock, self._swapping, self._closed = threading.Lock(), threading.Lock(), False

    @property
    def name(self) -> str:
        """What is inspected; a bundle's name."""
        return self._model.name

    @property
    def bundle(self) -> tuple[Path, str] | None:
        """Path and SHA-256 of the bundle that judges; None where this inspector was not opened from one."""
        return self._bundle

    @property
    def serving(self) -> tuple[str, RunConfig, BackendInfo] | None:
        """Digest of the bundle that judges, what it was opened with, and what runs, all of one instant."""
        return self._model.serving

    @property
    def limits(self) -> Limits:
        """The thresholds that hold now."""
        return self._model.limits

    @property
    def normals(self) -> Mapping[str | None, Normals]:
        """What good parts looked like, by category (None: there is only one); empty where nobody measured it."""
        return self._model.normals

    @property
    def promised(self) -> Mapping[str | None, Threshold]:
        """The bundle's thresholds with their meaning, likewise; empty where no bundle was opened."""
        return self._model.promised

    @property
    def threshold(self) -> float:
        """The threshold of frames that no category is known of; a routed model has others in ``limits``."""
        return self._model.limits.value

    @property
    def network(self) -> Backend:
        """What judges now, for images at network size; each run takes its turn between frames."""
        return SharedBackend(self._lock, lambda: self._model.backend)

    @classmethod
    def open(cls, path: str | Path, config: RunConfig | None = None, **options: Unpack[RunOptions]) -> Inspector:
        """Open a bundle on this device.

        Args:
            path: a ``.edgead`` file; every check of its archive and manifest runs before anything of it is used.
            config: what is asked for; None: the defaults of `RunConfig`.
            options: fields of `RunConfig`, such as ``precision="int8-cpu"``, which count more than ``config``.

        Raises:
            BundleError: the bundle is damaged, unsafe or newer than this version.
            BackendUnavailable: the backend's library is missing.
            ConfigError: unknown backend or precision.

        Example:
            >>> with Inspector.open("screw.edgead", backend="openvino") as inspect:
            ...     print(inspect(image).decision)
        """
        loaded = load_bundle(path, replace(config or RunConfig(), **options))
        model = loaded.model
        inspector = cls(
            model.backend,
            height=loaded.view.height,
            width=loaded.view.width,
            threshold=model.limits,
            name=model.name,
            why=loaded.opening.why,
            region=loaded.view.region,
            tiles=loaded.view.tiles,
            align=loaded.view.align,
            bits=loaded.bits,
        )
        inspector._model, inspector._asked, inspector._bundle = model, loaded.asked, loaded.source
        inspector._precision, inspector.left_out = loaded.opening.precision, loaded.opening.left_out
        return inspector

    def swap(self, path: str | Path) -> None:
        """Go on with another bundle, from one frame to the next, without losing any.

        The new bundle is opened beside the old one (both models are in memory for that time) with the same backend,
        precision and number of threads (or those of its own device profile, where profiles are used), and has to pass
        what ``edgead check`` asks for. Only then does it take the old one's place; whatever is wrong with it, the old
        one stays. Its own thresholds hold, not those set before.

        Args:
            path: a ``.edgead`` file whose model takes the same input: network size, region, bits.

        Raises:
            BundleError: damaged, unsafe, or it does not decide as it should on this device.
            ConfigError: it takes another input, or this inspector was not opened from a bundle.
            BackendError: the backend cannot run it.
        """
        self._process.require("this inspector")
        if self._asked is None:
            raise ConfigError("only an inspector that was opened from a bundle can continue with another one")
        with self._swapping:
            fresh = type(self).open(path, self._asked)
            try:
                require_same_input(path, self, fresh)
                require_same_decisions(path, fresh._model.backend, fresh._precision)
                with self._lock:
                    if self._closed:
                        raise BackendError("the inspector is closed")
                    old, self._model = self._model, fresh._model
                    self._bundle, self._unfit = fresh._bundle, ""
                    self._precision, self.why, self.left_out = fresh._precision, fresh.why, fresh.left_out
            except BaseException:
                fresh.close()
                raise
            old.cleanup.close()

    def self_test(self) -> list[str]:
        """Replay the bundle's references on the backend that judges, and hold them against what the torch model gave.

        It asks what ``edgead check`` asks for, between frames: none waits for more than one reference. From the moment
        it fails every frame is `NOT_INSPECTED`, until it passes again or `swap` brings a bundle that does.

        Returns:
            One line for each thing that is wrong; empty where this device decides as the model was validated.

        Raises:
            ConfigError: this inspector was not opened from a bundle.
            BundleError: the file is not the one that was opened, which stays; BackendError: closed meanwhile.
        """
        from edgead.runtime.inspection.replay import problems, replay

        self._process.require("this inspector")
        if self._asked is None or self._bundle is None:
            raise ConfigError("only an inspector that was opened from a bundle has references to test itself with")
        with self._swapping:
            path, sha256 = self._bundle
            # It was trusted when it was opened, and is the same: a key that ran out meanwhile stops no line.
            with Bundle.open(path, made_here=True) as bundle:
                if bundle.sha256 != sha256:
                    raise BundleError(f"{path} is not the bundle that was opened; reload it (Stream.reload, SIGHUP)")
                try:
                    found = list(problems(replay(self.network, bundle, self._precision)))
                except BackendError as error:
                    found = [str(error)]
            with self._lock:
                if self._closed:  # which is no finding about the device
                    raise BackendError("the inspector is closed")
                self._unfit = f"self-test failed: {found[0]}" if found else ""
        return found

    def set_threshold(self, value: float, category: str | None = None) -> float:
        """Judge with another threshold from the next frame on, and return the one it replaces.

        It holds for this inspector only; ``edgead calibrate`` writes one into a bundle.

        Args:
            value: raw score; `ANOMALY` iff score > value.
            category: of a routed model, which has one for each.

        Raises:
            ConfigError: not a finite number, or no such category.
        """
        if not math.isfinite(value := float(value)):
            raise ConfigError(f"a threshold is a finite number, not {value}")
        with self._lock:
            before, limits = self._model.limits.changed(value, category, self.name)
            self._model = replace(self._model, limits=limits)
        return before

    def stream(
        self,
        sources: str | Path | Source | Sequence[str | Path | Source],
        *,
        sinks: Sequence[str | Path | Sink] = (),
        config: StreamConfig | None = None,
        **options: Unpack[StreamOptions],
    ) -> Stream:
        """Return the camera loop over sources, as `edgead.runtime.Stream`: ``for result in inspect.stream("0"): …``."""
        from edgead.runtime.streaming.stream import Stream

        return Stream(self, sources, sinks=sinks, config=config, **options)

    @overload
    def __call__(self, frame: Frame) -> Result: ...

    @overload
    def __call__(self, frame: NDArray[np.uint8]) -> JudgedResult: ...

    def __call__(self, frame: Frame | NDArray[np.uint8]) -> Result:
        """Judge one frame.

        Args:
            frame: a `Frame`, or an ``(H, W, 3)`` uint8 RGB or ``(H, W)`` uint8 grey array.

        Returns:
            A `Result`; where the backend fails or the score is not finite, `NOT_INSPECTED` with the reason.

        Raises:
            DataError: something else, or an array of another shape or dtype.
        """
        if isinstance(frame, Frame):
            return self.inspect_batch((frame,))[0]
        taken = array_frame(frame)
        return with_image(self.inspect_batch((taken,))[0], taken.to_rgb())

    def inspect_batch(self, frames: Sequence[Frame]) -> list[Result]:
        """Judge several frames in one run of the network, whose stage times they share; raises as a single call."""
        self._process.require("this inspector")
        if not frames:
            return []
        started = time.perf_counter()
        images, sights = look(self.view, frames)
        prepared = time.perf_counter()
        try:
            with self._lock:
                if self._unfit:
                    return [Result.not_inspected(frame, self._unfit, self.threshold) for frame in frames]
                # One look at it: frames that are judged together are judged by one model and its own thresholds.
                model = self._model
                inference = model.backend.run(images)
        except EdgeadError as error:
            return [Result.not_inspected(frame, str(error), self.threshold) for frame in frames]
        inferred = time.perf_counter()
        results: list[Result] = []
        for index, (frame, sight) in enumerate(zip(frames, sights, strict=True)):
            verdict = model.limits.judge(inference, index)
            timings = {
                "preprocess": (prepared - started) * 1e3 / len(frames),
                "network": (inferred - prepared) * 1e3 / len(frames),
                "decide": (time.perf_counter() - inferred) * 1e3 / len(frames),
            }
            results.append(judged(frame, verdict, inference.map[index], timings, sight, model.sha256))
        return results

    def describe(self) -> BackendInfo:
        """Return what really runs."""
        return self._model.describe()

    def close(self) -> None:
        """Release the backend and the extracted files; calling it twice is allowed.

        A backend that hangs cannot be released; it is left to the end of the process. A forked process has nothing to
        release: all of it belongs to the process that opened it.
        """
        if not self._process.here:
            return
        if not self._lock.acquire(timeout=_CLOSE_S):
            _log.warning("%s does not return from its backend and is left to the end of the process", self.name)
            return
        try:
            self._closed = True
            model = self._model
            self._model = replace(model, backend=ClosedBackend(model.backend.describe()), cleanup=ExitStack())
            model.cleanup.close()
        finally:
            self._lock.release()

    def __enter__(self) -> Inspector:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
