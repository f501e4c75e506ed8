"""Stage `sanitize`: the kernels on ragged shapes under compute-sanitizer: memory, races, barriers.

Each tool runs `benchmarks.gpu_day.ragged`, which knows no tool, in a process of its own.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from functools import partial
from typing import Any

from benchmarks.gpu_day.machine import ROOT
from benchmarks.gpu_day.options import Options
from benchmarks.gpu_day.results import Results
from edgead.runtime.errors import ConfigError

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
_LIMIT_S = 150  # of one tool
_FOUND = 66  # the tool's exit code where it found something


def run(options: Options, results: Results) -> None:
    """Run one tool after the other."""
    for tool in TOOLS:
        results.do(tool, partial(check, tool, options.dry))


def command(tool: str, dry: bool) -> list[str]:
    """Return what is executed; in a dry run there is no tool around it."""
    program = [sys.executable, "-m", "benchmarks.gpu_day.ragged"]
    if dry:
        return [*program, "--dry-run"]
    found = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    return [found, "--tool", tool, "--error-exitcode", str(_FOUND), "--print-limit", "20", *program]


def check(tool: str, dry: bool) -> dict[str, Any]:
    """Return what one tool said; raises `ConfigError` where it found something or did not end."""
    try:
        done = subprocess.run(
            command(tool, dry), cwd=ROOT, capture_output=True, text=True, timeout=_LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        said = (error.stdout or b"").decode(errors="replace")
        raise ConfigError(f"{tool} did not end in {_LIMIT_S} s; it came to: {said.strip()[-200:]}") from error
    text = done.stdout + done.stderr
    cases = len(re.findall(r"^checked ", text, re.MULTILINE))
    summary = [line.strip() for line in text.splitlines() if "SUMMARY" in line]
    if done.returncode or not cases or (not dry and not summary):
        raise ConfigError(f"{tool} ends with {done.returncode} after {cases} cases: {text.strip()[-1500:]}")
    return {"cases": cases, "summary": summary}
