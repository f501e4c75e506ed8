"""Runs suites of small cases in a process of its own, which a sanitizer may watch and a faulty kernel may crash.

    python -m tests.cuda.probe LAYER KERNELS PLAIN_LIBRARY ORDER SUITE...

LAYER is a sanitizer's name, for KERNELS a library, or ``ptx``, for KERNELS what nvcc emitted. PLAIN_LIBRARY, sound and
without a sanitizer, prepares what the kernels in question read: a thread costs the thread sanitizer a millisecond. Exit
status: 0 all well, 3 a wrong result, 2 what an executor itself found, 66 a sanitizer's finding.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.cuda import cases, knn, toolchain
from tests.cuda.executor import Executor, HostExecutor, KernelError
from tests.cuda.knn import CODES, FP16, FP32, INT8
from tests.cuda.ptx.launch import PtxExecutor

ROOT = Path(__file__).resolve().parent.parent.parent

WRONG, REPORTED = 3, 2


def _prepare(watched: Executor, _: Executor) -> None:
    features, _rows, center = knn.features(1, 5, 6, 33)
    for code in CODES.values():
        cases.check_prepared(features, center, knn.prepare(watched, features, center, code, bank=True))


def _knn_fp32(watched: Executor, plain: Executor) -> None:
    cases.check_search(watched, (12, 130, 70), FP32, 3, 2, preparing=plain)


def _knn_fp16(watched: Executor, plain: Executor) -> None:
    cases.check_search(watched, (12, 130, 70), FP16, 3, 2, preparing=plain)


def _knn_int8(watched: Executor, plain: Executor) -> None:
    cases.check_search(watched, (12, 130, 70), INT8, 3, 2, preparing=plain)


def _uncertain(watched: Executor, plain: Executor) -> None:
    cases.check_uncertain(watched, INT8, preparing=plain)


def _extremes(watched: Executor, _: Executor) -> None:
    cases.check_extremes(watched, FP16)


def _image(watched: Executor, plain: Executor) -> None:
    cases.check_image(watched, FP32, 2, 30, 5, preparing=plain)


def _locations(watched: Executor, _: Executor) -> None:
    cases.check_locations(watched, (2, 2), 35, frames=5, window=3)
    cases.check_locations(watched, (1, 2), 40, rank=7, dtype=np.float16)


def _fusion(watched: Executor, _: Executor) -> None:
    cases.check_fusion(watched)


def _launchers(watched: Executor, _: Executor) -> None:
    # Only the host library has the C++ launchers.
    if isinstance(watched, HostExecutor):
        for code in CODES.values():
            cases.check_launchers(watched, code, (20, 70, 40), 2)


def _ragged(watched: Executor, _: Executor) -> None:
    for code in CODES.values():
        cases.check_search(watched, (70, 130, 36), code, 3, 2)


def _node(watched: Executor, plain: Executor) -> None:
    for dtype in (np.float32, np.float16):
        cases.check_keys(watched, (35, 33), dtype, 2, preparing=plain)
        cases.check_whole_factors(watched, dtype)


def _pictures(watched: Executor, _: Executor) -> None:
    # Each format twice, of sizes that one block covers or nearly.
    for seed in range(10):
        cases.check_resize(watched, seed, 22)


def _regions(watched: Executor, _: Executor) -> None:
    cases.check_regions(watched)


SUITES: dict[str, Callable[[Executor, Executor], None]] = {
    "prepare": _prepare,
    "knn fp32": _knn_fp32,
    "knn fp16": _knn_fp16,
    "knn int8": _knn_int8,
    "uncertain": _uncertain,
    "extremes": _extremes,
    "image": _image,
    "locations": _locations,
    "fusion": _fusion,
    "launchers": _launchers,
    "ragged": _ragged,
    "node": _node,
    "pictures": _pictures,
    "regions": _regions,
}


def run(
    layer: str, order: str, *suites: str, kernels: Path = toolchain.KERNELS, timeout: int = 550, lines: bool = True
) -> tuple[int, str]:
    """Run suites in another process; its exit status (124 for no end in time) and what it said."""
    built = toolchain.ptx(kernels=kernels) if layer == "ptx" else toolchain.host_library(layer, kernels=kernels)
    command = [
        sys.executable,
        "-m",
        "tests.cuda.probe",
        layer,
        str(built),
        str(toolchain.host_library()),
        order,
        *suites,
    ]
    environment = toolchain.sanitizer_environment("plain" if layer == "ptx" else layer, lines=lines)
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout, errors="replace"
        )
    except subprocess.TimeoutExpired:
        return 124, f"{', '.join(suites)}: no end after {timeout} s"
    return done.returncode, done.stderr


def main(layer: str, kernels: str, plain_library: str, order: str, *suites: str) -> int:
    plain = HostExecutor(Path(plain_library))
    watched: Executor = PtxExecutor(Path(kernels)) if layer == "ptx" else HostExecutor(Path(kernels), order)
    for suite in suites:
        try:
            SUITES[suite](watched, plain)
        except (AssertionError, KernelError) as error:
            print(f"{suite}: {type(error).__name__}: {error}", file=sys.stderr)
            return WRONG if isinstance(error, AssertionError) else REPORTED
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
