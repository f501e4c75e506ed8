"""Settings that keep within a budget of bytes or milliseconds, chosen by measurement on this machine.

Each detector names a ladder of settings from cheap to expensive. Every rung is fitted on some of the training images,
judges others that it never saw, as they are and with painted defects (`edgead.probes`), and is exported to a real
bundle whose bytes are counted and whose time from camera to decision is taken. No test image is read.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgead.backbones import Backbone
from edgead.coreset import Progress, silent
from edgead.detectors import Settings, create_detector, pools_categories
from edgead.detectors.base import TrainingImages, fit_module
from edgead.detectors.routing import RoutedModule
from edgead.export.exporting import Exportable, Routing, write_draft
from edgead.features import FeatureExtractor
from edgead.model import BudgetCard, RungCard
from edgead.paired import Ranking
from edgead.probes import KINDS, plant
from edgead.runtime.backends import choose as choose_backend
from edgead.runtime.bench import DEFAULT_FRAME_SIZE, describe_machine, take_turns
from edgead.runtime.decode import decode_image
from edgead.runtime.errors import ConfigError, DataError
from edgead.runtime.inspector import Inspector
from edgead.runtime.threshold import calibrate
from edgead.scoring import ScoringModule

STRENGTH = 0.35  # of the painted defects: hard to see, so that settings differ in what they find
FRAMES = 40  # timed a rung

_FITTED = 120  # images at most that a rung is fitted on, ...
_FITTED_A_SOURCE = 24  # ... but so many of each folder where a detector pools them
_HELD_OUT = 30
_LEAST_HELD_OUT = 3
_LEAST_IMAGES = 8
_MEMORY = 1 << 30  # bytes of backbone features kept; where images have many, fewer of them are used
_RECORDS = 16 << 10  # bytes that the final bundle's provenance and parity records take at most


@dataclass(frozen=True, slots=True)
class Budget:
    """The outcome: all settings of the detector, and the curve that led to them."""

    settings: Mapping[str, Any]
    card: BudgetCard


def check_budget(budget_mb: float | None, budget_ms: float | None) -> None:
    """Raise `ConfigError` unless each budget that is given is a positive number."""
    for name, value in (("--budget-mb", budget_mb), ("--budget-ms", budget_ms)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ConfigError(f"{name} must be a number above 0, got {value}")


def choose(
    detector: Any,
    fixed: Collection[str],
    images: TrainingImages,
    sources: Sequence[str],
    extractor: FeatureExtractor,
    references: Sequence[tuple[str, bytes]],
    *,
    budget_mb: float | None,
    budget_ms: float | None,
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
        images, sources: all training images, and the name of the folder of each.
        extractor: of the plain features.
        references: ``(name, PNG bytes)`` that the final bundle will hold, part of its size; also the timed frames.
        budget_mb: 10^6 bytes of the bundle on disk, as it is exported without options.
        budget_ms: median from camera to decision of a 1280x1024 frame on the default backend of this machine.
        seed: chooses the images and paints the defects. AUROC and bytes depend on nothing else.
        progress: called with ``(stage, done, total)``.

    Raises:
        ConfigError: no rung keeps within the budget.
        DataError: too few images, or none that a defect can be painted on.
        BackendUnavailable: no backend to take times on is installed.
    """

    def tell(stage: str, done: int, total: int) -> None:
        progress(f"budget: {stage}", done, total)

    choose_backend("auto")
    remembered = _Remembered(extractor.backbone)
    fitted, held_out = _split(sources, _room(images, extractor), pooled=pools_categories(detector.name), seed=seed)
    normals = _Held.of(images, fitted)
    names = [sources[index] for index in fitted]
    judged = _Judged.of(_Held.of(images, held_out).pixels, seed, tell)
    ladder: Sequence[Settings] = detector.ladder(
        extractor.channels, extractor.grid[0] * extractor.grid[1], len(normals), fixed
    )
    rankings, sizes = [], []
    with TemporaryDirectory(prefix="edgead-budget-") as folder:
        bundles = [Path(folder, f"rung-{number}.edgead") for number in range(len(ladder))]
        for number, (settings, bundle) in enumerate(zip(ladder, bundles, strict=True)):
            tell("settings", number, len(ladder))
            method = create_detector(detector.name, settings.model_dump())
            # An extractor of its own, for its backbone is exchanged below.
            plain = FeatureExtractor(remembered, extractor.grid).eval()
            model = _fit(method, normals, names, plain, references, seed, tell)
            rankings.append(judged.rank(model))
            for part in model.module.modules():
                if isinstance(part, FeatureExtractor):
                    part.backbone = extractor.backbone
            sizes.append(write_draft(model, bundle) + _RECORDS)
        tell("settings", len(ladder), len(ladder))
        backend, times = _take_times(bundles, references, tell)
    curve = tuple(
        RungCard(
            settings=settings,
            auroc=ranking.auroc,
            standard_error=ranking.error(),
            bytes=size,
            ms=round(ms, 3),
            fits=size <= (budget_mb or math.inf) * 1e6 and ms <= (budget_ms or math.inf),
        )
        for settings, ranking, size, ms in zip(_varied(ladder), rankings, sizes, times, strict=True)
    )
    if not any(rung.fits for rung in curve):
        raise ConfigError(_complaint(detector.name, curve, budget_mb, budget_ms, backend["name"]))
    chosen = pick(curve, rankings)
    card = BudgetCard(
        budget_mb=budget_mb,
        budget_ms=budget_ms,
        fitted=len(fitted),
        held_out=len(held_out),
        probes=len(judged.owners),
        strength=STRENGTH,
        frame_size=DEFAULT_FRAME_SIZE,
        frames=FRAMES,
        backend=backend,
        machine=describe_machine(),
        curve=curve,
        chosen=chosen,
    )
    return Budget(ladder[chosen].model_dump(), card)


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


