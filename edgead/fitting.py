"""From folders of good photos to a trained model: `fit` is what ``edgead fit`` runs."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from edgead.backbones import (
    DEFAULT_BACKBONE,
    DEFAULT_TAPS,
    NO_BACKBONE_INFO,
    BackboneInfo,
    BackboneSpec,
    build_backbone,
    describe_backbone,
)
from edgead.budget import check_budget, choose
from edgead.coreset import Progress, silent
from edgead.data import Category, Sample, load_images, open_category
from edgead.detectors import create_detector, default_size, learns, pools_categories
from edgead.detectors.base import fit_closed_form
from edgead.detectors.dfc import PooledFit
from edgead.detectors.learned import LearnedModule, fit_learned
from edgead.detectors.routing import RoutedModule
from edgead.features import build_extractor
from edgead.model import CategoryCard, RoutingCard, TrainedModel, TrainingCard, check_size, make_card
from edgead.probes import STRUCTURAL, plant
from edgead.runtime.decode import read_image
from edgead.runtime.errors import ConfigError
from edgead.runtime.manifest import ThresholdSection, check_member_name, fold_name
from edgead.runtime.preprocess import resize
from edgead.runtime.threshold import DEFAULT_FALSE_ALARM_RATE, calibrate
from edgead.runtime.version import __version__
from edgead.scoring import ScoringModule
from edgead.training import run_key

REFERENCE_IMAGES = 4
_LONGEST_NAME = 150  # leaves room for what a member's name has before and after it
CALIBRATION_IMAGES = 16


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
    checkpoint: Path | None = None,
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
        checkpoint: file that the training of a learned detector keeps, and goes on from if it was interrupted; who
            has saved the model removes it. None: none.
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
    trained = learns(detector)
    if trained and (budget_mb is not None or budget_ms is not None):
        raise ConfigError(f"a budget chooses between closed-form fits; set the profile of '{detector}' instead")
    opened = [open_category(path, train_only=True) for path in categories]
    _check_names(opened)
    spec = BackboneSpec.parse(backbone, taps)
    if trained:
        spec = method.backbone(spec)
    images = _Normals([sample for category in opened for sample in category.train], height, width)
    fingerprint = {category.name: category.fingerprint("train") for category in opened}
    counts = {category.name: len(category.train) for category in opened}
    sources = [category.name for category in opened for _ in category.train]
    named = [make_references(category, seed, prefix=f"{category.name}-" if pooled else "") for category in opened]
    references = tuple(one for group in named for one in group)
    routing = training = budget = None
    module: ScoringModule | RoutedModule | LearnedModule
    if trained:
        info = describe_backbone(spec, build_backbone(spec, (height, width))) if spec.strides else NO_BACKBONE_INFO
        learned = fit_learned(
            method,
            images,
            spec,
            (height, width),
            seed=seed,
            progress=progress,
            checkpoint=checkpoint,
            key=_run_key(method, info, (height, width), seed, fingerprint),
        )
        module, scores, grid = learned.module, learned.normal_scores, learned.module.grid
        training = TrainingCard(held_out=learned.held_out, log=learned.log)
    else:
        network = build_backbone(spec, (height, width))
        info = describe_backbone(spec, network)
        extractor = build_extractor(network, (height, width))
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
            module, scores, grid = found.module, found.normal_scores, found.module.extractor.grid
            routing = _routing_card(found, method.settings.head, false_alarm_rate)
            counts = {category.name: len(category.images) for category in found.categories}
        else:
            fitted = fit_closed_form(method, images, extractor, seed=seed, progress=progress)
            module, scores, grid = fitted.module, fitted.normal_scores, fitted.module.extractor.grid
    card = make_card(
        detector=method.name,
        settings=method.settings.stated() if trained else method.settings,
        backbone=spec,
        backbone_info=info,
        size=(height, width),
        grid=grid,
        seed=seed,
        threshold=calibrate(scores, false_alarm_rate),
        normal_scores=scores.tolist(),
        categories=counts,
        fingerprint=fingerprint,
        routing=routing,
        budget=None if budget is None else budget.card,
        training=training,
    )
    prefixes = [f"{category.name}-" if pooled else "" for category in opened]
    calibration = [
        one
        for category, prefix in zip(opened, prefixes, strict=True)
        for one in calibration_images(category, (height, width), seed, prefix=prefix)
    ]
    model = TrainedModel(card, module, references, tuple(calibration))
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


class _Normals:
    """The good images of a category at network size, read anew in each pass."""

    def __init__(self, samples: Sequence[Sample], height: int, width: int) -> None:
        self._samples = samples
        self._height = height
        self._width = width

    def __len__(self) -> int:
        return len(self._samples)

    def select(self, indices: Sequence[int]) -> _Normals:
        return _Normals([self._samples[index] for index in indices], self._height, self._width)

    def batches(self, size: int) -> Iterator[NDArray[np.uint8]]:
        held: list[NDArray[np.uint8]] = []
        with closing(load_images(self._samples, self._height, self._width)) as images:
            for image in images:
                held.append(image)
                if len(held) == size:
                    yield np.stack(held)
                    held = []
        if held:
            yield np.stack(held)


def make_references(
    category: Category, seed: int, count: int = REFERENCE_IMAGES, prefix: str = ""
) -> tuple[tuple[str, bytes], ...]:
    """Return PNGs of ``count`` good images at native size, and of the same images with planted defects."""
    chosen = np.random.default_rng(seed).permutation(len(category.train))[:count]
    references = []
    for number, index in enumerate(sorted(chosen)):
        image = read_image(category.train[index].path)
        kind = STRUCTURAL[number % len(STRUCTURAL)]
        references.append((f"good-{prefix}{number}.png", _png(image)))
        references.append((f"probe-{prefix}{number}-{kind}.png", _png(plant(image, kind, seed + number)[0])))
    return tuple(references)


def calibration_images(
    category: Category, size: tuple[int, int], seed: int, count: int = CALIBRATION_IMAGES, prefix: str = ""
) -> tuple[tuple[str, bytes], ...]:
    """Return PNGs of ``count`` good images at network size, and of every second of them with a planted defect.

    They are others than the references' where there are enough.
    """
    order = np.random.default_rng(seed).permutation(len(category.train))
    chosen = np.roll(order, -REFERENCE_IMAGES)[:count]
    kept = []
    for number, index in enumerate(sorted(chosen)):
        image = read_image(category.train[index].path)
        kept.append((f"good-{prefix}{number:02}.png", _png(resize(image, *size))))
        if number % 2:
            kind = STRUCTURAL[number // 2 % len(STRUCTURAL)]
            probe = plant(image, kind, seed + number)[0]
            kept.append((f"probe-{prefix}{number:02}-{kind}.png", _png(resize(probe, *size))))
    return tuple(kept)


def _png(image: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()
