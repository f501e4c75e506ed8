"""What ``edgead tune`` reports."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from edgead.runtime.device.tuning.evaluation import Judgement, Trial
from edgead.runtime.device.tuning.search_space import Setup
from edgead.runtime.inspection.device_profile import Device, DeviceProfile, Measured, versions_of
from edgead.runtime.status.latency import Latency


@dataclass(frozen=True, slots=True)
class BundleFacts:
    """A bundle that takes part: its network size in pixels, detector, and bytes on disk."""

    path: str
    name: str
    sha256: str
    height: int
    width: int
    detector: dict[str, Any]
    size: int

    def to_dict(self) -> dict[str, Any]:
        return {
            "bundle": self.path,
            "name": self.name,
            "model_sha256": self.sha256,
            "input": {"height": self.height, "width": self.width},
            "detector": self.detector,
            "bytes": self.size,
        }


@dataclass(frozen=True, slots=True)
class Candidate:
    """One combination, tried and measured.

    Attributes:
        bundle: index of the report's bundles.
        latency: camera to decision; None where it was not timed, because it must not be used.
        group: those of one group took turns in one process; more than one where memory does not hold all at once.
        fits: whether it keeps within the budgets; front: whether no other one is at least as accurate, as fast and as
            small, and better in one of the three.
    """

    setup: Setup
    bundle: int
    trial: Trial
    judgement: Judgement
    latency: Latency | None = None
    group: int | None = None
    fits: bool = False
    front: bool = False

    @property
    def usable(self) -> bool:
        return self.judgement.excluded is None and self.latency is not None and self.setup.eligible

    @property
    def peak_mb(self) -> float | None:
        """10^6 bytes that a process with it held at most; None where the system does not tell."""
        return None if self.trial.peak_bytes is None else self.trial.peak_bytes / 1e6

    def to_dict(self) -> dict[str, Any]:
        judged, resident = self.judgement, self.trial.resident_bytes
        return {
            "bundle": self.bundle,
            **self.setup.choice.model_dump(),
            "plain": self.setup.plain,
            "eligible": self.setup.eligible,
            "runs_on": self.trial.backend,
            "latency_ms": None if self.latency is None else self.latency.to_dict(),
            "group": self.group,
            "start_s": round(self.trial.start_s, 3),
            "memory_mb": None
            if self.peak_mb is None or resident is None
            else {"peak": round(self.peak_mb, 1), "resident": round(resident / 1e6, 1)},
            "accuracy": {
                "auroc": judged.auroc,
                "standard_error": None if judged.ranking is None else judged.ranking.error(),
                "held_out": judged.held_out,
                "drift": judged.drift if math.isfinite(judged.drift) else None,
                "flips": list(judged.flips),
                "borderline": judged.borderline,
                "images": judged.images,
            },
            "excluded": judged.excluded,
            "fits": self.fits,
            "front": self.front,
        }


@dataclass(frozen=True, slots=True)
class TuneReport:
    """The outcome.

    Attributes:
        budget_ms: median from camera to decision; budget_mb: 10^6 bytes of memory. None: no limit.
        frames: counted frames of each candidate.
        candidates: the plain one of each bundle first.
        skipped: combination -> why it could not be opened.
        choice: index of the candidates; None where none keeps within the budgets.
        problem: then one line that says which comes nearest, and what to change.
    """

    bundles: tuple[BundleFacts, ...]
    budget_ms: float | None
    budget_mb: float | None
    frame_size: tuple[int, int]
    frames: int
    pictures: dict[str, int]
    machine: dict[str, Any]
    board: dict[str, dict[str, Any]]
    candidates: tuple[Candidate, ...]
    skipped: dict[str, str]
    choice: int | None
    problem: str | None

    @property
    def chosen(self) -> Candidate | None:
        return None if self.choice is None else self.candidates[self.choice]

    @property
    def best(self) -> Candidate:
        """The chosen candidate, else the fastest that may be used, else the first."""
        usable = [one for one in self.candidates if one.usable]
        fastest = min(usable, key=lambda one: one.latency.p50 if one.latency else math.inf, default=self.candidates[0])
        return self.chosen or fastest

    def profile(self) -> DeviceProfile | None:
        """Return what ``edgead run`` is to use on this device, None where nothing was chosen."""
        chosen = self.chosen
        if chosen is None or chosen.latency is None:
            return None
        bundle = self.bundles[chosen.bundle]
        return DeviceProfile(
            bundle_name=bundle.name,
            bundle_sha256=bundle.sha256,
            device=Device.here(),
            versions=versions_of(chosen.setup.choice.backend),
            choice=chosen.setup.choice,
            measured=Measured(
                p50_ms=round(chosen.latency.p50, 3),
                p99_ms=round(chosen.latency.p99, 3),
                frame_width=self.frame_size[0],
                frame_height=self.frame_size[1],
                peak_mb=None if chosen.peak_mb is None else round(chosen.peak_mb, 1),
                drift=chosen.judgement.drift,
                budget_ms=self.budget_ms,
                budget_mb=self.budget_mb,
                at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            ),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form (schema ``edgead.tune/1``)."""
        return {
            "schema": "edgead.tune/1",
            "bundles": [bundle.to_dict() for bundle in self.bundles],
            "budget": {"ms": self.budget_ms, "mb": self.budget_mb},
            "frame_size": {"width": self.frame_size[0], "height": self.frame_size[1]},
            "frames": self.frames,
            "pictures": self.pictures,
            "machine": self.machine,
            "board": self.board,
            "candidates": [candidate.to_dict() for candidate in self.candidates],
            "front": _where([candidate.front for candidate in self.candidates]),
            "skipped": self.skipped,
            "choice": self.choice,
            "problem": self.problem,
        }


def _where(flags: Sequence[bool]) -> list[int]:
    return [index for index, flag in enumerate(flags) if flag]
