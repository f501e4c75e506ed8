"""Compilers for the kernels: what is built is kept in a folder by the hash of all that went in."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

CUDA_TESTS = Path(__file__).resolve().parent
KERNELS = CUDA_TESTS.parent.parent / "export" / "kernels"
HOST = CUDA_TESTS / "host"

SANITIZERS = ("plain", "asan", "tsan")

# No fused multiply-add: what must be exact is (port.cuh), and x86-64 without -mfma has none anyway.
_HOST_FLAGS = ["-std=c++20", "-fPIC", "-g", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
_SANITIZER_FLAGS = {
    "plain": ([], ["-O2"]),
    "asan": (["-DSIMULATOR_ASAN"], ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]),
    "tsan": (["-DSIMULATOR_TSAN"], ["-O1", "-fsanitize=thread"]),
}


def nvcc() -> Path:
    """nvcc of the CUDA toolkit; skips the test without."""
    candidates = [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin" / "nvcc"]
    on_path = shutil.which("nvcc")
    if on_path is not None:
        candidates.append(Path(on_path).resolve())
    for candidate in candidates:
        # A script that stands for nvcc elsewhere has no headers beside it.
        if candidate.exists() and (candidate.parent.parent / "include" / "cuda_fp16.h").exists():
            return candidate
    pytest.skip("no nvcc: install the CUDA toolkit or set CUDA_HOME to it")


def host_library(sanitizer: str = "plain", *, kernels: Path = KERNELS, optimize: str | None = None) -> Path:
    """Build the kernels with the simulator into a shared library; skips where a tool is missing.

    Args:
        sanitizer: ``plain``, ``asan`` (with UBSan) or ``tsan``.
        kernels: folder of the ``*.cuh`` files, another one for mutants.
        optimize: in place of the optimisation that goes with the sanitizer.
    """
    if shutil.which("g++") is None:
        pytest.skip("no g++: apt-get install g++")
    if _boost_context() is None:
        pytest.skip("no boost.context: apt-get install libboost-context-dev")
    include = nvcc().parent.parent / "include"
    engine_flags, kernel_flags = _SANITIZER_FLAGS[sanitizer]
    if optimize is not None:
        kernel_flags = [optimize, *kernel_flags[1:]]
    flags = [*_HOST_FLAGS, "-isystem", str(include), "-I", str(HOST)]
    # The engine does not change with the kernels, so that mutants need not compile it again.
    engine = _kept(
        [*sorted(HOST.glob("engine.*"))],
        ["g++", "-O2", *flags, *engine_flags, "-c", str(HOST / "engine.cpp"), "-o"],
        "engine.o",
    )
    sources = [*sorted(HOST.iterdir()), CUDA_TESTS / "kernels.h", *sorted(kernels.glob("*.cuh"))]
    entry = [str(HOST / "entry.cpp"), str(HOST / "copy.cpp")]
    included = ["-I", str(CUDA_TESTS), "-I", str(kernels)]
    command = ["g++", *flags, *included, *kernel_flags, "-shared", *entry, str(engine), "-lboost_context", "-o"]
    return _kept(sources, command, f"kernels-{sanitizer}.so")


def host_program(source: str, include: Path) -> Path:
    """Build a program of one source file of this folder with headers from elsewhere."""
    toolkit = nvcc().parent.parent / "include"
    folders = ["-isystem", str(include), "-isystem", str(toolkit), "-isystem", str(toolkit / "cccl"), "-I", str(HOST)]
    path = CUDA_TESTS / source
    command = ["g++", "-std=c++20", "-O0", "-Wno-attributes", *folders, str(path), "-o"]
    return _kept([path, *sorted(HOST.glob("*.h"))], command, path.stem)


def plugin_harness(headers: Path) -> Path:
    """Build the program that does to a plugin library what TensorRT does; under the address sanitizer."""
    toolkit = nvcc().parent.parent / "include"
    source = CUDA_TESTS / "plugin" / "harness.cpp"
    flags = [
        *_HOST_FLAGS,
        "-isystem",
        str(headers),
        "-isystem",
        str(toolkit),
        *_SANITIZER_FLAGS["asan"][1],
        "-O0",
        "-g0",
    ]
    return _kept([source], ["g++", *flags, str(source), "-ldl", "-o"], "harness")


def plugin_library(headers: Path, *, kernels: Path = KERNELS) -> Path:
    """Build the plugin library with the simulator in the kernels' place; under the address sanitizer."""
    if shutil.which("g++") is None or _boost_context() is None:
        pytest.skip("no g++ or no boost.context: apt-get install g++ libboost-context-dev")
    toolkit = nvcc().parent.parent / "include"
    engine_flags, flags = _SANITIZER_FLAGS["asan"]
    common = [*_HOST_FLAGS, "-isystem", str(headers), "-isystem", str(toolkit), "-I", str(HOST)]
    engine = _kept(
        [*sorted(HOST.glob("engine.*"))],
        ["g++", "-O2", *common, *engine_flags, "-c", str(HOST / "engine.cpp"), "-o"],
        "engine.o",
    )
    wrapper = CUDA_TESTS / "plugin" / "on_host.cpp"
    sources = [wrapper, *sorted(HOST.iterdir()), *sorted(kernels.glob("*.cuh")), *sorted(kernels.glob("plugin/*"))]
    given = [f'-DPLUGIN_SOURCE="{kernels / "plugin" / "plugin.cu"}"', str(wrapper), str(HOST / "copy.cpp"), str(engine)]
    command = ["g++", *common, *flags, *engine_flags, "-g1", "-shared", *given, "-lboost_context", "-o"]
    return _kept(sources, command, "libedgead_plugin_on_host.so")


