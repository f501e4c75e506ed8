"""Backends: the libraries that execute a bundle's graph, one file each, chosen by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from edgead.runtime.backends.gpu_driver import cuda_driver
from edgead.runtime.errors import BackendUnavailable, ConfigError, missing_extra, suggest
from edgead.runtime.frame import Inference


@dataclass(frozen=True, slots=True)
class BackendInfo:
    """What really runs: names as the vendor library reports them after the model was loaded."""

    name: str
    provider: str
    precision: str
    device: str
    threads: int
    version: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Backend(Protocol):
    """Executes one scoring graph. Not thread-safe: one caller at a time."""

    def run(self, images: NDArray[np.uint8]) -> Inference:
        """Score ``images (N, h, w, 3)`` uint8 RGB at network size; raises `BackendError` where the library fails."""

    def describe(self) -> BackendInfo:
        """Return what really runs."""

    def close(self) -> None:
        """Release the model; calling it twice is allowed."""


class Network(Protocol):
    """Executes one graph, whatever its outputs are. Not thread-safe: one caller at a time."""

    def compute(self, images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        """Return the outputs asked for at opening, ``(N, ...)`` each; raises `BackendError` where the library fails."""

    def describe(self) -> BackendInfo:
        """Return what really runs."""

    def close(self) -> None:
        """Release the model; calling it twice is allowed."""


class BackendEntry(NamedTuple):
    """One registry line: where the class lives, which package it needs, which extra brings it.

    ``distribution`` is what must be installed where several bring the same package; ``gpu`` backends run only where
    the NVIDIA driver offers a GPU.
    """

    module: str
    factory: str
    package: str
    extra: str
    precisions: tuple[str, ...]
    gpu: bool = False
    distribution: str | None = None

    @property
    def installed(self) -> bool:
        """Whether the library is there; it is not imported."""
        if find_spec(self.package) is None:
            return False
        if self.distribution is None:
            return True
        try:
            version(self.distribution)
        except PackageNotFoundError:
            return False
        return True

    @property
    def problem(self) -> str | None:
        """Why the backend cannot run here, on one line, with the command that helps; None where it can."""
        if self.gpu and cuda_driver().problem is not None:
            return f"it needs an NVIDIA GPU: {cuda_driver().problem}; see: edgead doctor"
        return None if self.installed else missing_extra(self.distribution or self.package, self.extra)


_GPU_PRECISIONS = ("fp32", "fp16", "int8-trt")


# One line a backend. Order is the order in which `auto` tries them: what has been proved first.
REGISTRY: dict[str, BackendEntry] = {
    "onnxruntime": BackendEntry("onnxruntime_backend", "OnnxRuntimeBackend", "onnxruntime", "cpu", ("fp32",)),
    "openvino": BackendEntry("openvino_backend", "OpenVinoBackend", "openvino", "openvino", ("fp32",)),
    "openvino-bf16": BackendEntry("openvino_backend", "OpenVinoBf16Backend", "openvino", "openvino", ("fp32",)),
    "onnxruntime-cuda": BackendEntry(
        "onnxruntime_backend", "OnnxRuntimeCudaBackend", "onnxruntime", "gpu", ("fp32",), True, "onnxruntime-gpu"
    ),
    "tensorrt": BackendEntry("tensorrt_backend", "TensorRtBackend", "tensorrt", "tensorrt", _GPU_PRECISIONS, True),
    "tensorrt-rtx": BackendEntry(
        "tensorrt_rtx_backend", "TensorRtRtxBackend", "tensorrt_rtx", "rtx", _GPU_PRECISIONS, True
    ),
}


def available() -> list[str]:
    """Return the backends that can run here: library installed, GPU there where one is needed; in `auto`'s order."""
    return [name for name, entry in REGISTRY.items() if entry.problem is None]


def unavailable() -> dict[str, str]:
    """Return the other registered backends, each with the reason."""
    return {name: entry.problem for name, entry in REGISTRY.items() if entry.problem is not None}


def choose(name: str = "auto") -> tuple[str, str]:
    """Return ``(backend name, why)`` for a requested name; ``auto`` takes the first available one.

    Raises:
        ConfigError: the name is not registered.
        BackendUnavailable: the named backend's library is missing, or `auto` found none.
    """
    if name == "auto":
        # A reduced-precision variant is never chosen silently.
        found = [candidate for candidate in available() if candidate != "openvino-bf16"]
        if not found:
            raise BackendUnavailable("no backend is installed; run: pip install 'edgead[cpu]'")
        return found[0], f"auto: {found[0]} (installed: {', '.join(found)})"
    if name not in REGISTRY:
        raise ConfigError(f"unknown backend '{name}'.{suggest(name, [*REGISTRY, 'auto'])}")
    problem = REGISTRY[name].problem
    if problem is not None:
        raise BackendUnavailable(f"{name}: {problem}" if REGISTRY[name].gpu else problem)
    return name, f"asked for by name: {name}"


def open_backend(name: str, model: Path, *, threads: int | None = None, batch: int = 1) -> Backend:
    """Open the graph file ``model`` with a registered backend.

    Args:
        name: a registry name (resolve ``auto`` with `choose` first).
        model: path of the ``.onnx`` file, its ``weights/`` folder beside it.
        threads: number of CPU threads; None leaves the choice to the library.
        batch: the batch size the backend is compiled for; 0 keeps the batch axis dynamic.
    """
    opened: Backend = _factory(name)(model, threads=threads, batch=batch)
    return opened


def batch_size(name: str, frames: int) -> int:
    """Return the ``batch`` with which a backend is opened that judges up to so many frames at once.

    Backends on the CPU take any size, so a batch that is not full costs less; an engine is built for one size.
    """
    return frames if REGISTRY[name].gpu else 0


def open_network(
    name: str, model: Path, outputs: Sequence[str], *, threads: int | None = None, batch: int = 1
) -> Network:
    """Open a graph file with other outputs than a score and a map; arguments as in `open_backend`."""
    opened: Network = _factory(name)(model, threads=threads, batch=batch, outputs=tuple(outputs))
    return opened


def _factory(name: str) -> Callable[..., Any]:
    entry = REGISTRY[choose(name)[0]]
    factory: Callable[..., Any] = getattr(import_module(f"edgead.runtime.backends.{entry.module}"), entry.factory)
    return factory
