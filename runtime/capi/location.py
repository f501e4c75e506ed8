"""Where libedgead lies in an installed package."""

from __future__ import annotations

from pathlib import Path

from edgead.runtime.capi.sources import FOLDER, LIBRARY
from edgead.runtime.errors import BackendUnavailable


def capi_path() -> Path:
    """Return the folder with ``include/edgead.h`` and ``lib/libedgead.so.1`` that came with the package.

    Raises:
        BackendUnavailable: this package brought no library, as from a checkout; the message says how it is built.

    Example:
        >>> subprocess.run(["cc", "camera.c", f"-I{edgead.capi_path()}/include",
        ...                 f"-L{edgead.capi_path()}/lib", "-l:libedgead.so.1"])
    """
    if not (FOLDER / "lib" / LIBRARY).is_file():
        raise BackendUnavailable(
            f"this edgead brought no {LIBRARY}; install a wheel for this kind of machine, or build it: "
            f"cmake -S {FOLDER} -B build-edgead && cmake --build build-edgead (a checkout: make capi)"
        )
    return FOLDER
