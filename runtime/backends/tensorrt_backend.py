"""TensorRT: runs the engine that ``edgead build`` made on this device.

Written against the real API and contract-tested; never executed on a GPU (docs/tensorrt.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from edgead.runtime.backends import BackendInfo
from edgead.runtime.backends.common import OUTPUTS, as_inference, check_images, check_settings, first_line, run_batches
from edgead.runtime.backends.engine_cache import EngineCache, StoredEngine
from edgead.runtime.backends.engine_key import (
    PORTABLE,
    EngineKey,
    graph_digest,
    graph_precision,
    plugin_digest,
    plugin_from_environment,
)
from edgead.runtime.backends.gpu_driver import require_gpu
from edgead.runtime.backends.tensorrt_engine import EngineRunner
from edgead.runtime.backends.tensorrt_library import Target, load_cuda, load_library, load_plugin
from edgead.runtime.errors import BackendError, EngineMissing
from edgead.runtime.frame import Inference


class TensorRtBackend:
    """Runs a graph's TensorRT engine from the cache; it never builds one, so that a start takes a known time.

    Args:
        model: graph file, its ``weights/`` folder beside it; it is only hashed, to find its engine.
        threads: accepted for the sake of all backends, and without effect on a GPU.
        batch: images a run; 0 means the most that the engine takes. `run` takes any number either way.
        outputs: what `compute` returns; `run` needs a score and a map.

    Raises:
        BackendUnavailable: library, driver or GPU is missing; `EngineMissing` where the cache has no fitting engine.
        BackendError: the engine was altered, or cannot be loaded.
        ConfigError: ``threads`` or ``batch`` is out of range.
    """

    target: ClassVar[Target] = "tensorrt"
    captures: ClassVar[bool] = True

    def __init__(
        self, model: Path, *, threads: int | None = None, batch: int = 1, outputs: Sequence[str] = OUTPUTS
    ) -> None:
        check_settings(threads, batch)
        # First the driver: without one the vendor's Runtime can end the process.
        device = require_gpu(self.target)
        library = load_library(self.target)
        plugin = plugin_from_environment()
        if plugin is not None:
            load_plugin(library, plugin)
        cache = EngineCache()
        key = EngineKey(
            graph=graph_digest(model),
            library=self.target,
            version=library.version,
            compute_capability=device.compute_capability,
            precision=graph_precision(model),
            plugin=plugin_digest(plugin),
        )
        stored = _find(cache, key, model.name)
        self._runner: EngineRunner | None = EngineRunner(
            library,
            load_cuda(),
            cache.read(stored),
            label=model.name,
            outputs=outputs,
            batch=batch,
            capture=self.captures,
        )
        graph = "CUDA graph" if self._runner.captured or not self.captures else "no CUDA graph"
        self._info = BackendInfo(
            name=self.target,
            provider=f"{self.target} engine {stored.sha256[:12]}, {graph}",
            # `edgead build` read the layers back and kept no engine that computes in another one.
            precision=key.precision.partition("-")[0],
            device=f"{device.name} (compute capability {device.compute_capability})",
            threads=0,
            version=library.version,
        )

    def run(self, images: NDArray[np.uint8]) -> Inference:
        """Score ``images (N, h, w, 3)`` uint8, N >= 1; the arrays returned are the caller's to keep."""
        return as_inference(self.compute(images))

    def compute(self, images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        """Return the outputs for ``images (N, h, w, 3)`` uint8, N >= 1; the arrays are the caller's to keep."""
        runner = self._runner
        if runner is None:
            raise BackendError("the backend is closed")
        images = check_images(images, runner.height, runner.width)
        try:
            return run_batches(images, runner.batch, runner.run)
        except (RuntimeError, ValueError) as error:
            raise BackendError(f"{self.target} failed: {first_line(error)}") from error

    def describe(self) -> BackendInfo:
        """Return what really runs."""
        return self._info

    def close(self) -> None:
        """Release the engine and its memory; calling it twice is allowed."""
        if self._runner is not None:
            self._runner.close()
        self._runner = None


def _find(cache: EngineCache, key: EngineKey, name: str) -> StoredEngine:
    """Return the engine for this device; raises `EngineMissing` with what is there instead and the command."""
    portable = EngineKey(key.graph, key.library, key.version, PORTABLE, key.precision, key.plugin)
    for candidate in (key, portable) if key.library == "tensorrt-rtx" else (key,):
        stored = cache.find(candidate)
        if stored is not None:
            return stored
    others = [other.describe() for other in cache.others(key.graph)]
    there = f" (it has one for {'; '.join(others[:3])})" if others else ""
    plugin = plugin_from_environment()
    arguments = f"--target {key.library} --precision {key.precision}" + (f" --plugin {plugin}" if plugin else "")
    raise EngineMissing(f"{cache.folder} holds no engine of {name} for {key.describe()}{there}", arguments)
