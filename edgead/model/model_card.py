"""What ``model.json`` of a model directory says: how the model was made, its threshold, and where it comes from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, Field, ValidationError

from edgead.features.backbones import BackboneInfo, BackboneSpec
from edgead.model.card_sections import AuditCard, BudgetCard, CardSection, DefectsCard, RoutingCard, TrainingCard
from edgead.runtime.bundle.align_section import AlignSection
from edgead.runtime.bundle.field_types import FileBits
from edgead.runtime.bundle.manifest import made_by_newer, unknown_field
from edgead.runtime.bundle.manifest_schema import (
    NormalsSection,
    RegionSection,
    ThresholdSection,
    TilesSection,
)
from edgead.runtime.decision.known_images import PROVENANCE_KEY as KNOWN_IMAGES
from edgead.runtime.decision.threshold import Threshold
from edgead.runtime.errors import BundleError, ConfigError
from edgead.runtime.imaging.decode import ALL_BITS
from edgead.runtime.imaging.preprocess import RESIZE_RULE
from edgead.runtime.imaging.view import View
from edgead.runtime.version import __version__

FORMAT_VERSION = 1
CARD_FILE = "model.json"


class ModelCard(CardSection):
    """The content of ``model.json``.

    Attributes:
        detector, settings: registered name and all its settings.
        backbone: name, weights and strides, enough to rebuild the architecture; the weights are in the directory.
        backbone_info: where the weights came from, with their digest.
        height, width: network size in pixels.
        resize: the resize rule the model was trained with.
        threshold: see `edgead.runtime.decision.threshold.Threshold`.
        normal_scores: score of each training image by a model that never saw it, in image order; of near-duplicates the
            highest alone; of a learned detector, of those that were held out.
        scored: indices of the images that ``normal_scores`` are of, where near-duplicates left some without; else None.
        known_images: by what the images that it was fitted on are recognised, see `pack_known`.
        categories: category name -> number of training images.
        fingerprint: folder name -> digest of its training images.
        normals: category name -> what its good parts looked like, for the drift watch.
        routing: of a model of several categories; its ``categories`` are then those that were found.
        budget: of a model whose settings were chosen by measurement.
        region: the part of the images it was fitted on; its mask lies beside, as ``mask.png``. None: all of them.
        training: of a learned detector.
        tiles: how that part is cut; ``grid`` and the network size are those of one tile.
        align: how the part's pose is undone; its template lies beside, as ``template.png``. None: not at all.
        bits: of a 16-bit image file's values, those that carry the picture.
        audit: of the training images; None where an earlier version fitted.
        defects: at hand when it was fitted.
    """

    format_version: int
    edgead: str
    detector: str
    settings: dict[str, Any]
    backbone: dict[str, Any]
    backbone_info: dict[str, Any]
    height: int
    width: int
    grid: tuple[int, int]
    resize: str
    seed: int
    threshold: ThresholdSection
    normal_scores: list[float]
    categories: dict[str, int]
    fingerprint: dict[str, str]
    versions: dict[str, str]
    normals: dict[str, NormalsSection] = Field(default_factory=dict)
    routing: RoutingCard | None = None
    budget: BudgetCard | None = None
    region: RegionSection | None = None
    training: TrainingCard | None = None
    tiles: TilesSection | None = None
    align: AlignSection | None = None
    bits: FileBits = ALL_BITS
    audit: AuditCard | None = None
    defects: DefectsCard | None = None
    scored: tuple[int, ...] | None = None
    known_images: str = ""

    def with_threshold(self, threshold: Threshold) -> ModelCard:
        """Return the card with another threshold."""
        return self.model_copy(update={"threshold": ThresholdSection.from_threshold(threshold)})

    def provenance(self) -> dict[str, Any]:
        """Return where the model comes from, as bundles and reports state it; ready for JSON."""
        found: dict[str, Any] = {
            "backbone": self.backbone_info,
            "random_weights": bool(self.backbone_info["random_weights"]),
            "data_fingerprint": self.fingerprint,
            "seed": self.seed,
            "versions": self.versions,
        }
        if self.known_images:
            found[KNOWN_IMAGES] = self.known_images
        for name, section in (("routing", self.routing), ("budget", self.budget)):
            if section is not None:
                found[name] = section.model_dump(mode="json")
        return found


def read_card(path: Path) -> ModelCard:
    """Read ``model.json``; raises `BundleError` where it is missing, damaged or from another format version."""
    file = path / CARD_FILE
    if not file.is_file():
        raise BundleError(f"{path} is no model directory (no {CARD_FILE}); give what 'edgead fit -o' wrote")
    try:
        content = json.loads(file.read_text())
        version = content["format_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{file} is damaged; fit again") from error
    if version != FORMAT_VERSION:
        relation = "a newer" if isinstance(version, int) and version > FORMAT_VERSION else "another"
        raise BundleError(
            f"{path} was written by {relation} edgead (model format {version}); fit again or change edgead"
        )
    try:
        card = ModelCard.model_validate(content)
    except ValidationError as error:
        if (unknown := unknown_field(error)) is not None:
            raise BundleError(f"{file}: {made_by_newer(unknown)}; upgrade edgead, or fit again") from error
        field = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise BundleError(f"{file} is damaged (field '{field}'); fit again") from error
    if card.resize != RESIZE_RULE:
        raise BundleError(
            f"{path} was trained with the resize rule '{card.resize}', this is '{RESIZE_RULE}'; fit again"
        )
    return card


@dataclass(frozen=True, slots=True)
class Method:
    """The detector: its name and settings, and how it came to them.

    Attributes:
        budget: where the settings were chosen by measurement; training: of a network that was trained.
    """

    detector: str
    settings: BaseModel
    seed: int
    budget: BudgetCard | None = None
    training: TrainingCard | None = None


@dataclass(frozen=True, slots=True)
class Geometry:
    """What of a frame is judged, and ``(rows, columns)`` of its map; ``bits`` of a 16-bit file's values carry it."""

    view: View
    grid: tuple[int, int]
    bits: int = ALL_BITS


