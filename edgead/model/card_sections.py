"""The parts of a model's card: what was found and chosen when it was fitted."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from edgead.runtime.bundle.manifest_schema import ThresholdSection
from edgead.training.training_log import TrainingLog


class CardSection(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class CategoryCard(CardSection):
    """One category of a routed model.

    Attributes:
        threshold: in standard deviations over the category's held-out normals, as the head's scores are.
        minimum_similarity: below it an image is not taken for a part of the category.
        sources: folder name -> number of its images that the category got.
    """

    threshold: ThresholdSection
    minimum_similarity: float
    sources: dict[str, int]


class RoutingCard(CardSection):
    """How a routed model was made.

    Attributes:
        head: detector of the heads.
        categories: by name, in the order of the router's columns.
        silhouettes: number of categories -> mean silhouette, where the number was looked for.
        purity: share of the images that lie in a category together with most of their folder's.
    """

    head: str
    categories: dict[str, CategoryCard]
    silhouettes: dict[int, float]
    purity: float


class RungCard(CardSection):
    """One point of a budget's curve.

    Attributes:
        settings: those that vary along the curve.
        auroc: of painted defects against good images, which the model of this point never saw.
        bytes: of the bundle on disk, an upper bound.
        ms: median from camera to decision.
        fits: whether it keeps within the budget.
    """

    settings: dict[str, Any]
    auroc: float
    standard_error: float
    bytes: int
    ms: float
    fits: bool


class BudgetCard(CardSection):
    """How settings were chosen by measurement, see `edgead.budget.choose`.

    Attributes:
        budget_mb: 10^6 bytes of the bundle on disk; budget_ms: median from camera to decision. None: no limit.
        fitted, held_out, probes: good images that each point was fitted on, good images and painted ones it judged.
        strength: of the painted defects.
        frame_size: ``(width, height)`` of the frames that were timed; frames: how many a point.
        backend: what ran them; machine: where.
        curve: cheap to expensive.
        chosen: index of the curve.
    """

    budget_mb: float | None
    budget_ms: float | None
    fitted: int
    held_out: int
    probes: int
    strength: float
    frame_size: tuple[int, int]
    frames: int
    backend: dict[str, Any]
    machine: dict[str, Any]
    curve: tuple[RungCard, ...]
    chosen: int


class TrainingCard(CardSection):
    """How a network was trained.

    Attributes:
        held_out: indices of the training images that it did not see, ascending; ``normal_scores`` are theirs.
        log: losses, and the judgements by which the state to keep was selected.
    """

    held_out: tuple[int, ...]
    log: TrainingLog


class AuditCard(CardSection):
    """What a fit found in its training images; names are relative to their category's folder.

    Attributes:
        parts: images that are no copy of another.
        copies: groups of images that are copies of each other.
        stray: image that should not be learned from -> why: it shows nothing, or its score is far beyond the others'.
        odd: image that looks unlike the others -> why.
        unusual: the images with the highest scores, by models that did not see them; from the highest down in a fit, by
            name in a loaded model.
        excluded: image that was left out of the fit -> why.
    """

    parts: int
    copies: tuple[tuple[str, ...], ...]
    stray: dict[str, str]
    odd: dict[str, str]
    unusual: dict[str, float]
    excluded: dict[str, str]


class PointCard(CardSection):
    """One threshold and what it does.

    Attributes:
        target_false_alarm_rate: that it aims at.
        false_alarms: of so many held-out normals, those above it. escapes: defects that would pass.
        escape_low, escape_high: 95 % interval of the share of defects like these that would pass.
        own: whether it is the model's threshold.
    """

    threshold: float
    target_false_alarm_rate: float
    false_alarms: int
    normals: int
    escapes: int
    escape_low: float
    escape_high: float
    own: bool


class CostCard(CardSection):
    """The threshold of least cost.

    Attributes:
        defect_rate: share of defective parts among all.
        escape_rate, false_alarm_rate: judged by thresholds that were chosen without the image; cost_per_1000: of parts,
            at these rates.
    """

    value: float
    cost_escape: float
    cost_false_alarm: float
    defect_rate: float
    escape_rate: float
    false_alarm_rate: float
    cost_per_1000: float


class LearnedDefectsCard(CardSection):
    """What defects at hand taught the model; every figure is of images that were left out, cross-validated.

    Attributes:
        images: defective ones.
        strength: the map is raised by up to this share where patches look like the defects; 0: nothing was learned.
        auroc: image AUROC at each strength that was tried, by its text.
        normal_share: share of normals that score as high as a defect, geometric mean over the defects, likewise.
        left_out: kind -> image AUROC on it without the term, and with one that has not seen the kind.
        reason: why nothing was learned; None where something was.
    """

    images: int
    strength: float
    auroc: dict[str, float]
    normal_share: dict[str, float]
    left_out: dict[str, tuple[float, float]]
    reason: str | None


class DefectsCard(CardSection):
    """What the model makes of the defects at hand, judged by models that were not fitted on them.

    Attributes:
        kinds: kind -> (images, those that would pass).
        points: thresholds from high to low.
        costs: where the threshold was chosen by costs.
        learned: what the model learned from them; None where nothing was tried.
    """

    images: int
    kinds: dict[str, tuple[int, int]]
    points: tuple[PointCard, ...]
    costs: CostCard | None = None
    learned: LearnedDefectsCard | None = None
