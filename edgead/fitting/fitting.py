"""From folders of normal images to a trained model: `fit` is what ``edgead fit`` runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgead.budget import Budget, BudgetLimits, Material, choose
from edgead.data import Category, Sample, open_category
from edgead.data.survey import Survey
from edgead.data.training_images import KeptImages, TrainingImages
from edgead.detectors import create_detector, learns, pools_categories
from edgead.detectors.base import Fit, Passes, fit_closed_form
from edgead.detectors.ensemble import Ensemble
from edgead.detectors.learned import fit_learned
from edgead.evaluation.operating_point import with_operating_point
from edgead.features.backbones import (
    NO_BACKBONE_INFO,
    BackboneInfo,
    BackboneSpec,
    build_backbone,
    check_patches,
    describe_backbone,
)
from edgead.features.features import build_extractor
from edgead.fitting.audit import (
    AS_ASKED,
    exclude_images,
    image_names,
    images_to_omit,
    make_audit,
    warn_of_images,
    warn_of_omitted,
)
from edgead.fitting.config import FitConfig, FitOptions
from edgead.fitting.defect_images import usable_defects
from edgead.fitting.identity import training_key
from edgead.fitting.known_defects import DefectMaterial, HeldOutNormals, Taught, teach
from edgead.fitting.outcome import Outcome, of_closed_form, of_ensemble, of_learned, of_pool
from edgead.fitting.preparing import check_names
from edgead.fitting.view import make_view
from edgead.fitting.wide_files import warn_of_unused_bits
from edgead.model.card_sections import AuditCard
from edgead.model.model import TrainedModel
from edgead.model.model_card import Geometry, GoodParts, Method, make_card
from edgead.runtime.decision.threshold import calibrate
from edgead.runtime.imaging.decode import ALL_BITS
from edgead.runtime.imaging.tiling import Tiles
from edgead.runtime.imaging.view import View
from edgead.runtime.progress import Progress, silent
from edgead.training.checkpoints import Checkpoint

if TYPE_CHECKING:
    from typing_extensions import Unpack


def fit(
    categories: str | Path | Sequence[str | Path],
    config: FitConfig | None = None,
    *,
    checkpoint: Path | None = None,
    progress: Progress = silent,
    **options: Unpack[FitOptions],
) -> TrainedModel:
    """Fit a detector on normal images and set its threshold from them; no test image is read.

    Args:
        categories: one category folder (MVTec or LOCO layout), plain folder of normal images, or CSV list; several, or
            one that holds parts of several kinds, for a detector that pools categories (``dfc``). ``~`` is the home
            folder.
        config: how; None: the defaults of `FitConfig`.
        checkpoint: file that the training of a learned detector keeps, and continues from if it was interrupted; who
            has saved the model removes it. None: none.
        progress: called with ``(stage, done, total)``; behind `` | `` a stage may say more.
        options: fields of `FitConfig`, which count more than ``config``.

    Raises:
        ConfigError, DataError: what is wrong and what to do, in one line.

    Example:
        >>> model = fit("data/screw", detector="padim", size=448)
    """
    config = replace(config or FitConfig(), **options)
    paths = [categories] if isinstance(categories, str | Path) else list(categories)
    method = create_detector(config.detector, config.settings)
    config.network_size()  # refuses what no backbone takes, before any work
    config.check(len(paths))
    bits = ALL_BITS if config.bits is None else config.bits
    opened = [open_category(Path(path).expanduser(), train_only=True).with_bits(bits) for path in paths]
    check_names(opened)
    given, opened = opened, exclude_images(opened, config.exclude)
    if config.bits is None:
        warn_of_unused_bits([sample.path for category in opened for sample in category.train])
    warn_of_omitted(opened)
    view, lost = make_view(opened[0], config)
    excluded = dict.fromkeys(config.exclude, AS_ASKED) | lost
    opened = exclude_images(opened, list(lost))
    defects = usable_defects(opened[0], config.defects, view) if len(opened) == 1 else []
    taught_from = defects if config.learn_defects else []
    while True:
        work = _Work(config, method, given, opened, view, progress)
        omitted = work.look()
        if omitted:
            excluded |= omitted
            opened = exclude_images(opened, list(omitted))
            continue
        fitted = work.fit(checkpoint, taught_from)
        card = work.audit(fitted, excluded)
        if config.keep_stray or not card.stray:
            break
        excluded |= card.stray
        opened = exclude_images(opened, list(card.stray))
    taught = None
    if fitted.watched is not None:
        taught = work.teach(fitted, taught_from)
        fitted = replace(fitted, outcome=of_closed_form(taught.fit, opened[0].name, len(work.names)))
        card = work.audit(fitted, excluded)
    model = work.assemble(fitted, card)
    if fitted.budget is not None:
        fitted.budget.require_within(model.exportable("model"))
    warn_of_images(card, len(work.names), model.threshold.value)
    if len(opened) > 1:
        return model
    normal = work.usual_scores(fitted.outcome, card)
    model = with_operating_point(model, normal, defects, config.costs, None if taught is None else taught.defect_scores)
    return model if taught is None else model.with_learned_defects(taught.card)


class _Work:
    """One fit: what its steps share.

    Args:
        method: detector with its settings; view: what of an image is judged, but for tiles.
        given: the categories; opened: what of them is fitted on.
    """

    def __init__(
        self,
        config: FitConfig,
        method: Any,
        given: Sequence[Category],
        opened: Sequence[Category],
        view: View,
        progress: Progress,
    ) -> None:
        self._config, self._method, self._opened = config, method, opened
        self._view, self._progress = view, progress
        self._size = view.height, view.width
        self._trained, self._pooled = learns(config.detector), pools_categories(config.detector)
        self._spec = BackboneSpec.parse(config.backbone, config.taps)
        if self._trained:
            self._spec = method.backbone(self._spec)
        else:
            check_patches(self._spec, self._size)  # before any image is read
        self._samples = [sample for category in opened for sample in category.train]
        self.names = image_names(opened)
        self._images = TrainingImages(self._samples, self._view)
        self._surveys: list[Survey] = []
        self._all = image_names(given)
        self._fingerprint = {category.name: category.fingerprint("train") for category in given}
        self._kept = [
            KeptImages(
                category,
                config.seed,
                view,
                prefix=f"{category.name}-" if self._pooled else "",
                seen=not self._trained,
            )
            for category in opened
        ]
        self._references = tuple(one for kept in self._kept for one in kept.references())
        self._members: list[_Work] = []
        if isinstance(method, Ensemble):
            for one in method.members:
                alone = replace(config, detector=one.name, settings=one.settings.model_dump())
                self._members.append(_Work(alone, one, given, opened, view, progress))

    def look(self) -> dict[str, str]:
        """Return the images that nothing is learned from, and why, before anything is fitted.

        Where the closed-form detectors hold copies out together, the others would train on one and judge another.
        """
        self._surveys = self._images.survey([len(category.train) for category in self._opened], self._progress)
        return images_to_omit(
            self.names,
            self._surveys,
            stray=not self._config.keep_stray,
            copies=self._trained or self._pooled,
        )

    def fit(self, checkpoint: Path | None, defects: Sequence[Sample]) -> _Fitted:
        """Fit the detector, of whatever kind it is."""
        if isinstance(self._method, Ensemble):
            return self.fit_ensemble(checkpoint)
        return self.train(checkpoint) if self._trained else self.fit_closed_form(defects)

    def fit_ensemble(self, checkpoint: Path | None) -> _Fitted:
        """Fit each member as it would be alone, but for defects, which teach none of them."""
        members = []
        for work in self._members:
            # Read once, and what was seen of them is remembered once.
            work._surveys, work._images = self._surveys, self._images
            members.append(work.fit(checkpoint, ()))
        name, count = self._opened[0].name, len(self._samples)
        # The card names the backbone of the closed-form members, where there are any.
        named = next((one for one in members if one.outcome.training is None), members[0])
        return _Fitted(of_ensemble([one.outcome for one in members], name, count), self._images, named.backbone)

    def train(self, checkpoint: Path | None) -> _Fitted:
        """Train a learned detector."""
        images = self._images
        spec, info = self._spec, NO_BACKBONE_INFO
        if spec.strides:
            info = describe_backbone(spec, build_backbone(spec, self._size))
        used = self._fingerprint | {"images": self.names}
        key = training_key(self._method, info, self._size, self._config, used)
        learned = fit_learned(
            self._method,
            images,
            spec,
            self._size,
            seed=self._config.seed,
            progress=self._progress,
            checkpoint=None if checkpoint is None else Checkpoint(checkpoint, key),
        )
        return _Fitted(of_learned(learned, self._opened[0].name, len(images)), images, info)

    def fit_closed_form(self, defects: Sequence[Sample]) -> _Fitted:
        """Fit what needs no training, with settings chosen by measurement where there is a budget.

        Where there are defects to learn from, the fit is watched for `teach`.
        """
        config, network = self._config, build_backbone(self._spec, self._size)
        info = describe_backbone(self._spec, network)
        extractor = build_extractor(network, self._size)
        cut = None if config.tiles is None else Tiles(*config.tiles, config.tile_overlap, extractor.grid)
        images = self._images
        if cut is not None:
            images = TrainingImages(self._samples, replace(self._view, tiles=cut))
        sources = [category.name for category in self._opened for _ in category.train]
        budget = None
        if config.budgeted:
            budget = choose(
                self._method,
                config.settings or (),
                Material(images, sources, extractor, self._references),
                BudgetLimits(config.budget_mb, config.budget_ms),
                seed=config.seed,
                progress=self._progress,
            )
            self._method = create_detector(config.detector, budget.settings)
        seed, progress = config.seed, self._progress
        if self._pooled:
            found = self._method.fit(images, sources, extractor, seed=seed, progress=progress)
            outcome = of_pool(found, self._method.settings.head, config.false_alarm_rate)
        else:
            together = 1 if cut is None else cut.count
            held = HeldOutNormals(len(images), seed) if defects else None
            closed = fit_closed_form(
                self._method,
                images,
                extractor,
                seed=seed,
                progress=progress,
                tiles=together,
                groups=self._surveys[0].groups,
                watch=held,
            )
            outcome = of_closed_form(closed, self._opened[0].name, len(self._samples))
            if held is not None:
                return _Fitted(outcome, images, info, cut, budget, (closed, held))
        return _Fitted(outcome, images, info, cut, budget)

    def teach(self, fitted: _Fitted, defects: Sequence[Sample]) -> Taught:
        """Let defects teach what was fitted."""
        assert fitted.watched is not None
        closed, held = fitted.watched
        shown = TrainingImages(defects, replace(self._view, tiles=fitted.tiles))
        extractor = closed.module.extractor
        normals, defective = (Passes(one, extractor, 8, self._progress) for one in (fitted.images, shown))
        material = DefectMaterial(
            normals,
            defective,
            held,
            self._surveys[0].groups,
            [one.label or "defect" for one in defects],
            1 if fitted.tiles is None else fitted.tiles.count,
            self._config.seed,
        )
        return teach(closed, material)

    def audit(self, fitted: _Fitted, excluded: Mapping[str, str]) -> AuditCard:
        """Return what is known of the training images once a model was fitted."""
        scored = dict(zip(fitted.outcome.images, fitted.outcome.scores.tolist(), strict=True))
        return make_audit(self.names, self._surveys, scored, excluded)

    def assemble(self, fitted: _Fitted, audit: AuditCard) -> TrainedModel:
        """Return the model with its card, references and calibration images."""
        outcome, config = fitted.outcome, self._config
        # What others know is the folder as it is, with what was left out of the fit.
        place = {name: index for index, name in enumerate(self._all)}
        images = [place[self.names[index]] for index in outcome.images]
        training = None if outcome.training is None else outcome.training.model_copy(update={"held_out": tuple(images)})
        method = Method(
            self._method.name,
            self._method.settings.stated() if self._trained else self._method.settings,
            config.seed,
            None if fitted.budget is None else fitted.budget.card,
            training,
        )
        good = GoodParts(
            categories=outcome.counts,
            fingerprint=self._fingerprint,
            scores=outcome.scores.tolist(),
            threshold=calibrate(self.usual_scores(outcome, audit), config.false_alarm_rate),
            normals=outcome.normals(fitted.images),
            audit=audit,
            known=fitted.images.known(),
            # The card of a training lists the images itself.
            scored=None if self._trained or len(images) == len(self._all) else images,
        )
        geometry = Geometry(replace(self._view, tiles=fitted.tiles), outcome.grid, self._samples[0].bits)
        card = make_card(method, self._spec, fitted.backbone, geometry, good, outcome.routing)
        calibration = tuple(one for kept in self._kept for one in kept.calibration(geometry.view))
        view = self._view
        return TrainedModel(card, outcome.module, self._references, calibration, view.region, view.align)

    def usual_scores(self, outcome: Outcome, audit: AuditCard) -> NDArray[np.float64]:
        """Return the scores of the images that are no stray ones, which must not move the threshold."""
        usual = np.array([self.names[image] not in audit.stray for image in outcome.images])
        return outcome.scores[usual] if usual.sum() > 1 else outcome.scores


@dataclass(frozen=True, slots=True)
class _Fitted:
    """What a step of `_Work` hands to the last one."""

    outcome: Outcome
    images: TrainingImages
    backbone: BackboneInfo
    tiles: Tiles | None = None
    budget: Budget | None = None
    watched: tuple[Fit, HeldOutNormals] | None = None
