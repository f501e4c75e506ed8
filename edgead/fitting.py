"""From folders of good photos to a trained model: `fit` is what ``edgead fit`` runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgead.budget import check_budget, choose
from edgead.data import Category, open_category
from edgead.data.training_images import GoodPhotos, calibration_images, make_references
from edgead.detectors import create_detector, default_size, learns, pools_categories
from edgead.detectors.base import Fit, fit_closed_form
from edgead.detectors.dfc import PooledFit
from edgead.detectors.learned import LearnedFit, LearnedModule, fit_learned
from edgead.detectors.routing import RoutedModule
from edgead.features.backbones import (
    DEFAULT_BACKBONE,
    DEFAULT_TAPS,
    NO_BACKBONE_INFO,
    BackboneInfo,
    BackboneSpec,
    build_backbone,
    describe_backbone,
)
from edgead.features.coreset import Progress, silent
from edgead.features.features import build_extractor
from edgead.features.scoring import ScoringModule
from edgead.model.model import TrainedModel
from edgead.model.model_card import CategoryCard, RoutingCard, TrainingCard, check_size, make_card
from edgead.runtime.bundle.layout import check_member_name, fold_name
from edgead.runtime.bundle.manifest_schema import ThresholdSection
from edgead.runtime.decision.threshold import DEFAULT_FALSE_ALARM_RATE, calibrate
from edgead.runtime.errors import ConfigError, DataError
from edgead.runtime.imaging.decode import read_image
from edgead.runtime.imaging.roi import Box, Region, decode_mask, make_region
from edgead.runtime.imaging.tiling import DEFAULT_OVERLAP, Tiles
from edgead.runtime.version import __version__
from edgead.training.training import run_key

_LONGEST_NAME = 150  # leaves room for what a member's name has before and after it


def fit(
    categories: Sequence[str | Path],
    *,
    detector: str = "patchcore",
    settings: Mapping[str, Any] | None = None,
    backbone: str = DEFAULT_BACKBONE,
    taps: Sequence[int] = DEFAULT_TAPS,
    size: int | tuple[int, int] | None = None,
    seed: int = 0,
    false_alarm_rate: float = DEFAULT_FALSE_ALARM_RATE,
    budget_mb: float | None = None,
    budget_ms: float | None = None,
    roi: Box | None = None,
    mask: Path | None = None,
    checkpoint: Path | None = None,
    tiles: tuple[int, int] | None = None,
    tile_overlap: int = DEFAULT_OVERLAP,
    progress: Progress = silent,
) -> TrainedModel:
    """Fit a detector on good images and set its threshold from them; no test image is read.

    Args:
        categories: one category folder (MVTec or LOCO layout), plain folder of good images, or CSV list; several, or
            one that holds parts of several kinds, for a detector that pools categories (``dfc``).
        detector, settings: registered name and its settings.
        backbone: ``NAME`` or ``NAME@WEIGHTS``, see `BackboneSpec.parse`.
        taps: where features are taken from the backbone, as strides (input pixels a cell), finest first.
        size: network size in pixels, a side or ``(height, width)``, multiples of 32; None: the detector's own.
        seed: decides every random choice.
        false_alarm_rate: share of good parts that may be rejected.
        budget_mb, budget_ms: one of them or both choose the settings that ``settings`` leaves open, see
            `edgead.budget.choose`.
        roi: the part of the images that is judged, in pixels; then all images, and the camera's, have one size.
        mask: image file of their size that is white where nothing is judged.
        checkpoint: file that the training of a learned detector keeps, and goes on from if it was interrupted; who
            has saved the model removes it. None: none.
        tiles: ``(rows, columns)`` into which that part is cut, each resized to ``size``, for small defects in large
            pictures; for detectors of one category. tile_overlap: cells of the map that neighbours share.
        progress: called with ``(stage, done, total)``; behind `` | `` a stage may say more.

    Raises:
        ConfigError, DataError: what is wrong and what to do, in one line.
    """
    method = create_detector(detector, settings)
    size = default_size(detector, settings) if size is None else size
    height, width = check_size(*((size, size) if isinstance(size, int) else size))
    pooled = pools_categories(detector)
    if not pooled and len(categories) != 1:
        raise ConfigError(
            f"detector '{detector}' takes one category, got {len(categories)}; "
            "fit one model for each, or one for all with --detector dfc"
        )
    if not categories:
        raise ConfigError("there is no category to fit; give its folder")
    if not 0.0 < false_alarm_rate < 1.0:
        raise ConfigError(f"the false-alarm rate must lie between 0 and 1, got {false_alarm_rate}")
    check_budget(budget_mb, budget_ms)
    drawn = roi is not None or mask is not None or tiles is not None
    if drawn and not (budget_mb is None and budget_ms is None):
        raise ConfigError("a budget cannot be combined with --roi, --mask or --tiles yet; choose settings with --set")
    trained = learns(detector)
    if trained and (budget_mb is not None or budget_ms is not None):
        raise ConfigError(f"a budget chooses between closed-form fits; set the profile of '{detector}' instead")
    if tiles is not None and (pooled or trained):
        raise ConfigError(f"detector '{detector}' judges whole pictures; leave --tiles away or choose another")
    opened = [open_category(path, train_only=True) for path in categories]
    _check_names(opened)
    spec = BackboneSpec.parse(backbone, taps)
    if trained:
        spec = method.backbone(spec)
    region = _region(opened[0], roi, mask)
    samples = [sample for category in opened for sample in category.train]
    fingerprint = {category.name: category.fingerprint("train") for category in opened}
    sources = [category.name for category in opened for _ in category.train]
    named = [
        make_references(category, seed, prefix=f"{category.name}-" if pooled else "", region=region, seen=not trained)
        for category in opened
    ]
    references = tuple(one for group in named for one in group)
    budget = cut = None
    if trained:
        images = GoodPhotos(samples, height, width, region)
        info = describe_backbone(spec, build_backbone(spec, (height, width))) if spec.strides else NO_BACKBONE_INFO
        key = _run_key(method, info, (height, width), seed, fingerprint)
        learned = fit_learned(
            method, images, spec, (height, width), seed=seed, progress=progress, checkpoint=checkpoint, key=key
        )
        outcome = _of_learned(learned, opened[0].name, len(images))
    else:
        network = build_backbone(spec, (height, width))
        info = describe_backbone(spec, network)
        extractor = build_extractor(network, (height, width))
        cut = None if tiles is None else Tiles(*tiles, tile_overlap, extractor.grid)
        images = GoodPhotos(samples, height, width, region, cut)
        if budget_mb is not None or budget_ms is not None:
            budget = choose(
                method,
                settings or (),
                images,
                sources,
                extractor,
                references,
                budget_mb=budget_mb,
                budget_ms=budget_ms,
                seed=seed,
                progress=progress,
            )
            method = create_detector(detector, budget.settings)
        if pooled:
            found = method.fit(images, sources, extractor, seed=seed, progress=progress)
            outcome = _of_pool(found, method.settings.head, false_alarm_rate)
        else:
            together = 1 if cut is None else cut.count
            fitted = fit_closed_form(method, images, extractor, seed=seed, progress=progress, tiles=together)
            outcome = _of_closed_form(fitted, opened[0].name)
    card = make_card(
        detector=method.name,
        settings=method.settings.stated() if trained else method.settings,
        backbone=spec,
        backbone_info=info,
        size=(height, width),
        grid=outcome.grid,
        seed=seed,
        threshold=calibrate(outcome.scores, false_alarm_rate),
        normal_scores=outcome.scores.tolist(),
        categories=outcome.counts,
        normals={name: images.normals(*outcome.judged(rows)) for name, rows in outcome.scored.items()},
        fingerprint=fingerprint,
        routing=outcome.routing,
        budget=None if budget is None else budget.card,
        region=region,
        training=outcome.training,
        tiles=cut,
    )
    prefixes = [f"{category.name}-" if pooled else "" for category in opened]
    calibration = [
        one
        for category, prefix in zip(opened, prefixes, strict=True)
        for one in calibration_images(
            category, (height, width), seed, prefix=prefix, region=region, tiles=cut, seen=not trained
        )
    ]
    model = TrainedModel(card, outcome.module, references, tuple(calibration), region)
    if budget is not None:
        budget.require_within(model.exportable("model"))
    return model


def _run_key(method: Any, info: BackboneInfo, size: tuple[int, int], seed: int, fingerprint: Mapping[str, str]) -> str:
    """Return what a checkpoint must carry to be of this very training."""
    return run_key(
        {
            "detector": method.name,
            "settings": method.settings.model_dump(),
            "backbone": asdict(info),
            "size": size,
            "seed": seed,
            "train": dict(fingerprint),
            "versions": [__version__, torch.__version__, np.__version__],
        }
    )


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What a fit gave, whatever the detector.

    Attributes:
        grid: of the module's map.
        scores, levels: ``(n,)`` of good images that the model, or one without them, had not seen.
        images: ``(n,)`` indices of those images.
        counts: category -> number of its training images.
        scored: category -> which of the n are its own.
    """

    module: ScoringModule | RoutedModule | LearnedModule
    grid: tuple[int, int]
    scores: NDArray[np.float64]
    levels: NDArray[np.float64]
    images: Sequence[int]
    counts: Mapping[str, int]
    scored: Mapping[str, Sequence[int]]
    routing: RoutingCard | None = None
    training: TrainingCard | None = None

    def judged(self, rows: Sequence[int]) -> tuple[list[int], NDArray[np.float64], NDArray[np.float64]]:
        """Return the image indices, scores and levels of some of the n."""
        chosen = list(rows)
        return [self.images[row] for row in chosen], self.scores[chosen], self.levels[chosen]


