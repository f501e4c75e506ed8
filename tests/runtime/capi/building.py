"""libedgead built with CMake, once for each state of its sources, and kept where tests keep what is dear to make."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cache import kept

ROOT = Path(__file__).resolve().parents[3]
SOURCES = ROOT / "runtime" / "capi"
NATIVE = ROOT / "runtime" / "backends" / "native"
JSON = Path("/usr/include/nlohmann/json.hpp")


def need(*programs: str) -> None:
    """Skip where a program is missing, with the command that brings it."""
    for program in programs:
        if shutil.which(program) is None:
            package = {"mcs": "mono-mcs", "mono": "mono-runtime", "clang++": "clang"}.get(program, program)
            pytest.skip(f"{program} is missing; on Debian: apt-get install {package}")


def need_compilers() -> None:
    """Skip where the library cannot be built."""
    need("cmake", "make", "g++")
    if not JSON.is_file():
        pytest.skip("nlohmann/json.hpp is missing; on Debian: apt-get install nlohmann-json3-dev")


def run(command: list[str | Path], **options: object) -> subprocess.CompletedProcess[str]:
    """Run a command that must succeed."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
    return done  # type: ignore[no-any-return]


def state() -> str:
    """Return a digest of all that the library is built from."""
    digest = hashlib.sha256()
    for folder in (SOURCES, NATIVE):
        for file in sorted(folder.rglob("*")):
            if file.suffix in (".c", ".cpp", ".h", ".hpp", ".txt", ".in", ".map"):
                digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def build(sanitizers: str = "") -> Path:
    """Return a folder with the build in ``build`` and what is installed in ``installed``."""
    need_compilers()

    def make(folder: Path) -> None:
        configure = ["cmake", "-S", SOURCES, "-B", folder / "build", f"-DEDGEAD_SANITIZE={sanitizers}"]
        run([*configure, f"-DCMAKE_INSTALL_PREFIX={folder / 'installed'}", "-DCMAKE_INSTALL_LIBDIR=lib"])
        run(["cmake", "--build", folder / "build", "--parallel", "2"])
        run(["cmake", "--install", folder / "build"])

    return kept(f"capi-{sanitizers.replace(',', '-') or 'plain'}-{state()}", make)
