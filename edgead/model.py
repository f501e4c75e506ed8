"""A trained model and its directory: ``model.json``, ``weights.safetensors``, ``references/`` and more. No pickle."""

from __future__ import annotations

import ctypes
import json
import os
import secrets
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from edgead.backbones import BackboneInfo, BackboneSpec, build_backbone
from edgead.detectors import create_detector, learns, pools_categories
from edgead.detectors.learned import LearnedModule, load_learned
from edgead.detectors.routing import RoutedModule
from edgead.export.exportable import Exportable, Routing
from edgead.features import build_extractor
from edgead.runtime.errors import BundleError, ConfigError, DataError
from edgead.runtime.files import reason
from edgead.runtime.limits import Limits
from edgead.runtime.manifest import MASK_NAME, NormalsSection, RegionSection, ThresholdSection, TilesSection
from edgead.runtime.preprocess import RESIZE_RULE
from edgead.runtime.region import Region, encode_mask
from edgead.runtime.threshold import Threshold
from edgead.runtime.tiling import Tiles
from edgead.runtime.version import __version__
from edgead.scoring import ScoringModule
from edgead.traininglog import TrainingLog, draw_log

FORMAT_VERSION = 1
_JSON = "model.json"
_WEIGHTS = "weights.safetensors"
_REFERENCES = "references"
_CALIBRATION = "calibration"
_CURVE = "training.png"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class CategoryCard(_Section):
    """One category of a routed model.

    Attributes:
        threshold: in standard deviations over the category's held-out normals, as the head's scores are.
        minimum_similarity: below it an image is not taken for a part of the category.
        sources: folder name -> number of its images that the category got.
    """

    threshold: ThresholdSection
    minimum_similarity: float
    sources: dict[str, int]


class RoutingCard(_Section):
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


class RungCard(_Section):
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


class BudgetCard(_Section):
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


class TrainingCard(_Section):
    """How a network was trained.

    Attributes:
        held_out: indices of the training images that it did not see, ascending; ``normal_scores`` are theirs.
        log: losses, and the judgements by which the state to keep was selected.
    """

    held_out: tuple[int, ...]
    log: TrainingLog