def _of_closed_form(fitted: Fit, name: str) -> _Outcome:
    images = range(len(fitted.normal_scores))
    return _Outcome(
        module=fitted.module,
        grid=fitted.module.extractor.grid,
        scores=fitted.normal_scores,
        levels=fitted.normal_levels,
        images=images,
        counts={name: len(images)},
        scored={name: images},
    )


def _of_pool(found: PooledFit, head: str, false_alarm_rate: float) -> _Outcome:
    return _Outcome(
        module=found.module,
        grid=found.module.extractor.grid,
        scores=found.normal_scores,
        levels=found.normal_levels,
        images=range(len(found.normal_scores)),
        counts={category.name: len(category.images) for category in found.categories},
        scored={category.name: category.images for category in found.categories},
        routing=_routing_card(found, head, false_alarm_rate),
    )


def _of_learned(learned: LearnedFit, name: str, images: int) -> _Outcome:
    return _Outcome(
        module=learned.module,
        grid=learned.module.grid,
        scores=learned.normal_scores,
        levels=learned.normal_levels,
        images=learned.held_out,
        counts={name: images},
        scored={name: range(len(learned.held_out))},
        training=TrainingCard(held_out=learned.held_out, log=learned.log),
    )


def _routing_card(found: PooledFit, head: str, false_alarm_rate: float) -> RoutingCard:
    cards = {}
    for category in found.categories:
        threshold = calibrate(found.normal_scores[list(category.images)], false_alarm_rate)
        cards[category.name] = CategoryCard(
            threshold=ThresholdSection.from_threshold(threshold),
            minimum_similarity=category.minimum_similarity,
            sources=dict(category.sources),
        )
    return RoutingCard(head=head, categories=cards, silhouettes=dict(found.silhouettes), purity=found.purity)


