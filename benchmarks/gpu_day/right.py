"""Stage `right`: are the kernels right on this GPU? The tests marked ``gpu``, and every kernel against float64.

The second are the cases of tests/cuda, which hold each step of each kernel against numpy; here a GPU executes them.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from benchmarks.gpu_day.machine import ROOT, GpuExecutor, open_gpu
from benchmarks.gpu_day.options import Options
from benchmarks.gpu_day.results import Results
from edgead.runtime.errors import ConfigError
from tests.cuda import cases
from tests.cuda.knn import CODES, Code

_TESTS_S = 140  # what hangs there must not keep the kernels' own cases from their turn
Check = Callable[[Any], object]
_REALISTIC = [(784, 2000, 64), (1024, 10_000, 384), (784, 10_000, 512)]
LOCATIONS: dict[str, dict[str, Any]] = {
    "one": {"grid": (1, 1), "channels": 1},
    "ragged": {"grid": (2, 3), "channels": 33},
    "npad": {"grid": (5, 4), "channels": 40, "frames": 5, "window": 3},
    "longest": {"grid": (1, 1), "channels": 1024, "frames": 9},
    "half": {"grid": (3, 4), "channels": 65, "dtype": np.float16, "frames": 2},
    "low rank": {"grid": (3, 4), "channels": 65, "rank": 34, "window": 3},
    "low rank, half": {"grid": (4, 2), "channels": 50, "rank": 9, "dtype": np.float16, "frames": 33},
}


def run(options: Options, results: Results) -> None:
    """Run the tests, then case after case."""
    results.do("tests marked gpu", partial(run_tests, options.dry))
    with open_gpu(options.dry) as gpu:
        executor = GpuExecutor(gpu)
        for name, check in kernel_cases(small=options.dry).items():
            results.do(name, partial(_held, check, executor))


def run_tests(collect_only: bool) -> dict[str, int]:
    """Run the tests marked ``gpu`` with this interpreter; how many passed, failed, were skipped or are there."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "result.xml"
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-rs", "-p", "no:cacheprovider"]
        # What a newer Python or numpy warns of is no fault of a kernel.
        command += ["-o", "filterwarnings=default", f"--junitxml={report}"]
        command += ["--collect-only", "tests/cuda/test_on_gpu.py"] if collect_only else ["tests/cuda", "tests/runtime"]
        done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=_TESTS_S)
        print(done.stdout[-3000:], done.stderr[-1000:], flush=True)
        if collect_only:
            if done.returncode:
                raise ConfigError(f"pytest cannot collect the tests: {done.stdout[-400:]}")
            return {"collected": done.stdout.count("::test_")}
        if not report.is_file():
            raise ConfigError(f"pytest wrote no result: {(done.stdout + done.stderr)[-400:]}")
        suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    failed = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
    skipped = int(suite.get("skipped", 0))
    found = {"passed": int(suite.get("tests", 0)) - failed - skipped, "failed": failed, "skipped": skipped}
    if failed or not found["passed"]:
        raise ConfigError(f"tests marked gpu: {found}; see the log")
    return found


def kernel_cases(*, small: bool) -> dict[str, Check]:
    """Return every check of tests/cuda/cases.py by name; ``small`` leaves out what takes a simulator long."""
    found: dict[str, Check] = {}
    for name, code in CODES.items():
        for shape in cases.RAGGED[:3] if small else [*cases.RAGGED, *_REALISTIC]:
            found[f"search {name} {shape}"] = _bound(_searches, shape, code)
        found[f"uncertain {name}"] = _bound(cases.check_uncertain, code)
        found[f"extremes {name}"] = _bound(cases.check_extremes, code)
        found[f"image {name}"] = _bound(cases.check_image, code, 2, 49, 9)
    for dtype in (np.float32, np.float16):
        found[f"keys {dtype.__name__}"] = _bound(cases.check_keys, (35, 33), dtype)
        found[f"whole factors {dtype.__name__}"] = _bound(cases.check_whole_factors, dtype)
    for name, case in LOCATIONS.items():
        found[f"locations {name}"] = _bound(cases.check_locations, **case)
    found["fusion"] = _bound(cases.check_fusion)
    found["regions"] = _bound(cases.check_regions)
    for seed in range(2 if small else 40):
        found[f"resize {seed}"] = _bound(cases.check_resize, seed, 70 if small else 400)
        found[f"random shape {seed}"] = _bound(cases.check_random, seed)
    return found


def _bound(check: Callable[..., object], *arguments: Any, **named: Any) -> Check:
    return lambda executor: check(executor, *arguments, **named)


def _searches(executor: Any, shape: tuple[int, int, int], code: Code) -> None:
    for neighbours, splits in ((1, 1), (3, 2), (16, 3)):
        cases.check_search(executor, shape, code, neighbours, splits)


def _held(check: Check, executor: GpuExecutor) -> str:
    check(executor)
    return "equal"