def require_within(card: BudgetCard, model: Exportable) -> None:
    """Raise `ConfigError` where the bundle of the final model, fitted on all images, is larger than the budget.

    A ladder's sizes do not grow with the images; what the user fixed, or what depends on the images, may.
    """
    if card.budget_mb is None:
        return
    with TemporaryDirectory(prefix="edgead-budget-") as folder:
        size = write_draft(model, Path(folder, "final.edgead"))
    if size > card.budget_mb * 1e6:
        measured = card.curve[card.chosen].bytes
        raise ConfigError(
            f"fitted on all images the bundle takes {size / 1e6:.2f} MB, more than the budget of {card.budget_mb:g} MB "
            f"({measured / 1e6:.2f} MB on {card.fitted} images); lower --budget-mb a little, or fix a setting with --set"
        )


def _complaint(
    name: str, curve: Sequence[RungCard], budget_mb: float | None, budget_ms: float | None, backend: str
) -> str:
    def excess(rung: RungCard) -> float:
        return max(rung.bytes / 1e6 / (budget_mb or math.inf), rung.ms / (budget_ms or math.inf))

    nearest = min(curve, key=excess)
    limits = ((budget_mb, "MB"), (budget_ms, "ms"))
    wanted = " and ".join(f"{value:g} {unit}" for value, unit in limits if value is not None)
    settings = ", ".join(f"{key}={value}" for key, value in nearest.settings.items())
    return (
        f"no settings of detector '{name}' keep within {wanted}: the nearest{f' ({settings})' if settings else ''} take "
        f"{nearest.bytes / 1e6:.2f} MB and {nearest.ms:.2f} ms on {backend} here; "
        "raise the budget, or take a smaller --size, --backbone or detector"
    )


def _varied(ladder: Sequence[Settings]) -> list[dict[str, Any]]:
    """Return of each rung the settings in which the ladder's rungs differ; those of a head as ``head.KEY``."""

    def flat(settings: Settings) -> dict[str, Any]:
        values = settings.model_dump()
        inner = values.pop("head_settings", {})
        return {**values, **{f"head.{key}": value for key, value in inner.items()}}

    first, *others = rows = [flat(settings) for settings in ladder]
    names = [name for name in first if any(other[name] != first[name] for other in others)]
    return [{name: row[name] for name in names} for row in rows]


