"""``edgead build --target cpu``: compiles the runtime's native code for this machine. Needs neither torch nor onnx."""

from __future__ import annotations

import platform
import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from edgead.runtime.backends.engine_cache import EngineCache, StoredEngine
from edgead.runtime.backends.engine_key import hash_file
from edgead.runtime.backends.native.library import load_library, native_key, packaged_library
from edgead.runtime.backends.native.sources import FLAGS, SOURCES
from edgead.runtime.errors import BackendError, BackendUnavailable
from edgead.runtime.version import __version__

_COMPILERS = ("cc", "gcc", "clang")
_SECONDS = 120.0


def build_native(
    cache: EngineCache, *, rebuild: bool = False, on_wait: Callable[[], None] | None = None
) -> tuple[StoredEngine, bool]:
    """Compile the runtime's native code into the cache; returns the library, and whether it was there already.

    Args:
        cache: where the library goes; the backends for CPUs find it there.
        rebuild: compile although it is there.
        on_wait: called where another builder must be waited for.

    Raises:
        BackendUnavailable: there is no compiler.
        BackendError: the compiler fails, or the cache cannot be written.
    """
    compiler = next((found for name in _COMPILERS if (found := shutil.which(name)) is not None), None)
    if compiler is None:
        raise BackendUnavailable("there is no C compiler; run: apt-get install gcc (or install a wheel of edgead)")
    key = native_key()
    with cache.building(on_wait):
        # Inside the lock: another builder may just have made it.
        if not rebuild:
            with suppress(BackendError):
                stored = cache.find(key)
                if stored is not None:
                    cache.read(stored)
                    return stored, True
        with cache.scratch() as library:
            started = time.perf_counter()
            command = [compiler, *FLAGS, *map(str, SOURCES), "-o", str(library), "-lm"]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
            except (OSError, subprocess.TimeoutExpired) as error:
                raise BackendError(f"{compiler} did not end well: {error}") from error
            if done.returncode:
                lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
                raise BackendError(f"{compiler} refuses the native code: {lines[0] if lines else done.returncode}")
            load_library(library)
            warnings = [line for line in done.stderr.splitlines() if "warning" in line]
            info = _info(time.perf_counter() - started, warnings)
            return cache.store(key, library, info), False


def stored_package() -> StoredEngine | None:
    """Return the library that came with the package, as if it were in the cache; None where there is none."""
    path = packaged_library()
    if path is None:
        return None
    return StoredEngine(path, native_key(), *hash_file(path), _info(0.0, []))


def _info(seconds: float, warnings: list[str]) -> dict[str, Any]:
    return {
        "edgead": __version__,
        "graph": ", ".join(source.name for source in SOURCES),
        "host": platform.machine(),
        "parse_seconds": 0.0,
        "build_seconds": seconds,
        "layers_from": "none",
        "layers": [],
        "warnings": warnings,
    }
