"""What is said of a fitted model: its JSON form, and warnings in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgead.evaluation.operating_point import thresholds_beside
from edgead.model.model import TrainedModel
from edgead.runtime.decision.verdict import Verdict
from edgead.runtime.frame import Decision
from edgead.runtime.imaging.decode import ALL_BITS


def fit_payload(model: TrainedModel, output: Path, seconds: float) -> dict[str, Any]:
    """Return the JSON form of a fit, schema ``edgead.fit/1``; ``output``: where the model is."""
    card, threshold = model.card, model.threshold
    thresholds = dict.fromkeys(card.categories, threshold)
    if card.routing is not None:
        thresholds = {name: one.threshold.to_threshold() for name, one in card.routing.categories.items()}
    planted = model.planted_defects()
    payload = {
        "schema": "edgead.fit/1",
        "model": str(output),
        "detector": card.detector,
        "settings": card.settings,
        "backbone": card.backbone_info,
        "size": {"height": card.height, "width": card.width},
        "seed": card.seed,
        "images": sum(card.categories.values()),
        "categories": card.categories,
        "thresholds": {name: {**one.to_dict(), "meaning": one.explain()} for name, one in thresholds.items()},
        "planted_defects": {"images": len(planted), "passed": sum(one.decision is Decision.OK for one in planted)},
        "seconds": round(seconds, 3),
    }
    if card.routing is None:
        payload["targets"] = _targets(model, planted)
    if card.defects is not None:
        payload["defects"] = card.defects.model_dump(mode="json")
    if card.audit is not None:
        payload["audit"] = card.audit.model_dump(mode="json")
    if card.routing is not None:
        payload["routing"] = card.routing.model_dump(mode="json", exclude={"categories": {"__all__": {"threshold"}}})
    if card.bits != ALL_BITS:
        payload["bits"] = card.bits
    if card.region is not None:
        payload["region"] = card.region.model_dump(mode="json")
    if card.tiles is not None:
        payload["tiles"] = card.tiles.model_dump(mode="json")
    if card.align is not None:
        payload["align"] = card.align.model_dump(mode="json")
    if card.budget is not None:
        payload["budget"] = card.budget.model_dump(mode="json")
    return payload


def _targets(model: TrainedModel, planted: Sequence[Verdict]) -> list[dict[str, Any]]:
    """What this and other false-alarm rates would give on the same held-out normals, and on the planted defects."""
    normal, own = model.card.normal_scores, model.threshold
    return [
        {
            "target_false_alarm_rate": one.target_false_alarm_rate,
            "threshold": one.value,
            "normals_above": sum(score > one.value for score in normal),
            "planted_passed": sum(v.decision is not Decision.NOT_INSPECTED and v.score <= one.value for v in planted),
            "own": one is own,
        }
        for one in thresholds_beside(own, normal)
    ]


def model_warnings(model: TrainedModel, payload: Mapping[str, Any]) -> list[str]:
    """Return what a person has to know of the model before it is used, one line each; ``payload``: of `fit_payload`."""
    return [*_of_training(model), *_of_thresholds(model), *_of_planted(model, **payload["planted_defects"])]


def _of_training(model: TrainedModel) -> list[str]:
    found = []
    if model.card.backbone_info["random_weights"]:
        found.append(
            "THE BACKBONE HAS RANDOM WEIGHTS, as asked for with @random: good for trying things out, not for "
            "production; omit @random for trained ones"
        )
    training = model.card.training
    gain = None if training is None else training.log.gain()
    if gain is not None and gain <= 0:
        found.append(
            f"training did not help: planted defects are found no better than before the first step ({gain:+.3f}); "
            "give more steps or images, or take another detector"
        )
    return found


def _of_thresholds(model: TrainedModel) -> list[str]:
    routing = model.card.routing
    if routing is None:
        return [] if model.threshold.supported else [model.threshold.explain()]
    found = []
    for name, category in routing.categories.items():
        own = category.threshold.to_threshold()
        if not own.supported:
            found.append(f"{name}: {own.explain()}")
    if routing.purity < 1:
        found.append(
            f"{1 - routing.purity:.1%} of the images lie in a category with another folder's; "
            "give the number of categories with --set categories=N if that is wrong"
        )
    return found


def _of_planted(model: TrainedModel, images: int, passed: int) -> list[str]:
    if 2 * passed <= images:
        return []
    return [
        f"most planted defects, {passed} of {images}, would pass as OK at a target of "
        f"{model.threshold.target_false_alarm_rate:.1%} false alarms. What helps: more normal images, another detector "
        "('edgead recommend' tries some), a higher --false-alarm-rate. Planted defects are not real: five real ones "
        "(--defects DIR) say more, and 'edgead eval --probe' shows whether the model sees such flaws at all"
    ]