class ModelCard(_Section):
    """The content of ``model.json``.

    Attributes:
        detector, settings: registered name and all its settings.
        backbone: name, weights and strides, enough to rebuild the architecture; the weights are in the directory.
        backbone_info: where the weights came from, with their digest.
        height, width: network size in pixels.
        resize: the resize rule the model was trained with.
        threshold: see `edgead.runtime.threshold.Threshold`.
        normal_scores: score of each training image by a model that never saw it, in image order; of a learned
            detector, of those that were held out.
        categories: category name -> number of training images.
        fingerprint: folder name -> digest of its training images.
        normals: category name -> what its good parts looked like, for the drift watch.
        routing: of a model of several categories; its ``categories`` are then those that were found.
        budget: of a model whose settings were chosen by measurement.
        region: the part of the images it was fitted on; its mask lies beside, as ``mask.png``. None: all of them.
        training: of a learned detector.
        tiles: how that part is cut; ``grid`` and the network size are those of one tile.
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
    normals: dict[str, NormalsSection] = {}
    routing: RoutingCard | None = None
    budget: BudgetCard | None = None
    region: RegionSection | None = None
    training: TrainingCard | None = None
    tiles: TilesSection | None = None

    def provenance(self) -> dict[str, Any]:
        """Return where the model comes from, as bundles and reports state it; ready for JSON."""
        found: dict[str, Any] = {
            "backbone": self.backbone_info,
            "random_weights": bool(self.backbone_info["random_weights"]),
            "data_fingerprint": self.fingerprint,
            "seed": self.seed,
            "versions": self.versions,
        }
        for name, section in (("routing", self.routing), ("budget", self.budget)):
            if section is not None:
                found[name] = section.model_dump(mode="json")
        return found


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A fitted detector with everything export and evaluation need.

    Attributes:
        card: what `ModelCard` says.
        module: the scoring module, the routed one of several categories, or a trained network, in eval mode.
        references: ``(name, PNG bytes)`` of a few good images and of the same images with planted defects.
        calibration: ``(name, PNG bytes)`` of more good images at network size, and of some with planted defects, from
            which an export takes the ranges and thresholds of reduced precisions; a bundle does not carry them.
        region: the part of the images that is judged, as the card says; None: all of it.
    """

    card: ModelCard
    module: ScoringModule | RoutedModule | LearnedModule
    references: tuple[tuple[str, bytes], ...]
    calibration: tuple[tuple[str, bytes], ...] = ()
    region: Region | None = None

    @property
    def threshold(self) -> Threshold:
        return self.card.threshold.to_threshold()

    @property
    def limits(self) -> Limits:
        """The thresholds that scores are held against."""
        routing = self.card.routing
        own = {} if routing is None else {name: one.threshold.value for name, one in routing.categories.items()}
        return Limits(self.card.threshold.value, own)

    def exportable(self, name: str) -> Exportable:
        """Return what the export layer needs; ``name`` becomes the bundle's."""
        card = self.card
        return Exportable(
            name=name,
            module=self.module,
            height=card.height,
            width=card.width,
            grid=card.grid,
            threshold=self.threshold,
            normal_scores=card.normal_scores,
            detector=card.detector,
            settings=card.settings,
            categories=card.categories,
            references=self.references,
            provenance=card.provenance(),
            routing=self._routing(),
            calibration=self.calibration,
            normals={name: section.to_normals() for name, section in card.normals.items()},
            region=self.region,
            tiles=self.tiles,
        )

    @property
    def tiles(self) -> Tiles | None:
        """How pictures are cut, None where they are judged whole."""
        section = self.card.tiles
        if section is None:
            return None
        return Tiles(section.rows, section.columns, section.overlap, self.card.grid)

    def _routing(self) -> Routing | None:
        card = self.card.routing
        if card is None or not isinstance(self.module, RoutedModule):
            return None
        return Routing(
            router=self.module.router,
            heads=dict(zip(card.categories, self.module.heads, strict=True)),
            thresholds={name: one.threshold.to_threshold() for name, one in card.categories.items()},
            minimum_similarity={name: one.minimum_similarity for name, one in card.categories.items()},
        )

    def save(self, path: Path) -> None:
        """Write the model directory, whole or not at all; a model that is there is replaced at the end.

        Raises:
            ConfigError: something that is no model is in the way.
            BundleError: the disk is full or not writable; what was there stays.
        """
        from safetensors.torch import save_file

        check_model_path(path)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            for folder, images in ((_REFERENCES, self.references), (_CALIBRATION, self.calibration)):
                (temporary / folder).mkdir(parents=True)
                for name, data in images:
                    (temporary / folder / name).write_bytes(data)
            mask = None if self.region is None else encode_mask(self.region)
            if mask is not None:
                (temporary / MASK_NAME).write_bytes(mask)
            state = self.module.save_tensors() if isinstance(self.module, RoutedModule) else self.module.state_dict()
            tensors = {name: tensor.contiguous() for name, tensor in state.items()}
            save_file(tensors, temporary / _WEIGHTS)
            if self.card.training is not None:
                (temporary / _CURVE).write_bytes(draw_log(self.card.training.log))
            # Last, because its presence is what makes the folder a model.
            (temporary / _JSON).write_text(json.dumps(self.card.model_dump(), indent=2, sort_keys=True) + "\n")
            _wait_for_disk(temporary)
            _swap(temporary, path)
        except Exception as error:
            if isinstance(error, OSError) or "safetensors" in type(error).__module__:
                raise BundleError(f"cannot write {path}: {reason(error)}; nothing was changed") from error
            raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def check_model_path(path: Path) -> None:
    """Raise `ConfigError` where something that is no model is in the way; call it before training, too."""
    if path.exists() and not (path / _JSON).is_file() and not (path.is_dir() and not any(path.iterdir())):
        raise ConfigError(f"{path} exists and is no model directory; choose another -o or remove it")


def load_model(path: Path) -> TrainedModel:
    """Load a model directory.

    Raises:
        BundleError: no model there, one from another version, or a damaged one.
    """
    from safetensors.torch import load_file

    card = read_card(path)
    try:
        tensors = load_file(path / _WEIGHTS)
        # A model of an earlier version has no calibration images.
        references, calibration = (
            tuple((p.name, p.read_bytes()) for p in sorted((path / folder).glob("*.png")))
            for folder in (_REFERENCES, _CALIBRATION)
        )
    except Exception as error:
        raise BundleError(f"{path} is damaged: {_WEIGHTS} cannot be read ({reason(error)}); fit again") from error
    try:
        module = _rebuild(card, tensors)
    except (RuntimeError, KeyError, ConfigError, TypeError) as error:
        raise BundleError(
            f"{path} does not fit this version of edgead or timm ({str(error).splitlines()[0]}); fit again"
        ) from error
    return TrainedModel(card, module, references, calibration, _read_region(path, card))


def _read_region(path: Path, card: ModelCard) -> Region | None:
    section = card.region
    if section is None:
        return None
    try:
        mask = None if section.mask is None else (path / section.mask).read_bytes()
        return section.to_region(mask)
    except (OSError, ConfigError, DataError) as error:
        raise BundleError(f"{path} is damaged: its region cannot be read ({reason(error)}); fit again") from error