def _check_names(categories: Sequence[Category]) -> None:
    """Refuse before any work what a bundle could not hold: its members are named after the categories."""
    seen: dict[str, str] = {}
    for category in categories:
        name, folded = category.name, fold_name(category.name)
        try:
            check_member_name(name)
        except ValueError as error:
            raise ConfigError(f"a category cannot be called '{name}' ({error}); rename the folder") from error
        if len(name.encode()) > _LONGEST_NAME:
            raise ConfigError(f"a category's name has at most {_LONGEST_NAME} bytes, '{name}' has more; rename it")
        if folded in seen:
            alike = f"two categories are called '{name}'"
            if seen[folded] != name:
                alike = f"categories '{seen[folded]}' and '{name}' are one name on some systems"
            raise ConfigError(f"{alike}; rename a folder")
        seen[folded] = name


def _region(category: Category, roi: Box | None, mask: Path | None) -> Region | None:
    if roi is None and mask is None:
        return None
    rows, columns = read_image(category.train[0].path).shape[:2]
    size = columns, rows
    try:
        drawn = None if mask is None else decode_mask(mask.read_bytes(), str(mask), size)
    except OSError as error:
        raise DataError(f"cannot read the mask {mask}: {error.strerror or error}") from error
    return make_region(size, roi, drawn)
