"""Times on the GPU with torch around them: a whole search as one CUDA graph, so that no launch from Python is in it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray

from edgead.export.kernels.gpu import Gpu

_WARM_UP = 3
_WINDOW_MS = 2.0  # of back-to-back runs that one reading covers
_FLUSH_BYTES = 256 << 20  # more than any cache
# What a kernel takes for uint64 are 64 bits to it; torch's interface for others names no unsigned ones everywhere.
_TYPES = {
    np.dtype(np.float32): torch.float32,
    np.dtype(np.float16): torch.float16,
    np.dtype(np.int8): torch.int8,
    np.dtype(np.uint8): torch.uint8,
    np.dtype(np.int32): torch.int32,
    np.dtype(np.int64): torch.int64,
    np.dtype(np.uint64): torch.int64,
}


class TorchDevice:
    """What the launchers of `edgead.export.kernels` need, with torch's memory, which a CUDA graph may hold."""

    def __init__(self, gpu: Gpu, place: str = "cuda") -> None:
        self._gpu, self._place = gpu, place

    @property
    def multiprocessors(self) -> int:
        return self._gpu.multiprocessors

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> torch.Tensor:
        """Return an array of undefined values."""
        return torch.empty(shape, dtype=_TYPES[np.dtype(dtype)], device=self._place)

    def launch(self, kernel: str, grid: tuple[int, int, int], block: int, shared_bytes: int, *arguments: Any) -> None:
        """Run a kernel; returns at once."""
        self._gpu.launch(kernel, grid, block, shared_bytes, *arguments)

    def upload(self, values: NDArray[Any]) -> torch.Tensor:
        """Return a copy of a host array."""
        return torch.from_numpy(np.ascontiguousarray(values)).to(self._place)


class Clock:
    """Milliseconds of a work on a device.

    Args:
        stream: where all of it runs; None on the host, where nothing is recorded and the host's clock counts.
        rounds: readings, of which the median counts.
    """

    def __init__(self, stream: Any, rounds: int) -> None:
        self._stream, self._rounds = stream, rounds
        self._flush = None if stream is None else torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device="cuda")

    def measure(self, work: Callable[[], object]) -> dict[str, Any]:
        """Return ``warm_ms``, run after run, ``cold_ms``, after something else filled the caches, and ``recorded``.

        ``recorded``: whether it was one CUDA graph; where it cannot be recorded, launches from Python are in the times,
        and ``why_not`` says why.
        """
        if self._stream is None:
            begun = time.perf_counter()
            work()
            once = (time.perf_counter() - begun) * 1e3
            return {"warm_ms": once, "cold_ms": once, "recorded": False, "why_not": "on the host"}
        with torch.cuda.stream(self._stream):
            for _ in range(_WARM_UP):
                work()
        self._stream.synchronize()
        run, found = work, {"recorded": False}
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=self._stream):
                kept = work()
            run, found = graph.replay, {"recorded": True}
        # Some works synchronise, which no recording allows: their time is one with launches then.
        except Exception as error:  # noqa: BLE001
            kept, found["why_not"] = None, str(error).splitlines()[0][:200]
            torch.cuda.synchronize()
        with torch.cuda.stream(self._stream):
            once = self._reading(run, 1)
            repeats = max(1, min(200, round(_WINDOW_MS / max(once, 1e-3))))
            warm = [self._reading(run, repeats) for _ in range(self._rounds)]
            cold = [self._reading(run, 1, cold=True) for _ in range(self._rounds)]
        del kept
        return {"warm_ms": median(warm), "cold_ms": median(cold), "fastest_ms": min(warm), **found}

    def _reading(self, run: Callable[[], object], repeats: int, *, cold: bool = False) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        if cold and self._flush is not None:
            self._flush.zero_()
        begin.record()
        for _ in range(repeats):
            run()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / repeats

    def on_stream(self) -> Any:
        """Return a context in which torch uses this clock's stream."""
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)