def ptx(architecture: int = 87, *, kernels: Path = KERNELS) -> Path:
    """Compile all kernels to PTX for a compute capability such as 87."""
    sources = [CUDA_TESTS / "kernels.cu", CUDA_TESTS / "kernels.h", *sorted(kernels.glob("*.cuh"))]
    flags = [
        "-std=c++17",
        f"-arch=compute_{architecture}",
        "-ptx",
        "-lineinfo",
        "-I",
        str(CUDA_TESTS),
        "-I",
        str(kernels),
    ]
    return _kept(sources, [str(nvcc()), *flags, str(CUDA_TESTS / "kernels.cu"), "-o"], f"kernels-{architecture}.ptx")


def cubin(architecture: int, *, kernels: Path = KERNELS) -> Path:
    """Compile all kernels to machine code for a compute capability such as 87.

    Raises:
        RuntimeError: the compiler's message; a register that spills to local memory is an error.
    """
    sources = [CUDA_TESTS / "kernels.cu", CUDA_TESTS / "kernels.h", *sorted(kernels.glob("*.cuh"))]
    strict = ["-Xptxas", "-warn-spills,-warn-lmem-usage", "-Xptxas", "-Werror"]
    flags = ["-std=c++17", f"-arch=sm_{architecture}", "-cubin", *strict, "-I", str(CUDA_TESTS), "-I", str(kernels)]
    return _kept(sources, [str(nvcc()), *flags, str(CUDA_TESTS / "kernels.cu"), "-o"], f"kernels-{architecture}.cubin")


def sanitizer_environment(sanitizer: str, *, lines: bool = True) -> dict[str, str]:
    """Environment in which a Python process can load a library built with a sanitizer.

    Args:
        sanitizer: as for `host_library`; lines: name the lines of the source in a report, which takes its time.
    """
    if sanitizer == "plain":
        return dict(os.environ)
    names = {"asan": ["libasan.so", "libubsan.so"], "tsan": ["libtsan.so"]}[sanitizer]
    files = [_run(["g++", f"-print-file-name={name}"]).strip() for name in names]
    return {
        **os.environ,
        "LD_PRELOAD": ":".join(files),
        "ASAN_OPTIONS": f"detect_leaks=0:exitcode=66:symbolize={int(lines)}",
        "UBSAN_OPTIONS": "print_stacktrace=0",
        "TSAN_OPTIONS": f"exitcode=66:halt_on_error=1:symbolize={int(lines)}",
        # Threads that the kernels do not know of would be slow, and would be reported.
        "OPENBLAS_NUM_THREADS": "1",
    }


def _boost_context() -> str | None:
    found = _run(["g++", "-print-file-name=libboost_context.so"]).strip()
    return found if os.sep in found else None


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


def _kept(sources: Sequence[Path], command: Sequence[str], name: str) -> Path:
    """Run `command` with the target's path appended, unless the same was built before."""
    digest = hashlib.sha256("\0".join(command).encode())
    for source in sources:
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    folder = Path(tempfile.gettempdir()) / f"edgead-cuda-{os.getuid()}" / digest.hexdigest()[:32]
    target = folder / name
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f"{os.getpid()}-{name}"
        _run([*command, str(partial)])
        partial.replace(target)
    return target
