"""Stage `counters`: Nsight Compute's hardware counters of the two main kernels: how near the roofline, and what stalls.

ncu runs `benchmarks.gpu_day.one_launch`, which knows no tool; its whole table is kept as CSV, and what matters is
picked out by name, so that a version that lacks a counter loses that one only. Clocks are left alone.
"""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
import sys
from functools import partial

from benchmarks.gpu_day.machine import ROOT
from benchmarks.gpu_day.options import Options
from benchmarks.gpu_day.results import Results
from edgead.runtime.errors import ConfigError

# What is run, and the kernels of it that are counted.
WORKS = {
    "search fp16 1024x10000x384": "knn_scan_mma",
    "search fp16 784x10000x1536": "knn_scan_mma",
    "search int8 1024x10000x384": "knn_scan_mma",
    "search fp32 784x10000x128": "knn_scan_simt",
    "rerank fp16 1024x10000x384": "knn_rerank",
    "locations fp32 3136x100": "location_distances",
    "locations fp16 3136x100": "location_distances",
}
_LIMIT_S = 90
_KEPT = re.compile(
    r"gpu__time_duration.sum|throughput.*pct_of_peak_sustained_elapsed|warps_active.avg.pct_of_peak_sustained_active"
    r"|pipe_tensor.*pct|bank_conflicts|maximum_warps|registers_per_thread|occupancy_limit|hit_rate.pct"
    r"|issue_active.avg.pct|average_warps_issue_stalled.*per_issue_active|dram__bytes.sum$|dram__bytes_(read|write).sum$"
)


def run(options: Options, results: Results) -> None:
    """Count one work after the other."""
    for work, kernel in list(WORKS.items())[:: 5 if options.dry else 1]:
        results.do(work, partial(count, work, kernel, options))


def command(work: str, kernel: str, dry: bool) -> list[str]:
    """Return what is executed; in a dry run there is no tool around it."""
    program = [sys.executable, "-m", "benchmarks.gpu_day.one_launch", work]
    if dry:
        return [*program, "--dry-run"]
    found = shutil.which("ncu") or "/usr/local/cuda/bin/ncu"
    picked = ["--kernel-name", f"regex:{kernel}", "--launch-skip", "1", "--launch-count", "1"]
    return [found, "--clock-control", "none", "--set", "full", "--page", "raw", "--csv", *picked, *program]


def count(work: str, kernel: str, options: Options) -> dict[str, str]:
    """Return the counters of one kernel; raises `ConfigError` with what the tool said."""
    done = subprocess.run(
        command(work, kernel, options.dry), cwd=ROOT, capture_output=True, text=True, timeout=_LIMIT_S, check=False
    )
    if done.returncode:
        raise ConfigError(f"ends with {done.returncode}: {(done.stdout + done.stderr).strip()[-1500:]}")
    if options.dry:
        return {"launched": done.stdout.strip()}
    stem = re.sub(r"\W+", "-", work)
    (options.out / f"counters-{stem}.csv").write_text(done.stdout)
    return read_counters(done.stdout)


def read_counters(text: str) -> dict[str, str]:
    """Return what matters of ncu's raw page, ``name (unit)`` to value; raises `ConfigError` for another text."""
    lines = text.splitlines()
    first = next((number for number, line in enumerate(lines) if line.startswith('"ID"')), None)
    if first is None or len(lines) < first + 3:
        raise ConfigError(f"ncu gave no table: {text.strip()[-500:]}")
    head, units, *rows = list(csv.reader(lines[first:]))
    kept: dict[str, str] = {}
    for name, unit, value in zip(head, units, rows[0], strict=False):
        if name in ("Kernel Name", "Block Size", "Grid Size", "CC") or _KEPT.search(name):
            kept[f"{name} ({unit})" if unit else name] = value
    return kept


def parse_work(work: str) -> tuple[str, str, list[int]]:
    """Return kind, precision and sizes of a work's name."""
    kind, precision, sizes = work.split(" ")
    return kind, precision, [int(size) for size in sizes.split("x")]
