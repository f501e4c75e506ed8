"""The sources of libedgead, and how another compiler than CMake's makes it.

Wheels are made with this file alone, where not even numpy is installed, so it imports only what comes with Python.
"""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
NATIVE = FOLDER.parent / "backends" / "native"
LIBRARY = "libedgead.so.1"
C_SOURCES = (NATIVE / "knn.c", NATIVE / "mahalanobis.c")
HIDDEN = ("-O3", "-fPIC", "-fvisibility=hidden", "-ffunction-sections", "-fdata-sections")
C_FLAGS = (*HIDDEN, "-std=gnu11")
# No fused products in C++: the weights of the resize must be the same on every processor.
CXX_FLAGS = (*HIDDEN, "-std=c++17", "-fvisibility-inlines-hidden", "-ffp-contract=off", "-DEDGEAD_BUILDING")
LINK_FLAGS = (
    "-shared",
    f"-Wl,-soname,{LIBRARY}",
    "-Wl,--gc-sections",
    f"-Wl,--version-script={FOLDER / 'libedgead.map'}",
)


def cxx_sources() -> list[Path]:
    """Return the C++ files."""
    return sorted((FOLDER / "src").glob("*.cpp"))


def include_folders() -> list[Path]:
    """Return the folders with headers, that of nlohmann/json aside."""
    return [FOLDER / "include", FOLDER / "src", NATIVE]
