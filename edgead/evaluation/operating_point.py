"""What a threshold lets pass, measured on defects at hand, and the threshold that costs least.

The defects were not fitted on, or judged by models without them, and the scores of normals are out of fold, so both
count as unseen. A threshold that is
chosen by these very scores is judged by leaving each image out once: chosen by the others, counted on it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgead.data import Category, Sample
from edgead.data.layouts import list_defects
from edgead.evaluation.costs import Costs
from edgead.model.card_sections import CostCard, DefectsCard, PointCard
from edgead.model.model import TrainedModel
from edgead.runtime.decision.threshold import Threshold, calibrate, share_interval, threshold_at
from edgead.runtime.errors import ConfigError, DataError
from edgead.runtime.imaging.decode import read_image

# False-alarm rates whose thresholds are shown beside the model's own.
RATES = (0.01, 0.02, 0.05, 0.1)


def defects_at_hand(category: Category, folder: str | Path | None) -> tuple[Sample, ...]:
    """Return the defective images beside the training images, and those of a folder.

    Raises:
        DataError: the folder is missing or holds no image.
    """
    given = (*category.defects, *(() if folder is None else list_defects(Path(folder).expanduser())))
    # One that lies in both places counts once.
    return tuple({sample.path.resolve(): sample for sample in reversed(given)}.values())[::-1]


def with_operating_point(
    model: TrainedModel,
    normal: NDArray[np.float64],
    defects: Sequence[Sample],
    costs: Costs | None,
    held_out: NDArray[np.float64] | None = None,
) -> TrainedModel:
    """Return the model with what its threshold does to defects, and with the threshold that costs least if asked for.

    Args:
        model: of one category.
        normal: ``(n,)`` held-out scores that its threshold was made from.
        defects: images at hand.
        costs: None keeps the threshold.
        held_out: ``(m,)`` scores of the defects by models that were not fitted on them; None: the model was not.

    Raises:
        ConfigError: the model routes between categories.
        DataError: an image that cannot be read, or costs without a defect.
    """
    if not defects:
        if costs is not None:
            raise DataError("costs need defects to weigh; put some into train/defect, or give --defects DIR")
        return model
    if model.card.routing is not None:
        raise ConfigError("defects at hand are for a model of one category; fit one for each")
    if held_out is None:
        with model.inspector("defects") as inspector:
            scores = np.array([inspector(read_image(one.path, inspector.bits)).score for one in defects])
    else:
        scores = held_out
    if not np.isfinite(scores).all():
        bad = defects[int(np.flatnonzero(~np.isfinite(scores))[0])]
        raise DataError(f"{bad.path} has no finite score; remove it, or fit again")
    chosen = None if costs is None else _cheapest(normal, scores, costs)
    threshold = model.threshold if chosen is None else threshold_at(chosen.value, normal)
    card = DefectsCard(
        images=len(scores),
        kinds=_by_kind(defects, scores, threshold.value),
        points=tuple(_points(normal, scores, threshold)),
        costs=chosen,
    )
    return replace(model, card=model.card.with_threshold(threshold).model_copy(update={"defects": card}))


def _by_kind(defects: Sequence[Sample], scores: NDArray[np.float64], value: float) -> dict[str, tuple[int, int]]:
    kinds: dict[str, tuple[int, int]] = {}
    for sample, score in zip(defects, scores.tolist(), strict=True):
        images, escapes = kinds.get(sample.label or "defect", (0, 0))
        kinds[sample.label or "defect"] = images + 1, escapes + (score <= value)
    return kinds


def thresholds_beside(own: Threshold, normal: Sequence[float] | NDArray[np.float64]) -> list[Threshold]:
    """Return a model's threshold and those of `RATES` for the same ``(n,)`` held-out scores, from the highest down."""
    others = [calibrate(normal, rate) for rate in RATES if not math.isclose(rate, own.target_false_alarm_rate)]
    return sorted([own, *others], key=lambda one: (-one.value, one.target_false_alarm_rate))


def _points(normal: NDArray[np.float64], defects: NDArray[np.float64], own: Threshold) -> Iterable[PointCard]:
    for threshold in thresholds_beside(own, normal):
        escapes = int((defects <= threshold.value).sum())
        low, high = share_interval(escapes, len(defects))
        yield PointCard(
            threshold=threshold.value,
            target_false_alarm_rate=threshold.target_false_alarm_rate,
            false_alarms=int((normal > threshold.value).sum()),
            normals=len(normal),
            escapes=escapes,
            escape_low=low,
            escape_high=high,
            own=threshold is own,
        )


def _cheapest(normal: NDArray[np.float64], defects: NDArray[np.float64], costs: Costs) -> CostCard:
    value = _least(normal, defects, costs)
    # Each image judged by the threshold that the others choose.
    escapes = np.mean([score <= _least(normal, np.delete(defects, i), costs) for i, score in enumerate(defects)])
    alarms = np.mean([score > _least(np.delete(normal, i), defects, costs) for i, score in enumerate(normal)])
    return CostCard(
        value=value,
        cost_escape=costs.escape,
        cost_false_alarm=costs.false_alarm,
        defect_rate=costs.defect_rate,
        escape_rate=float(escapes),
        false_alarm_rate=float(alarms),
        cost_per_1000=float(costs.of(float(escapes), float(alarms))),
    )


def _least(normal: NDArray[np.float64], defects: NDArray[np.float64], costs: Costs) -> float:
    """Return the threshold of least cost, in the middle of the widest gap where several cost the same."""
    scores = np.unique(np.concatenate([normal, defects]))
    edges = np.concatenate([scores[:1] - 1e-6 * abs(scores[0]) - 1e-9, scores, scores[-1:] * (1 + 1e-6) + 1e-9])
    middles, gaps = (edges[:-1] + edges[1:]) / 2, np.diff(edges)
    missed = np.searchsorted(np.sort(defects), middles, side="right") / max(len(defects), 1)
    alarms = 1 - np.searchsorted(np.sort(normal), middles, side="right") / max(len(normal), 1)
    cost = costs.of(missed, alarms)
    best = np.flatnonzero(cost <= cost.min() * (1 + 1e-12))
    return float(middles[best[np.argmax(gaps[best])]])
