"""What a fit gave, in one form whatever the detector: closed-form, pooled or trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgead.data.training_images import TrainingImages
from edgead.detectors.base import Fit
from edgead.detectors.dfc import PooledFit
from edgead.detectors.ensemble import EnsembleModule, units
from edgead.detectors.learned import LearnedFit, LearnedModule
from edgead.detectors.routing import RoutedModule
from edgead.features.scoring import ScoringModule
from edgead.model.card_sections import CategoryCard, RoutingCard, TrainingCard
from edgead.runtime.bundle.manifest_schema import NormalsSection, ThresholdSection
from edgead.runtime.decision.threshold import calibrate
from edgead.runtime.errors import DataError


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a fit gave, whatever the detector.

    Attributes:
        grid: of the module's map.
        scores, levels: ``(n,)`` of good images that the model, or one without them, had not seen.
        images: ``(n,)`` indices of those images.
        counts: category -> number of its training images.
        scored: category -> which of the n are its own.
    """

    module: ScoringModule | RoutedModule | LearnedModule | EnsembleModule
    grid: tuple[int, int]
    scores: NDArray[np.float64]
    levels: NDArray[np.float64]
    images: Sequence[int]
    counts: Mapping[str, int]
    scored: Mapping[str, Sequence[int]]
    routing: RoutingCard | None = None
    training: TrainingCard | None = None

    def normals(self, images: TrainingImages) -> dict[str, NormalsSection]:
        """Return what the good images of each category look like: scores of those judged, light and focus of all."""
        found = {}
        for name, rows in self.scored.items():
            chosen = list(rows)
            own = None if len(self.scored) == 1 else [self.images[row] for row in chosen]
            found[name] = images.normals(own, self.scores[chosen], self.levels[chosen])
        return found


def of_closed_form(fitted: Fit, name: str, images: int) -> Outcome:
    """Return the outcome of one category, called ``name``, of so many images."""
    return Outcome(
        module=fitted.module,
        grid=fitted.module.extractor.grid,
        scores=fitted.normal_scores,
        levels=fitted.normal_levels,
        images=fitted.scored.tolist(),
        counts={name: images},
        scored={name: range(len(fitted.scored))},
    )


def of_pool(found: PooledFit, head: str, false_alarm_rate: float) -> Outcome:
    return Outcome(
        module=found.module,
        grid=found.module.extractor.grid,
        scores=found.normal_scores,
        levels=found.normal_levels,
        images=range(len(found.normal_scores)),
        counts={category.name: len(category.images) for category in found.categories},
        scored={category.name: category.images for category in found.categories},
        routing=_routing_card(found, head, false_alarm_rate),
    )


def of_learned(learned: LearnedFit, name: str, images: int) -> Outcome:
    return Outcome(
        module=learned.module,
        grid=learned.module.grid,
        scores=learned.normal_scores,
        levels=learned.normal_levels,
        images=learned.held_out,
        counts={name: images},
        scored={name: range(len(learned.held_out))},
        training=TrainingCard(held_out=learned.held_out, log=learned.log),
    )


def of_ensemble(members: Sequence[Outcome], name: str, images: int) -> Outcome:
    """Return what several fits of one category gave together, see `edgead.detectors.ensemble`.

    Raises:
        DataError: fewer than two good images that all members scored without having seen them.
    """
    common = sorted(set.intersection(*(set(one.images) for one in members)))
    if len(common) < 2:
        raise DataError("an ensemble needs at least 2 good images that no member was fitted on; give more images")
    rows = [[list(one.images).index(image) for image in common] for one in members]
    scores = [one.scores[own] for one, own in zip(members, rows, strict=True)]
    levels = [one.levels[own] for one, own in zip(members, rows, strict=True)]
    middle, spread = units(scores)
    module = EnsembleModule([one.module for one in members], [one.grid for one in members], middle, spread)
    training = next((one.training for one in members if one.training is not None), None)
    in_units = list(zip(middle, spread, strict=True))
    return Outcome(
        module=module,
        grid=module.grid,
        scores=np.sum([(one - m) / s for one, (m, s) in zip(scores, in_units, strict=True)], axis=0),
        # The mean of a sum of maps is the sum of their means.
        levels=np.sum([(one - m) / s for one, (m, s) in zip(levels, in_units, strict=True)], axis=0),
        images=common,
        counts={name: images},
        scored={name: range(len(common))},
        training=None if training is None else training.model_copy(update={"held_out": tuple(common)}),
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
