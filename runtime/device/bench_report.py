"""What ``edgead bench`` reports."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from edgead.runtime.backends import BackendInfo
from edgead.runtime.status.latency import Latency


@dataclass(frozen=True, slots=True)
class Accuracy:
    """One candidate on the bundle's references, beside the torch model: raw score units, and changed decisions."""

    references: int
    max_score_difference: float
    decision_changes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        worst = self.max_score_difference
        return {
            "references": self.references,
            "max_score_difference": worst if math.isfinite(worst) else None,
            "decision_changes": list(self.decision_changes),
        }


@dataclass(frozen=True, slots=True)
class BenchRow:
    """What was measured of one backend and precision.

    Attributes:
        latency: camera to decision, of inspected frames; with a rate it counts from the scheduled time.
        stages: ``wait`` (until its turn; 0 without a rate), ``preprocess``, ``network``, ``decide``.
        throughput_fps: inspected frames a second, of one caller that waits for each decision.
        queued: frames that could not start at their scheduled time, because the one before was not decided.
        failed: frames without a valid score.
    """

    backend: BackendInfo
    why: str
    precision: str
    latency: Latency
    stages: dict[str, Latency]
    throughput_fps: float
    queued: int
    inspected: int
    failed: int
    decisions: dict[str, int]
    accuracy: Accuracy

    def to_dict(self) -> dict[str, Any]:
        captured = self.inspected + self.failed
        return {
            "backend": {**self.backend.to_dict(), "why": self.why},
            "precision": self.precision,
            "frames": {"captured": captured, "inspected": self.inspected, "dropped": 0, "failed": self.failed},
            "decisions": self.decisions,
            "latency_ms": {
                **self.latency.to_dict(),
                "stages": {name: stage.to_dict() for name, stage in self.stages.items()},
            },
            "throughput_fps": self.throughput_fps,
            "queued": self.queued,
            "accuracy": self.accuracy.to_dict(),
        }


@dataclass(frozen=True, slots=True)
class BenchReport:
    """The outcome.

    Attributes:
        frames, warm_up: counted and uncounted frames for each row.
        frames: counted of each row; with ``duration_s`` as many as the first had in that time.
        board: `edgead.runtime.device.board_status.describe_board` ``before`` and ``after`` the measurement; in a run of
            ``duration_s`` also every minute ``during`` it, a list.
        skipped: why a backend that nobody asked for by name is not among the rows.
    """

    bundle: str
    model_sha256: str
    frame_size: tuple[int, int]
    frames: int
    warm_up: int
    rate_fps: float | None
    machine: dict[str, Any]
    board: dict[str, Any]
    versions: dict[str, str]
    rows: tuple[BenchRow, ...]
    skipped: dict[str, str]
    duration_s: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form (schema ``edgead.bench/1``)."""
        return {
            "schema": "edgead.bench/1",
            "bundle": self.bundle,
            "model_sha256": self.model_sha256,
            "frame_size": {"width": self.frame_size[0], "height": self.frame_size[1]},
            "frames": self.frames,
            "warm_up": self.warm_up,
            "rate_fps": self.rate_fps,
            "duration_s": self.duration_s,
            "machine": self.machine,
            "board": self.board,
            "versions": self.versions,
            "results": [row.to_dict() for row in self.rows],
            "skipped": self.skipped,
        }