@dataclass(frozen=True, slots=True)
class GoodParts:
    """What the good images of a fit gave.

    Attributes:
        categories: name -> number of images; fingerprint: folder -> digest of the images.
        scores: of images that the model was not fitted on; threshold: from these.
        normals: category -> what its images look like, for the drift watch.
        audit: of the images.
        known: see `ModelCard`; scored: likewise.
    """

    categories: Mapping[str, int]
    fingerprint: Mapping[str, str]
    scores: Sequence[float]
    threshold: Threshold
    normals: Mapping[str, NormalsSection]
    audit: AuditCard
    known: str = ""
    scored: Sequence[int] | None = None


def make_card(
    method: Method,
    backbone: BackboneSpec,
    backbone_info: BackboneInfo,
    geometry: Geometry,
    good: GoodParts,
    routing: RoutingCard | None = None,
) -> ModelCard:
    """Fill in a `ModelCard` with the versions of what is installed."""
    import timm

    view = geometry.view
    region, tiles, align = view.region, view.tiles, view.align
    return ModelCard(
        format_version=FORMAT_VERSION,
        edgead=__version__,
        detector=method.detector,
        settings=method.settings.model_dump(),
        backbone={"name": backbone.name, "weights": backbone_info.weights, "strides": list(backbone.strides)},
        backbone_info=asdict(backbone_info),
        height=view.height,
        width=view.width,
        grid=geometry.grid,
        resize=RESIZE_RULE,
        seed=method.seed,
        threshold=ThresholdSection.from_threshold(good.threshold),
        normal_scores=[float(score) for score in good.scores],
        categories=dict(good.categories),
        fingerprint=dict(good.fingerprint),
        versions={"edgead": __version__, "torch": torch.__version__, "timm": timm.__version__, "numpy": np.__version__},
        normals=dict(good.normals),
        routing=routing,
        budget=method.budget,
        region=None if region is None else RegionSection.from_region(region),
        training=method.training,
        tiles=None if tiles is None else TilesSection(rows=tiles.rows, columns=tiles.columns, overlap=tiles.overlap),
        align=None if align is None else AlignSection.from_alignment(align),
        bits=geometry.bits,
        audit=good.audit,
        scored=None if good.scored is None else tuple(good.scored),
        known_images=good.known,
    )


def check_size(height: int, width: int) -> tuple[int, int]:
    """Return a usable network size; raises `ConfigError` unless both sides are multiples of 32 from 64 to 2048."""
    for side in (height, width):
        if side % 32 or not 64 <= side <= 2048:
            raise ConfigError(f"--size must be a multiple of 32 from 64 to 2048, got {side}")
    return height, width
