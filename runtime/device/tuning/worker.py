"""The process in which one combination is tried alone: whether it opens, the memory it takes, what it decides.

Started by `edgead.runtime.isolation` as ``main(request file, answer file)``. A library that crashes here is one line of
the report, and what the process holds is what a camera loop with this combination would hold.
"""

from __future__ import annotations

import math
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.decision.verdict import Limits, Verdict
from edgead.runtime.device.tuning.search_space import Setup
from edgead.runtime.frame import Frame
from edgead.runtime.inspection.device_profile import Choice
from edgead.runtime.inspection.replay import problems, replay
from edgead.runtime.isolation import answer

_WARM_UP, _COUNTED = 3, 9


def main(request_file: str, answer_file: str) -> None:
    """Try what the request says, see `try_setup`."""
    answer(request_file, answer_file, try_setup)


def try_setup(request: dict[str, Any]) -> dict[str, Any]:
    """Return what a combination does, as JSON values.

    Args:
        request: ``bundle`` (path), ``choice`` (fields of `Choice`), ``frames`` (``.npy`` of ``(N, H, W, 3)`` uint8 BGR
            at camera size) and ``pictures`` (``.npy`` of ``(M, h, w, 3)`` uint8 RGB as the network takes them).
    """
    setup = Setup(Path(request["bundle"]), Choice.model_validate(request["choice"]))
    started = time.perf_counter()
    with setup.open() as inspector:
        frames = np.load(request["frames"])
        times = []
        for number in range(_WARM_UP + _COUNTED):
            inspector(Frame(frames[number % len(frames)], number, time.monotonic_ns(), "tune", "bgr"))
            times.append(time.perf_counter())
        memory = _memory()  # before anything is done that a camera loop does not do
        network, limits = inspector.network, inspector.limits
        with Bundle.open(setup.bundle) as bundle:
            replayed = replay(network, bundle, setup.choice.precision)
        judged = []
        for picture in np.load(request["pictures"], mmap_mode="r"):
            found = network.run(np.ascontiguousarray(picture)[None])
            verdict = limits.judge(found, 0)
            judged.append(verdict if np.isfinite(found.map).all() else verdict._replace(score=math.nan))
        steps = [after - before for before, after in zip(times[_WARM_UP - 1 :], times[_WARM_UP:], strict=False)]
        return {
            "backend": inspector.describe().to_dict(),
            "start_s": times[0] - started,
            "frame_ms": statistics.median(steps) * 1e3,
            "memory": memory,
            "problems": list(problems(replayed)),
            "references": {
                one.name: _plain(Verdict(one.score, _threshold(limits, one.category), one.decision, one.category, None))
                for one in replayed
            },
            "pictures": [_plain(verdict) for verdict in judged],
        }


def _threshold(limits: Limits, category: str | None) -> float:
    return limits.value if category is None else limits.categories.get(category, limits.value)


def _plain(verdict: Verdict) -> list[Any]:
    score = verdict.score if math.isfinite(verdict.score) else None
    return [score, verdict.threshold, verdict.decision.value, verdict.category]


def _memory() -> dict[str, int] | None:
    """Return bytes resident at most and now; None where the system does not tell.

    Not getrusage, whose maximum begins with that of the process which started this one.
    """
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return None
    lines = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    if "VmHWM" not in lines or "VmRSS" not in lines:
        return None
    return {"peak": int(lines["VmHWM"].split()[0]) * 1024, "resident": int(lines["VmRSS"].split()[0]) * 1024}
