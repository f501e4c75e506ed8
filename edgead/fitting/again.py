"""A model fitted again as it was: on its images or on more of them, seeing what it saw, by the settings it has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgead.data import Category
from edgead.evaluation.costs import Costs
from edgead.features.backbones import BackboneSpec
from edgead.fitting.config import FitConfig
from edgead.model.model_card import ModelCard
from edgead.runtime.errors import ConfigError, DataError
from edgead.runtime.imaging.tiling import DEFAULT_OVERLAP
from edgead.runtime.imaging.view import View


def spec_of(card: ModelCard) -> BackboneSpec:
    """Return the backbone of a model by name; of weights from a file only the name is known."""
    found = card.backbone
    return BackboneSpec(found["name"], found["weights"], tuple(found["strides"]))


def config_again(card: ModelCard, view: View | None = None, exclude: Sequence[str] = ()) -> FitConfig:
    """Return how a model of one category was fitted, so that another fit is as it was.

    Args:
        card: of the model; its budget, if it had one, chose the settings that it now has.
        view: what the model sees of an image, which is then not learned anew.
        exclude: training images to omit, named as `edgead audit` names them.
    """
    spec, tiles = spec_of(card), card.tiles
    costs = None if card.defects is None else card.defects.costs
    return FitConfig(
        detector=card.detector,
        settings=card.settings,
        backbone=f"{spec.name}@{spec.weights}",
        taps=spec.strides,
        size=(card.height, card.width),
        seed=card.seed,
        false_alarm_rate=card.threshold.target_false_alarm_rate,
        bits=card.bits,
        exclude=tuple(exclude),
        # Those that were stray then are among the images left out.
        keep_stray=card.audit is not None and bool(card.audit.stray),
        learn_defects=card.defects is None or card.defects.learned is not None,
        costs=None if costs is None else Costs(costs.cost_escape, costs.cost_false_alarm, costs.defect_rate),
        tiles=None if tiles is None else (tiles.rows, tiles.columns),
        tile_overlap=DEFAULT_OVERLAP if tiles is None else tiles.overlap,
        view=view,
    )


def require_same_images(card: ModelCard, category: Category, model: Path, given: Path) -> None:
    """Raise `DataError` where a category is not what the model was fitted on."""
    if category.fingerprint("train") not in card.fingerprint.values():
        raise DataError(f"{model} was fitted on other images than those of {given}; give the folder of its fit")


def require_same_backbone(before: ModelCard, after: ModelCard) -> None:
    """Raise `ConfigError` where the backbone's weights are not those of the first fit."""
    digests = [card.backbone_info.get("weights_sha256") for card in (before, after)]
    if digests[0] != digests[1]:
        raise ConfigError(
            f"the weights of {before.backbone['name']} are not those that the model was fitted with; "
            "fit it again, and go on with that one"
        )
