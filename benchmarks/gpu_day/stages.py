"""The stages in the order of their worth, and who runs them: each in a process of its own, with a time limit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module

from benchmarks.gpu_day.machine import ROOT, describe
from benchmarks.gpu_day.options import Options
from benchmarks.gpu_day.results import Results, copy_result, count_items

_GRACE_S = 10.0


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage.

    Attributes:
        name: also of its module in this package, which has ``run(options, results)``.
        limit_s: after which it is ended.
        alone: its times count, so that trainings in the background stand still meanwhile.
    """

    name: str
    limit_s: float
    alone: bool = False


STAGES = (
    Stage("right", 240),
    Stage("speed", 270, alone=True),
    Stage("sanitize", 300),
    Stage("counters", 240, alone=True),
    Stage("half", 240),
    Stage("engines", 300, alone=True),
    Stage("training", 450),
)


def run_stages(stages: list[Stage], options: Options, command: list[str], limit_s: float | None = None) -> bool:
    """Run stages one after the other; whatever becomes of one, the next has its turn. True if every item was done.

    Args:
        command: this program with the options, to which ``--child NAME`` is added.
        limit_s: of each, in place of its own.
    """
    from benchmarks.gpu_day import training

    options.out.mkdir(parents=True, exist_ok=True)
    whole = True
    for stage in stages:
        limit = stage.limit_s if limit_s is None else limit_s
        print(f"== {stage.name} (at most {limit:.0f} s)", flush=True)
        begun = time.monotonic()
        training.let_go_on(options.out)  # a command that was killed may have left them standing
        if stage.alone:
            training.stand_still(options.out)
        try:
            ended = _run_child([*command, "--child", stage.name], options, limit)
        finally:
            training.let_go_on(options.out)
        # Also of trainings in the background, whose own copies may go to the folder of an earlier command.
        copy_result(options.out / "training.json", options.copy_to)
        counts = count_items(options.out / f"{stage.name}.json")
        whole = whole and ended == "ended" and set(counts) == {"done"}
        said = ", ".join(f"{number} {state}" for state, number in sorted(counts.items())) or "no item"
        print(f"== {stage.name}: {ended} after {time.monotonic() - begun:.0f} s; {said}", flush=True)
    return whole


def run_child(name: str, options: Options) -> None:
    """Run one stage in this process."""
    stage = import_module(f"benchmarks.gpu_day.{name}")
    if name == "training":  # its results are written by a process of its own
        stage.run(options)
    else:
        stage.run(options, Results(options.out, name, describe(options.dry), options.copy_to))


def _run_child(command: list[str], options: Options, limit_s: float) -> str:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": _path(options)}
    # Products of torch in the same order each time.
    environment.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    child = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
    try:
        code = child.wait(limit_s)
        return "ended" if code == 0 else f"failed with {code}"
    except subprocess.TimeoutExpired:
        return "out of time"
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(child.pid, number)
            with suppress(subprocess.TimeoutExpired):
                child.wait(_GRACE_S)


def _path(options: Options) -> str:
    site = [] if options.kit is None else [str(options.kit / "site")]
    return os.pathsep.join([str(ROOT), *site, *filter(None, [os.environ.get("PYTHONPATH")])])


def this_program() -> list[str]:
    """Return the command of this program, without arguments."""
    return [sys.executable, "-m", "benchmarks.gpu_day"]
