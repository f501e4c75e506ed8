"""One command for a machine with a GPU: are the kernels right on it, how fast are they, and how was it set up?

    make gpu-report                 # or: python -m benchmarks.gpu_report [--rounds 20] [--no-tests]

It runs the tests marked ``gpu`` and `benchmarks.kernels`, writes all of it to ``gpu-report.json`` and a row into
docs/kernels.md. Exit code 0: tests passed; 3: a test failed or a distance is off; 2: there is no GPU, or something is
missing to use it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks import kernels
from benchmarks.kernels import Ceilings, Row
from edgead.export.kernels.gpu import Gpu
from edgead.runtime.backends.gpu_driver import cuda_driver
from edgead.runtime.device.board_status import describe_board
from edgead.runtime.errors import ConfigError, EdgeadError
from edgead.runtime.files import atomic_write

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "kernels.md"
REPORT = ROOT / "gpu-report.json"
END = "<!-- end of measured -->"
# FP32 sums of a few hundred products.
_TOLERANCE = 1e-4
_SHOWN = ("search fp16, 784 x 10000 x 128", "search fp16, 1024 x 10000 x 384", "locations float32, 3136 x 100, 1 frame")


def run_tests() -> dict[str, int]:
    """Run the tests marked ``gpu``; how many passed, failed and were skipped."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.xml"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-m",
            "gpu",
            "-rs",
            f"--junitxml={result}",
            "tests/cuda",
            "tests/runtime",
        ]
        subprocess.run(command, cwd=ROOT, check=False)
        if not result.is_file():
            raise ConfigError("pytest wrote no result; see what it said above")
        suite = ElementTree.parse(result).getroot().find("testsuite")
    assert suite is not None
    failed = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
    skipped = int(suite.get("skipped", 0))
    return {"passed": int(suite.get("tests", 0)) - failed - skipped, "failed": failed, "skipped": skipped}


def holds(tests: Mapping[str, int] | None, rows: Sequence[Row]) -> bool:
    """Say whether no test failed, at least one ran, and all distances are those of float64."""
    right = all(row.error < _TOLERANCE for row in rows)
    return right and (tests is None or (tests["failed"] == 0 and tests["passed"] > 0))


def page_row(
    device: str, release: str, board: Mapping[str, Any], tests: Mapping[str, int] | None, ceilings: Ceilings,
    rows: Sequence[Row],
) -> str:  # fmt: skip
    """Return the line for docs/kernels.md."""
    gpu = (board.get("gpus") or [{}])[0]
    clocks = [f"{gpu[key]} MHz" for key in ("sm_mhz", "memory_mhz") if key in gpu]
    if "power_mode" in board:
        clocks.append(str(board["power_mode"]))
    if gpu.get("throttled"):
        clocks.append("throttled: " + ", ".join(gpu["throttled"]))
    ran = "not run" if tests is None else f"{tests['passed']} of {sum(tests.values())} tests"
    worst = max(row.error for row in rows)
    peaks = f"{ceilings.fp32:.2f}, {ceilings.fp16:.1f}, {ceilings.int8:.1f}"
    cells = [
        device,
        release,
        "; ".join(clocks) or "not told",
        f"{ran}, error {worst:.0e}",
        peaks,
        f"{ceilings.bandwidth:.0f}",
    ]
    for name in _SHOWN:
        found = next((row for row in rows if row.work == name), None)
        cells.append("" if found is None else f"{found.milliseconds:.3f} ({found.fraction:.0%})")
    return "| " + " | ".join(cells) + " |"


def add_row(page: Path, line: str) -> None:
    """Put a line at the end of the page's table of measurements."""
    text = page.read_text()
    if text.count(END) != 1:
        raise ConfigError(f"{page} has no place for the row: a line {END}")
    with atomic_write(page, ConfigError) as stream:
        stream.write(text.replace(f"\n{END}", f"{line}\n\n{END}").encode())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--no-tests", action="store_true")
    options = parser.parse_args(arguments)
    try:
        with Gpu() as gpu:
            ceilings = kernels.measure_ceilings(gpu, options.rounds)
            rows = kernels.measure_all(gpu, ceilings, options.rounds)
            # Right after the work, when the clocks are those that it ran at.
            board = describe_board()
            device = gpu.info
        tests = None if options.no_tests else run_tests()
        release = cuda_driver().release
        report = {
            "schema": "edgead.gpu-report/1",
            "device": device.name,
            "compute_capability": device.compute_capability,
            "driver": release,
            "board": board,
            "tests": tests,
            **kernels.to_dict(ceilings, rows),
        }
        with atomic_write(REPORT, ConfigError) as stream:
            stream.write((json.dumps(report, indent=2) + "\n").encode())
        add_row(PAGE, page_row(device.name, release, board, tests, ceilings, rows))
    except EdgeadError as error:
        print(error, file=sys.stderr)
        return 2
    print(kernels.table(ceilings, rows))
    print(f"wrote {REPORT} and a row of {PAGE}")
    return 0 if holds(tests, rows) else 3


if __name__ == "__main__":
    sys.exit(main())
