"""Stage `training`: the learned detectors at their papers' size, as far as the day's minutes go.

Trainings run in the background, in a session of their own, so that they go on between commands; stages whose times
count make them stand still (SIGSTOP). Each job trains as ``edgead fit`` does, is measured on all test images with the
network on the GPU, and its model is kept. How many steps fit into a job's seconds is measured first, by a training of
few steps: the number is in the result, beside the full profile's, and a schedule always runs to its end.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu_day.machine import ROOT, describe
from benchmarks.gpu_day.options import Options
from benchmarks.gpu_day.results import Results

_PIDS = "training.pid"
_POLL_S = 1.0
_OVERTIME = 1.8  # times a job's seconds, after which it is ended; what it has of its training stays


@dataclass(frozen=True, slots=True)
class Job:
    """One training; ``steps``: settings that count steps, of each stage in order, with the full profile's number."""

    detector: str
    category: str
    steps: dict[str, int]
    settings: dict[str, Any] = field(default_factory=dict)
    backbone: str | None = None
    size: int | None = None

    @property
    def name(self) -> str:
        return f"{self.category}-{self.detector}"


# What the full profile of each has for steps; a test compares. ResNet-18's public weights are in no package, so slsg's
# and cutpaste's encoders begin at random here, and isstad without the authors' masked auto-encoder.
DETECTORS: dict[str, tuple[dict[str, int], str | None]] = {
    "efficientad": ({"distillation_steps": 60_000, "steps": 70_000}, None),
    "slsg": ({"pretraining_steps": 5_000, "steps": 7_001}, "resnet18@random"),
    "sgsf": ({"steps": 20_000}, None),
    "cutpaste": ({"steps": 65_536}, None),
    "isstad": ({"pretraining_steps": 3_000, "steps": 2_000}, None),
}
# Mean image AUROC on MVTec AD that the papers state; none of it is ours, nor of these three categories.
PAPERS = {
    "efficientad": "98.8 (S)",
    "slsg": "98.5",
    "sgsf": "not known",
    "cutpaste": "95.2 (3-way, from nothing)",
    "isstad": "97.6 (pre-trained)",
}


def jobs(options: Options) -> list[Job]:
    """Return the jobs in the order of their worth: category by category, those with most to show first."""
    if options.images is None or not options.images.is_dir():
        return []
    present = [folder.name for folder in sorted(options.images.iterdir()) if (folder / "train").is_dir()]
    order = [name for name in ("screw", "tile", "metal_plate") if name in present]
    order += [name for name in present if name not in order]
    if options.dry:
        tiny = {"profile": "small", "evaluations": 1}
        return [Job("sgsf", order[0], {"steps": 400}, tiny, size=64)]
    full = {"profile": "full", "evaluations": 6}
    return [Job(name, category, dict(steps), full, backbone)
            for category in order for name, (steps, backbone) in DETECTORS.items()]  # fmt: skip


def run(options: Options) -> None:
    """Start the trainings unless they run, and wait for them as long as this stage may."""
    start(options)
    while (pid := running(options.out)) is not None:
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)  # it is this process's child where it was started here
        time.sleep(_POLL_S)


def start(options: Options) -> None:
    """Start the supervisor in a session of its own, unless one is running."""
    options.out.mkdir(parents=True, exist_ok=True)
    if running(options.out) is not None:
        return
    command = [sys.executable, "-m", "benchmarks.gpu_day.training", *as_arguments(options)]
    with (options.out / "training.log").open("ab") as log:
        supervisor = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    (options.out / _PIDS).write_text(str(supervisor.pid))


def running(out: Path) -> int | None:
    """Return the supervisor's process, None where it has ended."""
    try:
        pid = int((out / _PIDS).read_text())
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, ValueError):
        return None
    return None if state in "ZX" else pid


def stand_still(out: Path) -> None:
    """Stop the trainings until `let_go_on`, and wait until what they gave the GPU is done."""
    if _signal(out, signal.SIGSTOP):
        time.sleep(2.0)


def let_go_on(out: Path) -> None:
    """Let trainings go on."""
    _signal(out, signal.SIGCONT)


def _signal(out: Path, number: int) -> bool:
    pid = running(out)
    if pid is None:
        return False
    # The supervisor leads its session, and its jobs are in its process group.
    with suppress(ProcessLookupError):
        os.killpg(pid, number)
        return True
    return False


def as_arguments(options: Options) -> list[str]:
    """Return options as arguments of this program, for another process."""
    given = ["--out", str(options.out), "--job-seconds", str(options.job_seconds), "--at-once", str(options.at_once)]
    given += ["--kit", str(options.kit)] if options.kit is not None else []
    given += ["--copy-to", str(options.copy_to)] if options.copy_to is not None else []
    return [*given, *(["--dry-run"] if options.dry else [])]


@dataclass(slots=True)
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    used_s: float = 0.0


def supervise(options: Options) -> None:
    """Run all jobs, some at once; a job that was under way continues, and one that failed is not tried again."""
    results = Results(options.out, "training", describe(options.dry), options.copy_to)
    waiting = [job for job in jobs(options) if results.items.get(job.name, {}).get("status") not in ("done", "failed")]
    active: list[_Running] = []
    folder = options.out / "jobs"
    folder.mkdir(exist_ok=True)
    # Jobs share the processor, and their batches are made there.
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // options.at_once))}
    while waiting or active:
        while waiting and len(active) < options.at_once:
            job = waiting.pop(0)
            results.set(job.name, {"status": "running"})
            command = [sys.executable, "-m", "benchmarks.gpu_day.job", job.name, *as_arguments(options)]
            with (folder / f"{job.name}.log").open("ab") as log:
                process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=environment)
                active.append(_Running(job, process))
        time.sleep(_POLL_S)
        for one in list(active):
            # Counted in turns of this loop, which stands still when the jobs do.
            one.used_s += _POLL_S
            if one.process.poll() is None and one.used_s < _OVERTIME * options.job_seconds:
                continue
            late = one.process.poll() is None
            if late:
                one.process.kill()
                one.process.wait()
            active.remove(one)
            results.set(one.job.name, _outcome(one, folder, late))


def _outcome(one: _Running, folder: Path, late: bool) -> dict[str, Any]:
    file = folder / f"{one.job.name}.json"
    if file.is_file():
        return {"status": "done", "seconds": one.used_s, "value": json.loads(file.read_text())}
    said = (folder / f"{one.job.name}.log").read_text(errors="replace")[-1500:]
    why = f"ended after {one.used_s:.0f} s, its training is kept" if late else f"ends with {one.process.returncode}"
    return {"status": "interrupted" if late else "failed", "seconds": one.used_s, "error": why, "trace": said}


if __name__ == "__main__":
    from benchmarks.gpu_day.__main__ import parse_options

    supervise(parse_options(sys.argv[1:]))
