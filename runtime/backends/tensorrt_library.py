"""TensorRT and TensorRT-RTX as Python modules: loading, version, and the one logger a process may have."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from edgead.runtime.backends.common import first_line, not_importable
from edgead.runtime.errors import BackendError, BackendUnavailable

Target = Literal["tensorrt", "tensorrt-rtx"]
TARGETS: tuple[Target, ...] = ("tensorrt", "tensorrt-rtx")

_PACKAGES: dict[str, tuple[str, str]] = {"tensorrt": ("tensorrt", "tensorrt"), "tensorrt-rtx": ("tensorrt_rtx", "rtx")}
# The first with strongly typed networks as they are used here; JetPack 6 has it.
_OLDEST_TENSORRT = (10, 3)
_MESSAGES = 40


@dataclass(frozen=True, slots=True)
class Library:
    """A loaded vendor library.

    Attributes:
        target: which one.
        trt: the vendor's module.
        version: whole version; an engine loads in no other.
        logger: the process's one logger, to hand to the vendor's objects.
        messages: what it was told since it was last cleared: warnings and errors, oldest first.
    """

    target: Target
    trt: Any
    version: str
    logger: Any
    messages: deque[str]

    def complaint(self, fallback: str) -> str:
        """Return the first error that the library logged, on one line, else its last warning, else ``fallback``."""
        errors = [text for text in self.messages if text.startswith(("ERROR", "INTERNAL_ERROR"))]
        found = errors[0] if errors else self.messages[-1] if self.messages else fallback
        return first_line(RuntimeError(found.partition(": ")[2] or found))


@cache
def load_library(target: Target) -> Library:
    """Import a vendor library; on a machine without GPU this works for TensorRT-RTX.

    Raises:
        BackendUnavailable: not installed, not loadable, or older than TensorRT 10.3.
    """
    package, extra = _PACKAGES[target]
    try:
        trt: Any = import_module(package)
    except ImportError as error:
        if Path("/etc/nv_tegra_release").exists() and target == "tensorrt":
            # JetPack brings it through apt; PyPI has none for a Jetson.
            fix = "run: sudo apt-get install python3-libnvinfer (and make the venv with --system-site-packages)"
            raise BackendUnavailable(f"tensorrt cannot be loaded ({first_line(error)}); {fix}") from error
        raise not_importable(package, extra, error) from error
    version = str(trt.__version__)
    if target == "tensorrt" and _numbers(version) < _OLDEST_TENSORRT:
        raise BackendUnavailable(f"TensorRT {version} is too old: edgead needs 10.3 or newer (JetPack 6.1 or newer)")
    messages: deque[str] = deque(maxlen=_MESSAGES)
    return Library(target, trt, version, _make_logger(trt, messages), messages)


def load_cuda() -> Any:
    """Import the CUDA runtime of cuda-bindings; raises `BackendUnavailable` where it is missing or broken."""
    try:
        return import_module("cuda.bindings.runtime")
    except ImportError as error:
        extra = cuda_extra()
        if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == "cuda":
            raise BackendUnavailable(f"cuda-bindings is not installed; run: pip install 'edgead[{extra}]'") from error
        raise not_importable("cuda-bindings", extra, error) from error


def cuda_extra() -> str:
    """Return the extra with the cuda-bindings for this machine's driver."""
    from edgead.runtime.backends.gpu_driver import cuda_driver

    return "cuda12" if cuda_driver().release.startswith("12.") else "cuda13"


def load_plugin(library: Library, plugin: Path) -> None:
    """Register a plugin library's creators with the vendor library; raises `BackendError` where it cannot."""
    registry = library.trt.get_plugin_registry()
    library.messages.clear()
    handle = registry.load_library(str(plugin.resolve())) if plugin.is_file() else None
    if handle is None:
        why = library.complaint("it cannot be loaded") if plugin.is_file() else "there is no such file"
        raise BackendError(f"the plugin library {plugin} is refused: {why}; leave --plugin out for plain layers")


def require_success(error: tuple[Any, ...], doing: str) -> Any:
    """Return what a call of cuda-bindings gave beside its status; raises `BackendError` where that says failure."""
    status, *values = error
    if int(status) != 0:
        raise BackendError(f"CUDA failed to {doing}: {getattr(status, 'name', status)}")
    return values[0] if len(values) == 1 else None if not values else tuple(values)


def _make_logger(trt: Any, messages: deque[str]) -> Any:
    """Return a logger that keeps warnings and errors; the library wants one and the same for all its objects."""
    base: Any = trt.ILogger
    warning = int(trt.ILogger.WARNING)

    def log(_self: Any, severity: Any, text: str) -> None:
        if int(severity) <= warning:
            messages.append(f"{str(severity).rpartition('.')[2]}: {' '.join(text.split())}")

    def construct(self: Any) -> None:
        base.__init__(self)

    methods: dict[str, Callable[..., None]] = {"__init__": construct, "log": log}
    return type("Logger", (base,), methods)()


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])
