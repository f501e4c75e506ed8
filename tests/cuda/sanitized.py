"""Runs cases in a process that a sanitizer watches.

    python -m tests.cuda.sanitized LIBRARY PLAIN_LIBRARY ORDER SUITE...

PLAIN_LIBRARY, without a sanitizer, prepares what the watched kernels read: a thread costs the thread sanitizer a
millisecond. Loading LIBRARY takes the environment of `toolchain.sanitizer_environment`. Exit status 0: all well; 1: a
wrong result or what the simulator found; 66: the sanitizer's own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from tests.cuda import cases, knn
from tests.cuda.executor import Executor, HostExecutor, KernelError
from tests.cuda.knn import CODES, FP16, FP32, INT8


def _scans(watched: Executor, plain: Executor) -> None:
    for code in CODES.values():
        cases.check_search(watched, (3, 130, 70), code, 3, 2, preparing=plain)


def _small(watched: Executor, plain: Executor) -> None:
    features, _, center = knn.features(1, 5, 6, 33)
    for code in CODES.values():
        cases.check_prepared(features, center, knn.prepare(watched, features, center, code, bank=True))
    cases.check_image(watched, FP32, 2, 30, 5, preparing=plain)


def _all(watched: Executor, plain: Executor) -> None:
    for code in CODES.values():
        cases.check_search(watched, (70, 130, 36), code, 3, 2)
    cases.check_uncertain(watched, FP16)
    cases.check_extremes(watched, INT8)
    _small(watched, plain)


SUITES: dict[str, Callable[[Executor, Executor], None]] = {"scans": _scans, "small": _small, "all": _all}


def main(library: str, plain_library: str, order: str, *suites: str) -> int:
    watched, plain = HostExecutor(Path(library), order), HostExecutor(Path(plain_library))
    for suite in suites:
        try:
            SUITES[suite](watched, plain)
        except (AssertionError, KernelError) as error:
            print(f"{suite}: {type(error).__name__}: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
