"""One training of the day, in a process of its own: ``python -m benchmarks.gpu_day.job CATEGORY-DETECTOR …``."""

from __future__ import annotations

import json
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.gpu_day.options import Options
from benchmarks.gpu_day.training import PAPERS, Job, jobs
from edgead.data import open_category
from edgead.evaluation.evaluation import evaluate
from edgead.fitting import fit
from edgead.model.model import TrainedModel
from edgead.runtime.backends import BackendInfo
from edgead.runtime.backends.common import as_inference
from edgead.runtime.errors import ConfigError
from edgead.runtime.files import atomic_write
from edgead.runtime.frame import Inference
from edgead.runtime.inspection.inspector import Inspector

_PILOT_STEPS, _DRY_STEPS = 40, 8  # of each stage, for their time
_TICK_S = 0.25
_SHARE = 0.8  # of a job's seconds that its steps may take; the rest is a reserve for slower ones
_BOOTSTRAP = 200


class _EnoughError(Exception):
    """A pilot's training has shown what it had to."""


class _ActiveClock:
    """Seconds that this process ran: the day makes it stand still while something else is timed."""

    def __init__(self) -> None:
        self.seconds = 0.0
        threading.Thread(target=self._tick, daemon=True).start()

    def _tick(self) -> None:
        before = time.monotonic()
        while True:
            time.sleep(_TICK_S)
            now = time.monotonic()
            # A longer gap is time in which this thread, and so all of this process, was stopped.
            self.seconds += min(now - before, 4 * _TICK_S)
            before = now


class _Rates:
    """A progress of `fit` that times the steps of each stage, and ends the training after the last one."""

    def __init__(self, stages: int) -> None:
        self._marks: dict[str, list[float]] = {}
        self._stages = stages

    def __call__(self, stage: str, done: int, total: int) -> None:
        name, bar, _ = stage.partition(" | ")
        if not bar:
            return
        self._marks.setdefault(name, []).append(time.perf_counter())
        if len(self._marks) == self._stages and done == total:
            raise _EnoughError

    def seconds(self) -> list[float]:
        """Return the median seconds of a step, stage by stage; the first steps load libraries."""
        return [float(np.median(np.diff(marks[len(marks) // 4 :]))) for marks in self._marks.values()]


class DeviceBackend:
    """A trained network as a backend, on the GPU where there is one, in FP32."""

    def __init__(self, model: TrainedModel) -> None:
        self._place = "cuda" if torch.cuda.is_available() else "cpu"
        self._module = model.module.to(self._place).eval()

    def run(self, images: NDArray[np.uint8]) -> Inference:
        """Score ``images (N, h, w, 3)`` uint8."""
        with torch.inference_mode():
            found = self._module(torch.from_numpy(np.array(images)).to(self._place))
        return as_inference([one.float().cpu().numpy() for one in found])

    def describe(self) -> BackendInfo:
        """Return what runs."""
        return BackendInfo("torch", "torch", "fp32", self._place, 0, torch.__version__)

    def close(self) -> None:
        """Bring the network back to the CPU."""
        self._module.to("cpu")


def run_job(job: Job, options: Options) -> dict[str, Any]:
    """Train, measure and keep one model; what it returns goes into the results."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    assert options.images is not None
    folder, clock = options.images / job.category, _ActiveClock()
    state = options.out / "jobs" / f"{job.name}.plan.json"
    if not state.is_file():
        plan = make_plan(job, folder, options, clock)
        with atomic_write(state, ConfigError) as stream:
            stream.write(json.dumps(plan).encode())
    plan = json.loads(state.read_text())
    print(f"{job.name}: {plan}", flush=True)
    # What a job that was ended has of its training lies here, and this one goes on with it.
    checkpoint = options.out / "jobs" / f"{job.name}.training"
    model = _fit(job, folder, plan["steps"], checkpoint=checkpoint)
    fitted = clock.seconds
    model.save(options.out / "models" / job.name)
    category = open_category(folder, need_test=True)
    with Inspector(
        DeviceBackend(model), height=model.card.height, width=model.card.width, threshold=model.limits
    ) as inspect:
        report = evaluate(inspect, category, bootstrap=_BOOTSTRAP)
    log = model.card.training
    return {
        "image_auroc": _metric(report.image_auroc),
        "pixel_auroc": _metric(report.pixel_auroc),
        "aupro": _metric(report.aupro),
        "paper, MVTec mean, theirs": PAPERS[job.detector],
        "steps": plan["steps"],
        "full_profile_steps": job.steps,
        "seconds_a_step": plan["seconds_a_step"],
        "size": model.card.height,
        "fit_s": round(fitted, 1),
        "evaluate_s": round(clock.seconds - fitted, 1),
        "training": None if log is None else log.model_dump(mode="json"),
    }


def make_plan(job: Job, folder: Path, options: Options, clock: _ActiveClock) -> dict[str, Any]:
    """Return as many steps of each stage as fit into the seconds: the full profile's, or an equal share of all."""
    rates, pilot = _Rates(len(job.steps)), _DRY_STEPS if options.dry else _PILOT_STEPS
    with suppress(_EnoughError):
        _fit(job, folder, dict.fromkeys(job.steps, pilot), progress=rates)
    per_step = rates.seconds()
    # Twice what the pilot took beside its steps: that comes again, and so do the end and the measurement.
    left = _SHARE * options.job_seconds - 2.0 * max(0.0, clock.seconds - sum(per_step) * pilot)
    whole = sum(rate * steps for rate, steps in zip(per_step, job.steps.values(), strict=True))
    share = min(1.0, max(left, 0.1 * options.job_seconds) / max(whole, 1e-9))
    steps = {name: pilot if options.dry else max(pilot, int(count * share)) for name, count in job.steps.items()}
    return {"steps": steps, "share": round(share, 4), "seconds_a_step": [round(rate, 5) for rate in per_step]}


def _fit(job: Job, folder: Path, steps: dict[str, int], **how: Any) -> TrainedModel:
    given = {"detector": job.detector, "settings": {**job.settings, **steps}, **how}
    given |= {name: value for name, value in (("backbone", job.backbone), ("size", job.size)) if value is not None}
    return fit(folder, **given)


def _metric(metric: Any) -> dict[str, float] | None:
    return None if metric is None else {"value": metric.value, "low": metric.low, "high": metric.high}


def main() -> int:
    from benchmarks.gpu_day.__main__ import parse_options

    name, options = sys.argv[1], parse_options(sys.argv[2:])
    job = next(one for one in jobs(options) if one.name == name)
    value = run_job(job, options)
    with atomic_write(options.out / "jobs" / f"{name}.json", ConfigError) as stream:
        stream.write(json.dumps(value, indent=1).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
