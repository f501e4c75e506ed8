"""A camera loop in C beside Python's, on one bundle: camera to decision, resident memory, start to first decision.

    python -m benchmarks.capi BUNDLE [--precision fp32] [--threads 2] [--size 1280x1024] [--frames 200] [--rounds 5]

Both judge the same BGR frame with ONNX Runtime, in processes of their own that take turns; each figure is the median
of the rounds. Start is from the moment the process is made to its first decision, with the disk's cache warm. Needs
`make capi` before.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
BUILT = ROOT / "dist" / "capi"
PYTHON = """
import statistics, sys, time
import numpy as np
from edgead.runtime.frame import Frame
from edgead.runtime.inspection.inspector import Inspector
bundle, precision, threads, width, height, frames = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
pixels = np.frombuffer(sys.stdin.buffer.read(), np.uint8).reshape(height, width, 3)
with Inspector.open(bundle, backend="onnxruntime", precision=precision, threads=threads) as inspect:
    times = []
    for index in range(frames):
        started = time.perf_counter()
        result = inspect(Frame(pixels, index, time.monotonic_ns(), "camera", "bgr"))
        decision = result.decision
        times.append((time.perf_counter() - started) * 1e3)
        if index == 0:
            print("first", decision, flush=True)
    status = open("/proc/self/status").read()
    resident = int(status.split("VmRSS:")[1].split()[0]) / 1024
    print(statistics.median(times), resident)
"""


class Measured(NamedTuple):
    """One run: milliseconds from start to the first decision and of a frame, and megabytes."""

    first_ms: float
    frame_ms: float
    resident_mb: float


def compile_loop(folder: Path) -> Path:
    """Compile the loop in C against `make capi`'s library."""
    if not (BUILT / "lib" / "libedgead.so").exists():
        sys.exit("libedgead is not built; run: make capi")
    program = folder / "loop"
    source = Path(__file__).with_name("capi_loop.c")
    command = ["cc", "-O2", "-std=c99", source, f"-I{BUILT}/include", f"-L{BUILT}/lib", "-ledgead", "-o", program]
    subprocess.run([*map(str, command), f"-Wl,-rpath,{BUILT}/lib"], check=True)
    return program


def measure(command: list[str], pixels: bytes) -> Measured:
    """Run one loop in a process of its own."""
    started = time.perf_counter()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, env=os.environ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(pixels)
        process.stdin.close()
        if not process.stdout.readline().startswith(b"first"):
            sys.exit(f"{command[0]} gave no decision")
        first_ms = (time.perf_counter() - started) * 1e3
        frame_ms, resident_mb = map(float, process.stdout.readline().split())
    return Measured(first_ms, frame_ms, resident_mb)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--threads", default="2")
    parser.add_argument("--size", default="1280x1024")
    parser.add_argument("--frames", default="200")
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    width, height = asked.size.split("x")
    pixels = np.random.default_rng(0).integers(0, 256, int(width) * int(height) * 3, dtype=np.uint8).tobytes()
    with tempfile.TemporaryDirectory() as folder:
        import onnxruntime

        (library,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
        common = [asked.precision, asked.threads, width, height, asked.frames]
        loops = {
            "C": [str(compile_loop(Path(folder))), str(asked.bundle), str(library), *common],
            "Python": [sys.executable, "-c", PYTHON, str(asked.bundle), *common],
        }
        found: dict[str, list[Measured]] = {name: [] for name in loops}
        for _ in range(asked.rounds):
            for name, command in loops.items():
                found[name].append(measure(command, pixels))
    print(f"{asked.bundle.name} {asked.precision}, {asked.threads} threads, {asked.size} BGR")
    print(f"{'':8} {'first ms':>9} {'frame ms':>9} {'memory MB':>10}")
    for name, runs in found.items():
        first, frame, memory = (statistics.median(values) for values in zip(*runs, strict=True))
        print(
            f"{name:8} {first:9.1f} {frame:9.2f} {memory:10.1f}   frames from {min(run.frame_ms for run in runs):.2f}"
        )


if __name__ == "__main__":
    main()