def read_card(path: Path) -> ModelCard:
    """Read ``model.json``; raises `BundleError` where it is missing, damaged or from another format version."""
    file = path / _JSON
    if not file.is_file():
        raise BundleError(f"{path} is no model directory (no {_JSON}); give what 'edgead fit -o' wrote")
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
        field = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise BundleError(f"{file} is damaged (field '{field}'); fit again") from error
    if card.resize != RESIZE_RULE:
        raise BundleError(
            f"{path} was trained with the resize rule '{card.resize}', this is '{RESIZE_RULE}'; fit again"
        )
    return card


def make_card(
    *,
    detector: str,
    settings: BaseModel,
    backbone: BackboneSpec,
    backbone_info: BackboneInfo,
    size: tuple[int, int],
    grid: tuple[int, int],
    seed: int,
    threshold: Threshold,
    normal_scores: Sequence[float],
    categories: Mapping[str, int],
    fingerprint: Mapping[str, str],
    normals: Mapping[str, NormalsSection],
    routing: RoutingCard | None = None,
    budget: BudgetCard | None = None,
    region: Region | None = None,
    training: TrainingCard | None = None,
    tiles: Tiles | None = None,
) -> ModelCard:
    """Fill in a `ModelCard` with the versions of what is installed."""
    import timm

    return ModelCard(
        format_version=FORMAT_VERSION,
        edgead=__version__,
        detector=detector,
        settings=settings.model_dump(),
        backbone={"name": backbone.name, "weights": backbone_info.weights, "strides": list(backbone.strides)},
        backbone_info=asdict(backbone_info),
        height=size[0],
        width=size[1],
        grid=grid,
        resize=RESIZE_RULE,
        seed=seed,
        threshold=ThresholdSection.from_threshold(threshold),
        normal_scores=[float(score) for score in normal_scores],
        categories=dict(categories),
        fingerprint=dict(fingerprint),
        versions={"edgead": __version__, "torch": torch.__version__, "timm": timm.__version__, "numpy": np.__version__},
        normals=dict(normals),
        routing=routing,
        budget=budget,
        region=None if region is None else RegionSection.from_region(region),
        training=training,
        tiles=None if tiles is None else TilesSection(rows=tiles.rows, columns=tiles.columns, overlap=tiles.overlap),
    )


def _rebuild(card: ModelCard, tensors: dict[str, torch.Tensor]) -> ScoringModule | RoutedModule | LearnedModule:
    detector = create_detector(card.detector, card.settings)
    spec = BackboneSpec(card.backbone["name"], "random", tuple(card.backbone["strides"]))
    size = (card.height, card.width)
    if learns(card.detector):
        return load_learned(detector, spec, size, tensors)
    extractor = build_extractor(build_backbone(spec, size, load_weights=False), size)
    if pools_categories(card.detector) != (card.routing is not None):
        raise ConfigError(f"{_JSON} says how a model of several categories was made, or does not, unlike its detector")
    if card.routing is not None:
        routed: RoutedModule = detector.empty(extractor, tensors, card.seed)
        if len(routed.heads) != len(card.routing.categories):
            raise ConfigError(f"{len(routed.heads)} heads for {len(card.routing.categories)} categories")
        routed.load_tensors(tensors)
        return routed.eval().requires_grad_(False)
    extractor = detector.extractor(extractor, card.seed)
    head = detector.empty_head({k.removeprefix("head."): v for k, v in tensors.items() if k.startswith("head.")})
    module = ScoringModule(extractor, head, smooth=bool(detector.settings.smooth))
    module.load_state_dict(tensors)
    return module.eval().requires_grad_(False)


def _wait_for_disk(folder: Path) -> None:
    """Let no power cut find the folder in its place and its files not yet on the disk."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb+") as stream:
                os.fsync(stream.fileno())


def _swap(new: Path, path: Path) -> None:
    """Put ``new`` in the place of ``path``, in one step where the system can; what was there is then in ``new``."""
    if not path.exists() or not _exchange(new, path):
        old = path.with_name(f".{path.name}.{secrets.token_hex(6)}.old")
        replaced = path.exists()
        if replaced:
            path.rename(old)
        try:
            new.rename(path)
        except OSError:
            if replaced:
                old.rename(path)
            raise
        shutil.rmtree(old, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Let two paths change places atomically (Linux's renameat2); False where system or file system cannot."""
    if sys.platform != "linux":
        return False
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except AttributeError:
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(renameat2(here, os.fsencode(first), here, os.fsencode(second), exchange) == 0)


def check_size(height: int, width: int) -> tuple[int, int]:
    """Return a usable network size; raises `ConfigError` unless both sides are multiples of 32 from 64 to 2048."""
    for side in (height, width):
        if side % 32 or not 64 <= side <= 2048:
            raise ConfigError(f"--size must be a multiple of 32 from 64 to 2048, got {side}")
    return height, width
