"""Measures an inspector on the test images of a category, through the code that the camera loop runs."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from edgead.data import Category, Sample, load_mask, prefetch, unclear_masks
from edgead.data.category import relative_name
from edgead.evaluation.costs import Costs
from edgead.evaluation.decisions import Decisions, Defect, ImageScore, by_defect, count_decisions
from edgead.evaluation.shift import Shift, find_shifts
from edgead.metrics.metrics import BOOTSTRAP, Metric, f1_max, false_alarm_rate_at_zero_escapes, image_auroc
from edgead.metrics.pixels import aupro, count_pixels, pixel_auroc
from edgead.metrics.shares import Allowed, allowed_escapes
from edgead.runtime.backends import BackendInfo
from edgead.runtime.decision.baseline import Normals, picture_signals
from edgead.runtime.decision.verdict import UNKNOWN_CATEGORY
from edgead.runtime.errors import DataError
from edgead.runtime.frame import Decision, Frame, Result
from edgead.runtime.imaging.alignment import NOT_FOUND
from edgead.runtime.imaging.anomaly_map import place_map
from edgead.runtime.imaging.decode import read_image
from edgead.runtime.imaging.roi import Region
from edgead.runtime.imaging.view import View

SCHEMA = "edgead.eval/1"
_NAMED = 3  # images in one line
METRICS = ("image_auroc", "pixel_auroc", "aupro", "f1_max", "false_alarm_rate_at_zero_escapes")


class Inspecting(Protocol):
    """What is evaluated; `edgead.runtime.inspection.inspector.Inspector` is the usual one."""

    @property
    def height(self) -> int: ...

    @property
    def width(self) -> int: ...

    @property
    def region(self) -> Region | None: ...

    @property
    def view(self) -> View: ...

    @property
    def bits(self) -> int: ...

    @property
    def normals(self) -> Mapping[str | None, Normals]: ...

    def __call__(self, frame: Frame) -> Result: ...


@dataclass(frozen=True, slots=True)
class CategoryReport:
    """The evaluation of one category.

    Attributes:
        n_normal, n_anomalous: test images of either kind, inspected or not.
        pixel_auroc, aupro: None where the category has no masks.
        empty_masks: defective images whose mask holds no anomalous pixel at network size; they count for the image
            metrics, and for the pixel metrics as images without a defect.
        unclear_masks: files with more than two levels, see `edgead.data.loading.unclear_masks`.
        images: in the order of ``category.test``.
        shifts: how the good test images differ from the good images that the model knows where they should not.
        fitted_on: good test images that the model was fitted on.
        costs: what mistakes cost; None where nobody said.
        routed_to: of a routed model: category -> number of images it was chosen for, unknown ones included.
    """

    name: str
    n_normal: int
    n_anomalous: int
    image_auroc: Metric
    pixel_auroc: Metric | None
    aupro: Metric | None
    f1_max: Metric
    false_alarm_rate_at_zero_escapes: Metric
    decisions: Decisions
    empty_masks: int
    unclear_masks: tuple[str, ...]
    images: tuple[ImageScore, ...]
    shifts: tuple[Shift, ...] = ()
    fitted_on: tuple[str, ...] = ()
    costs: Costs | None = None

    @property
    def allowed(self) -> tuple[Allowed, ...]:
        """The escapes that the scores of the inspected images allow, none where no good image was inspected."""
        known = [(one.score, one.anomalous) for one in self.images if one.decision is not Decision.NOT_INSPECTED]
        if all(anomalous for _, anomalous in known):
            return ()
        return allowed_escapes([score for score, _ in known], [anomalous for _, anomalous in known])

    @property
    def defects(self) -> tuple[Defect, ...]:
        """Each kind of defect, by name."""
        return by_defect(self.images)

    @property
    def cost_per_1000(self) -> float | None:
        """The cost of 1,000 parts at the threshold; None without costs, or where a share is not known."""
        escapes, alarms = self.decisions.escape_share.value, self.decisions.false_alarm_share.value
        if self.costs is None or escapes is None or alarms is None:
            return None
        return float(self.costs.of(escapes, alarms))

    @property
    def routed_to(self) -> dict[str, int]:
        return dict(Counter(image.category for image in self.images if image.category is not None))

    @property
    def doubts(self) -> tuple[str, ...]:
        """Why the figures are not those of new parts, a sentence each."""
        said = [shift.explain() for shift in self.shifts]
        if self.fitted_on:
            first = ", ".join(self.fitted_on[:_NAMED]) + (" …" if self.fitted_on[_NAMED:] else "")
            said.append(
                f"the model was fitted on {len(self.fitted_on)} of the {self.n_normal} good test images ({first}), "
                "which score lower than new parts: there are more false alarms than these figures say; take images "
                "that it has not seen"
            )
        return tuple(said)

    def metric(self, name: str) -> Metric | None:
        """Return a metric by one of the names in `METRICS`."""
        value: Metric | None = getattr(self, name)
        return value

    def to_dict(self, *, images: bool = False) -> dict[str, Any]:
        """Return the JSON form of this category, with the image scores where asked for."""
        result: dict[str, Any] = {"n_normal": self.n_normal, "n_anomalous": self.n_anomalous}
        result["decisions"] = self.decisions.to_dict()
        result["escape_rate"] = self.decisions.escape_share.to_dict()
        result["false_alarm_rate"] = self.decisions.false_alarm_share.to_dict()
        result["allowed"] = [one.to_dict() for one in self.allowed]
        result["defects"] = [one.to_dict() for one in self.defects]
        result |= {"costs": self.costs and asdict(self.costs), "cost_per_1000": self.cost_per_1000}
        result |= {name: _metric_dict(self.metric(name)) for name in METRICS}
        result["empty_masks"] = self.empty_masks
        result["unclear_masks"] = list(self.unclear_masks)
        result["unlike_normals"] = [one.to_dict() for one in self.shifts]
        result["fitted_on"] = list(self.fitted_on)
        if self.routed_to:
            result["routed_to"] = self.routed_to
        if images:
            result["images"] = [image.to_dict() for image in self.images]
        return result


@dataclass(frozen=True, slots=True)
class EvalReport:
    """The evaluation of one or more categories on one backend; raises `DataError` where two share a name."""

    categories: tuple[CategoryReport, ...]
    backend: BackendInfo

    def __post_init__(self) -> None:
        names = [report.name for report in self.categories]
        for name in names:
            if names.count(name) > 1:
                raise DataError(f"two categories are called '{name}'; evaluate them one at a time or rename a folder")

    def mean(self, name: str) -> Metric | None:
        """Return the mean of a metric over the categories that have it, None where none has.

        Categories are independent test sets, so the half-widths of their intervals add as a root of squares.
        """
        found = [metric for report in self.categories if (metric := report.metric(name)) is not None]
        if not found:
            return None
        value = sum(metric.value for metric in found) / len(found)
        down = math.sqrt(sum((metric.value - metric.low) ** 2 for metric in found)) / len(found)
        up = math.sqrt(sum((metric.high - metric.value) ** 2 for metric in found)) / len(found)
        return Metric(value, max(0.0, value - down), min(1.0, value + up))

    def to_dict(self, *, images: bool = False) -> dict[str, Any]:
        """Return the JSON form, schema ``edgead.eval/1``."""
        return {
            "schema": SCHEMA,
            "categories": {report.name: report.to_dict(images=images) for report in self.categories},
            "mean": {name: _metric_dict(self.mean(name)) for name in METRICS},
            "backend": self.backend.to_dict(),
        }


def evaluate(
    inspector: Inspecting,
    category: Category,
    *,
    bootstrap: int = BOOTSTRAP,
    seed: int = 0,
    costs: Costs | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> CategoryReport:
    """Judge every test image as the camera loop would, and compare with the labels.

    Each image is decoded by `read_image`, wrapped in a `Frame` and given to the inspector, one at a time. Maps are
    resized bilinearly and masks by nearest neighbour to network size for the pixel metrics.

    Args:
        inspector: opened; its threshold gives the decisions.
        category: opened with ``need_test=True``.
        bootstrap, seed: of the intervals, see `edgead.metrics.metrics`.
        costs: of mistakes, for the cost of 1,000 parts at the threshold.
        progress: called with (images done, images in all) after every image.

    Raises:
        DataError: no good or no defective test image, an unreadable image or mask, or an image that was not
            inspected for another reason than that its part is not known or not found: metrics would lack its score.

    An image on which the part to align is not found has no score: it counts as not inspected, and in no metric.
    An image of unknown category is not inspected, but it was scored by the nearest head, and the metrics count it.
    """
    judged = _judge(inspector, category, progress)
    scored = [one for one in judged if math.isfinite(one.image.score)]
    scores = [one.image.score for one in scored]
    labels = [one.image.anomalous for one in scored]
    by_pixel = overlap = None
    try:
        auroc = image_auroc(scores, labels, bootstrap=bootstrap, seed=seed)
        best = f1_max(scores, labels, bootstrap=bootstrap, seed=seed)
        rate = false_alarm_rate_at_zero_escapes(scores, labels, bootstrap=bootstrap, seed=seed)
        if category.has_masks:
            pixels = count_pixels([one.map for one in scored if one.map is not None], [one.mask for one in scored])
            by_pixel = pixel_auroc(pixels, bootstrap=bootstrap, seed=seed)
            overlap = aupro(pixels, bootstrap=bootstrap, seed=seed)
    except DataError as error:
        raise DataError(f"{category.name}: {error}") from error
    return CategoryReport(
        name=category.name,
        n_normal=sum(not one.image.anomalous for one in judged),
        n_anomalous=sum(one.image.anomalous for one in judged),
        image_auroc=auroc,
        pixel_auroc=by_pixel,
        aupro=overlap,
        f1_max=best,
        false_alarm_rate_at_zero_escapes=rate,
        decisions=count_decisions([one.image for one in judged]),
        empty_masks=sum(one.mask is not None and not one.mask.any() for one in judged),
        unclear_masks=tuple(relative_name(path, category.root) for path in unclear_masks(category.test)),
        images=tuple(one.image for one in judged),
        shifts=find_shifts(
            inspector.normals,
            [(one.image.category, one.signals) for one in judged if one.signals is not None],
        ),
        fitted_on=tuple(one.image.path for one in judged if one.fitted_on),
        costs=costs,
    )


class _Judged(NamedTuple):
    image: ImageScore
    map: NDArray[np.float32] | None  # kept only where there are masks to compare it with
    mask: NDArray[np.bool_] | None
    signals: Mapping[str, float] | None  # of the picture of a good part
    fitted_on: bool


def _judge(inspector: Inspecting, category: Category, progress: Callable[[int, int], None] | None) -> list[_Judged]:
    has_masks = category.has_masks

    def load(sample: Sample) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None]:
        image = read_image(sample.path, inspector.bits)
        if not (has_masks and sample.anomalous):
            return image, None
        rows, columns = image.shape[:2]
        return image, load_mask(sample, (rows, columns), inspector.height, inspector.width, inspector.region)

    judged: list[_Judged] = []
    # One thread decodes ahead of the network; more would hold more full-size images.
    with closing(prefetch(load, category.test, workers=1)) as loaded:
        for sample, (pixels, mask) in zip(category.test, loaded, strict=True):
            name = category.relative(sample)
            result = inspector(Frame(pixels, len(judged), time.monotonic_ns(), name))
            where = f"{category.name}/{name}"
            _require_score(result, where)
            image = ImageScore(
                path=name,
                label=sample.label,
                anomalous=sample.anomalous,
                score=result.score,
                threshold=result.threshold,
                decision=result.decision,
                reason=result.reason,
                category=result.category,
            )
            kept = None
            if has_masks and math.isfinite(result.score):
                if result.map is None or not np.isfinite(result.map).all():
                    raise DataError(
                        f"{category.name}/{name}: the anomaly map is missing or not finite; refit the model"
                    )
                kept = map_on_frame(result, inspector.height, inspector.width)
            compared = inspector.normals and not sample.anomalous and result.decision is not Decision.NOT_INSPECTED
            signals, fitted_on = None, False
            if compared:
                picture = inspector.view.prepare(pixels)
                signals = picture_signals(picture)
                fitted_on = any(one.knows(picture) for one in inspector.normals.values())
            judged.append(_Judged(image, kept, mask, signals, fitted_on))
            if progress is not None:
                progress(len(judged), len(category.test))
    return judged


def map_on_frame(result: Result, height: int, width: int) -> NDArray[np.float32]:
    """Return a copy of a result's map as it lies on the frame or its region, where masks lie too.

    What was aligned is turned back, at ``height`` x ``width``; the map's least value stands where it does not reach.
    """
    assert result.map is not None
    if result.placement is None:
        return np.array(result.map, np.float32)  # a backend may use its output buffer again
    return place_map(result.map, result.placement, height, width)[0]


def _require_score(result: Result, name: str) -> None:
    """Raise `DataError` where an image was not inspected for another reason than that nobody knows its part."""
    if result.decision is not Decision.NOT_INSPECTED:
        return
    if result.reason is None or not result.reason.startswith((UNKNOWN_CATEGORY, NOT_FOUND)):
        raise DataError(f"{name} was not inspected ({result.reason or 'no reason given'}); metrics need a score for it")


def _metric_dict(metric: Metric | None) -> dict[str, float] | None:
    return None if metric is None else metric.to_dict()
