"""The C sources of the native code, and the name of a library that comes with the package.

Wheels are made with this file alone, where not even numpy is installed, so it imports only what comes with Python.
"""

from __future__ import annotations

import hashlib
import sys
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent
SOURCES = (FOLDER / "knn.c", FOLDER / "mahalanobis.c")
FLAGS = ("-O3", "-std=gnu11", "-shared", "-fPIC", "-fvisibility=hidden")
_SUFFIXES = {"win32": ".dll", "darwin": ".dylib"}


@cache
def sources_digest() -> str:
    """Return the hex SHA-256 of all sources: a library that was compiled from others is never taken."""
    digest = hashlib.sha256()
    for file in (*SOURCES, *sorted(FOLDER.glob("*.h"))):
        # A checkout on Windows may have other line ends.
        digest.update(file.name.encode() + b"\0" + file.read_bytes().replace(b"\r\n", b"\n") + b"\0")
    return digest.hexdigest()


def packaged_name(system: str = sys.platform) -> str:
    """Return the name of the library that a wheel brings, beside the sources."""
    return f"edgead-native-{sources_digest()[:16]}{_SUFFIXES.get(system, '.so')}"