def _split(sources: Sequence[str], room: int, *, pooled: bool, seed: int) -> tuple[list[int], list[int]]:
    """Return which images a rung is fitted on, and which others it judges; every folder gives its share of both.

    ``room``: images, painted ones too, whose features can be kept.
    """
    count = len(sources)
    if count < _LEAST_IMAGES:
        raise DataError(
            f"{count} good images are too few to choose settings by measurement, which takes {_LEAST_IMAGES}; "
            "add photos, or leave out --budget-mb and --budget-ms"
        )
    held_out = min(_HELD_OUT, max(_LEAST_HELD_OUT, count // 4))
    most = max(_FITTED, _FITTED_A_SOURCE * len(set(sources))) if pooled else _FITTED
    fitted = min(most, count - held_out)
    share = min(1.0, room / (fitted + held_out * (1 + len(KINDS))))
    fitted, held_out = max(_LEAST_HELD_OUT, int(fitted * share)), max(_LEAST_HELD_OUT, int(held_out * share))
    random = np.random.default_rng(seed)
    place = np.empty(count)
    for name in sorted(set(sources)):
        own = np.flatnonzero(np.array(sources) == name)
        place[random.permutation(own)] = (np.arange(len(own)) + 0.5) / len(own)
    order = np.argsort(place, kind="stable").tolist()
    return sorted(order[held_out : held_out + fitted]), sorted(order[:held_out])


def _room(images: TrainingImages, extractor: FeatureExtractor) -> int:
    first = next(images.select([0]).batches(1))
    with torch.inference_mode():
        taps = extractor.backbone(torch.from_numpy(first.copy()))
    return _MEMORY // (first.nbytes + sum(tap.nbytes for tap in taps))


class _Held:
    """Images at network size in memory, ``(n, h, w, 3)`` uint8."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self.pixels = pixels

    @classmethod
    def of(cls, images: TrainingImages, indices: Sequence[int]) -> _Held:
        return cls(np.concatenate(list(images.select(indices).batches(8))))

    def __len__(self) -> int:
        return len(self.pixels)

    def select(self, indices: Sequence[int]) -> _Held:
        return _Held(self.pixels[list(indices)])

    def batches(self, size: int) -> Iterator[NDArray[np.uint8]]:
        for start in range(0, len(self.pixels), size):
            yield self.pixels[start : start + size]


@dataclass(frozen=True, slots=True)
class _Judged:
    """Held-out images ``(n, h, w, 3)``, painted copies ``(m, h, w, 3)``, and the image ``(m,)`` each is a copy of."""

    normals: NDArray[np.uint8]
    painted: NDArray[np.uint8]
    owners: NDArray[np.int64]

    @classmethod
    def of(cls, normals: NDArray[np.uint8], seed: int, progress: Progress) -> _Judged:
        """Paint every kind of defect on each image that can show it."""
        painted, owners = [], []
        for index, image in enumerate(normals):
            progress("painted defects", index, len(normals))
            for number, kind in enumerate(KINDS):
                try:
                    painted.append(plant(image, kind, seed + index * len(KINDS) + number, STRENGTH)[0])
                except DataError:
                    continue  # the image shows no part, or is too uniform for this kind
                owners.append(index)
        if len(set(owners)) < 2:
            raise DataError(
                "no defects can be painted on these images, which are too uniform to choose settings by; "
                "leave out --budget-mb and --budget-ms"
            )
        progress("painted defects", len(normals), len(normals))
        return cls(normals, np.stack(painted), np.array(owners))

    def rank(self, model: Exportable) -> Ranking:
        backend = model.torch_backend()
        scores = [np.asarray(backend.run(images).score, np.float64) for images in (self.normals, self.painted)]
        return Ranking.of(scores[0], scores[1], self.owners)


class _Remembered(Backbone):
    """A backbone that computes an image once; asked again it gives the taps that it kept."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone.body, backbone.mean.flatten().tolist(), backbone.channels)
        self._kept: dict[bytes, tuple[Tensor, ...]] = {}

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        keys = [hashlib.blake2b(image.contiguous().numpy(), digest_size=16).digest() for image in images]
        new = [row for row, key in enumerate(keys) if key not in self._kept]
        if new:
            for row, *taps in zip(new, *super().forward(images[new]), strict=True):
                self._kept[keys[row]] = tuple(taps)
        return tuple(torch.stack(taps) for taps in zip(*(self._kept[key] for key in keys), strict=True))


def _fit(
    detector: Any,
    images: _Held,
    sources: Sequence[str],
    extractor: FeatureExtractor,
    references: Sequence[tuple[str, bytes]],
    seed: int,
    progress: Progress,
) -> Exportable:
    """Fit a rung. Its bundle is measured and thrown away, so its threshold, which is made up, decides nothing."""
    made_up = calibrate([0.0, 1.0])
    module: ScoringModule | RoutedModule
    routing = None
    counts = {"all": len(images)}
    if pools_categories(detector.name):
        found = detector.fit(images, sources, extractor, seed=seed, progress=progress)
        module = found.module
        counts = {one.name: len(one.images) for one in found.categories}
        routing = Routing(
            router=module.router,
            heads=dict(zip(counts, module.heads, strict=True)),
            thresholds=dict.fromkeys(counts, made_up),
            minimum_similarity={one.name: one.minimum_similarity for one in found.categories},
        )
    else:
        module = fit_module(detector, images, extractor, seed=seed, progress=progress)
    return Exportable(
        name="rung",
        module=module,
        height=images.pixels.shape[1],
        width=images.pixels.shape[2],
        grid=module.extractor.grid,
        threshold=made_up,
        normal_scores=(0.0, 1.0),
        detector=detector.name,
        settings=detector.settings.model_dump(),
        categories=counts,
        references=references,
        provenance={},
        routing=routing,
    )


def _take_times(
    bundles: Sequence[Path], references: Sequence[tuple[str, bytes]], progress: Progress
) -> tuple[dict[str, Any], list[float]]:
    """Return what ran the bundles, and the median of each in ms; they take turns, so that noise meets all alike."""
    frames = [decode_image(data, name) for name, data in references]
    with ExitStack() as stack:
        inspectors = [stack.enter_context(Inspector.open(bundle)) for bundle in bundles]
        found = take_turns(
            inspectors, frames, frames=FRAMES, progress=lambda done, total: progress("frames", done, total)
        )
        return inspectors[0].describe().to_dict(), [latency.p50 for latency in found]
