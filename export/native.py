"""``edgead build --target cpu``: compiles the search in memory banks for this machine. Needs neither torch nor onnx."""

from __future__ import annotations

import platform
import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress

from edgead.runtime.engine_cache import EngineCache, StoredEngine
from edgead.runtime.errors import BackendError, BackendUnavailable
from edgead.runtime.search import SOURCE, load_library, search_key
from edgead.runtime.version import __version__

_COMPILERS = ("cc", "gcc", "clang")
_FLAGS = ("-O3", "-std=gnu11", "-shared", "-fPIC")
_SECONDS = 120.0


def build_search(
    cache: EngineCache, *, rebuild: bool = False, on_wait: Callable[[], None] | None = None
) -> tuple[StoredEngine, bool]:
    """Compile ``runtime/search.c`` into the cache; returns it, and whether it was there already.

    Args:
        cache: where the library goes; the backend ``onnxruntime`` finds it there.
        rebuild: compile although it is there.
        on_wait: called where another builder must be waited for.

    Raises:
        BackendUnavailable: no compiler, or a processor without the instructions.
        BackendError: the compiler fails, or the cache cannot be written.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        raise BackendUnavailable(
            f"the native search is written for x86-64 processors, this one is {platform.machine()}; "
            "bundles run as they are"
        )
    compiler = next((found for name in _COMPILERS if (found := shutil.which(name)) is not None), None)
    if compiler is None:
        raise BackendUnavailable("there is no C compiler; run: apt-get install gcc (or build on a machine like this)")
    key = search_key()
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
            command = [compiler, *_FLAGS, str(SOURCE), "-o", str(library), "-lm"]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
            except (OSError, subprocess.TimeoutExpired) as error:
                raise BackendError(f"{compiler} did not end well: {error}") from error
            if done.returncode:
                lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
                raise BackendError(f"{compiler} refuses {SOURCE.name}: {lines[0] if lines else done.returncode}")
            if not load_library(library).edgead_search_supported():
                raise BackendUnavailable("this processor lacks AVX-512 VNNI, which the native search needs")
            info = {
                "edgead": __version__,
                "graph": SOURCE.name,
                "host": platform.machine(),
                "parse_seconds": 0.0,
                "build_seconds": time.perf_counter() - started,
                "layers_from": "none",
                "layers": [],
                "warnings": [line for line in done.stderr.splitlines() if "warning" in line],
            }
            return cache.store(key, library, info), False
