"""Settings that keep within a budget, chosen by measurement: the ladder, what counts as equal, which rung is taken.

Each detector names a ladder of settings from cheap to expensive. Every rung is fitted on some of the training images,
judges others that it never saw, as they are and with painted defects (`edgead.probes`), and is exported to a real
bundle whose bytes are counted and whose time from camera to decision is taken. No test image is read.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from edgead.budget.tracing import SharedBackbone
from edgead.budget.trials import STRENGTH, Trials
from edgead.detectors import Settings, create_detector
from edgead.detectors.base import TrainingImages
from edgead.export.exportable import Exportable
from edgead.export.exporting import write_draft
from edgead.features.features import FeatureExtractor
from edgead.model.card_sections import BudgetCard, RungCard
from edgead.runtime.backends import choose as choose_backend
from edgead.runtime.decision.known_images import PACKED_BYTES
from edgead.runtime.decision.paired_auroc import Ranking
from edgead.runtime.device.bench import DEFAULT_FRAME_SIZE, take_turns
from edgead.runtime.errors import BudgetError, ConfigError
from edgead.runtime.imaging.decode import decode_image
from edgead.runtime.inspection.inspector import Inspector
from edgead.runtime.machine import describe_machine
from edgead.runtime.progress import Progress, silent

FRAMES = 60  # timed a rung

_TURN = 5  # frames until the next rung's: short, so that a busy moment of the machine meets many rungs and few frames
# Bytes that provenance, but for the known images, and parity records add to the final bundle, at most.
_RECORDS = 16 << 10


@dataclass(frozen=True, slots=True)
class Budget:
    """The outcome.

    Attributes:
        settings: all of the detector's.
        card: the curve that led to them.
    """

    settings: Mapping[str, Any]
    card: BudgetCard
    _shared: SharedBackbone

    def require_within(self, model: Exportable) -> None:
        """Raise `BudgetError` where the bundle of the final model, fitted on all images, is larger than the budget.

        The sizes of a ladder do not grow with the images; what the user fixed, or what depends on the images, may.
        """
        if self.card.budget_mb is None:
            return
        with TemporaryDirectory(prefix="edgead-budget-") as folder:
            size = write_draft(model, Path(folder, "final.edgead"), self._shared.export) + _RECORDS // 2
        if size > self.card.budget_mb * 1e6:
            measured = self.card.curve[self.card.chosen].bytes
            raise BudgetError(
                f"fitted on all images the bundle takes {size / 1e6:.2f} MB, more than {self.card.budget_mb:g} MB "
                f"({measured / 1e6:.2f} MB on {self.card.fitted} of them); lower --budget-mb a little, or fix settings "
                "with --set"
            )


def check_budget(budget_mb: float | None, budget_ms: float | None) -> None:
    """Raise `ConfigError` unless each budget that is given is a positive number."""
    for name, value in (("--budget-mb", budget_mb), ("--budget-ms", budget_ms)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ConfigError(f"{name} must be a number above 0, got {value}")


@dataclass(frozen=True, slots=True)
class BudgetLimits:
    """What a bundle may take.

    Attributes:
        mb: 10^6 bytes on disk, as it is exported without options; None: any number.
        ms: median from camera to decision of a 1280x1024 frame on the default backend of this machine; None: any.
    """

    mb: float | None
    ms: float | None

    def excess(self, size: int, ms: float) -> float:
        """Return the largest share of a limit that is taken; more than 1 does not fit."""
        return max(size / 1e6 / (self.mb or math.inf), ms / (self.ms or math.inf))

    def fits(self, size: int, ms: float) -> bool:
        return size <= (self.mb or math.inf) * 1e6 and ms <= (self.ms or math.inf)

    def __str__(self) -> str:
        limits = ((self.mb, "MB"), (self.ms, "ms"))
        return " and ".join(f"{value:g} {unit}" for value, unit in limits if value is not None)


@dataclass(frozen=True, slots=True)
class Material:
    """What a ladder is measured with.

    Attributes:
        images, sources: all training images, and the name of the folder of each.
        extractor: of the plain features.
        references: ``(name, PNG bytes)`` that the final bundle will hold, part of its size; also the timed frames.
    """

    images: TrainingImages
    sources: Sequence[str]
    extractor: FeatureExtractor
    references: Sequence[tuple[str, bytes]]


def choose(
    detector: Any,
    fixed: Collection[str],
    material: Material,
    limits: BudgetLimits,
    *,
    seed: int,
    progress: Progress = silent,
) -> Budget:
    """Measure the ladder of a detector and choose the rung that finds most within the budget.

    The largest AUROC within the budget wins. A rung that lies behind it by no more than one standard error of their
    difference counts as equal, and of equals the one with the smallest bundle is taken. The error is the jackknife's
    over the held-out images, each left out together with its painted copies; both rungs judge the same images.

    Args:
        detector: with the user's settings.
        fixed: names of the settings that the user gave; they are not varied.
        material: images and features; limits: the budget.
        seed: chooses the images and paints the defects. AUROC and bytes depend on nothing else.
        progress: called with ``(stage, done, total)``.

    Raises:
        BudgetError: no rung keeps within the budget.
        DataError: too few images, or none that a defect can be painted on.
        BackendUnavailable: no backend to take times on is installed.
    """

    def tell(stage: str, done: int, total: int) -> None:
        progress(f"budget: {stage}", done, total)

    choose_backend("auto")
    extractor, references = material.extractor, material.references
    trials = Trials.of(detector, material.images, material.sources, extractor, seed, tell)
    cells = extractor.grid[0] * extractor.grid[1]
    ladder: Sequence[Settings] = detector.ladder(extractor.channels, cells, trials.fitted, fixed)
    shared = SharedBackbone(extractor.backbone, *trials.size)
    rankings, sizes = [], []
    records = _RECORDS + PACKED_BYTES * len(material.images)
    with TemporaryDirectory(prefix="edgead-budget-") as folder:
        bundles = [Path(folder, f"rung-{number}.edgead") for number in range(len(ladder))]
        for number, (settings, bundle) in enumerate(zip(ladder, bundles, strict=True)):
            tell("settings", number, len(ladder))
            model = trials.fit(create_detector(detector.name, settings.model_dump()), references, seed, tell)
            rankings.append(trials.rank(model))
            sizes.append(write_draft(model, bundle, shared.export) + records)
        tell("settings", len(ladder), len(ladder))
        backend, times = _take_times(bundles, references, tell)
    rows = zip(varied(ladder), rankings, sizes, times, strict=True)
    curve = tuple(_rung(limits, *row) for row in rows)
    if not any(rung.fits for rung in curve):
        raise BudgetError(_complaint(detector.name, curve, limits, backend["name"]))
    chosen = pick(curve, rankings)
    card = BudgetCard(
        budget_mb=limits.mb,
        budget_ms=limits.ms,
        fitted=trials.fitted,
        held_out=len(trials.normals),
        probes=len(trials.painted),
        strength=STRENGTH,
        frame_size=DEFAULT_FRAME_SIZE,
        frames=FRAMES,
        backend=backend,
        machine=describe_machine(),
        curve=curve,
        chosen=chosen,
    )
    return Budget(ladder[chosen].model_dump(), card, shared)


def _rung(limits: BudgetLimits, settings: dict[str, Any], ranking: Ranking, size: int, ms: float) -> RungCard:
    return RungCard(
        settings=settings,
        auroc=ranking.auroc,
        standard_error=ranking.error(),
        bytes=size,
        ms=round(ms, 3),
        fits=limits.fits(size, ms),
    )


def pick(curve: Sequence[RungCard], rankings: Sequence[Ranking]) -> int:
    """Return the rung that `choose` takes; one of them fits."""
    fitting = [number for number, rung in enumerate(curve) if rung.fits]
    best = max(fitting, key=lambda number: curve[number].auroc)
    equal = [
        number
        for number in fitting
        if curve[best].auroc - curve[number].auroc <= rankings[best].error(rankings[number])
    ]
    return min(equal, key=lambda number: curve[number].bytes)


def _complaint(name: str, curve: Sequence[RungCard], limits: BudgetLimits, backend: str) -> str:
    nearest = min(curve, key=lambda rung: limits.excess(rung.bytes, rung.ms))
    settings = ", ".join(f"{key}={value}" for key, value in nearest.settings.items())
    of = f" ({settings})" if settings else ""
    return (
        f"no settings of detector '{name}' keep within {limits}: the nearest{of} take "
        f"{nearest.bytes / 1e6:.2f} MB and {nearest.ms:.2f} ms on {backend} here; "
        "raise the budget, or take a smaller --size, --backbone or detector"
    )


def varied(ladder: Sequence[Settings]) -> list[dict[str, Any]]:
    """Return of each rung the settings in which the ladder's rungs differ; those of a head as ``head.KEY``."""

    def flat(settings: Settings) -> dict[str, Any]:
        values = settings.model_dump()
        inner = values.pop("head_settings", {})
        return {**values, **{f"head.{key}": value for key, value in inner.items()}}

    first, *others = rows = [flat(settings) for settings in ladder]
    names = [name for name in first if any(other[name] != first[name] for other in others)]
    return [{name: row[name] for name in names} for row in rows]


def _take_times(
    bundles: Sequence[Path], references: Sequence[tuple[str, bytes]], progress: Progress
) -> tuple[dict[str, Any], list[float]]:
    """Return what ran the bundles, and the median of each in ms; they take turns, so that noise meets all alike."""
    frames = [decode_image(data, name) for name, data in references]
    with ExitStack() as stack:
        inspectors = [stack.enter_context(Inspector.open(bundle)) for bundle in bundles]
        found = take_turns(
            inspectors, frames, frames=FRAMES, turn=_TURN, progress=lambda done, total: progress("frames", done, total)
        )
        return inspectors[0].describe().to_dict(), [latency.p50 for latency in found]
