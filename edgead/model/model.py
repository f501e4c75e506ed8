"""A trained model and its directory: ``model.json``, ``weights.safetensors``, ``references/`` and more. No pickle."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgead.detectors import create_detector, learns, pools_categories
from edgead.detectors.ensemble import Ensemble, EnsembleModule, is_learned
from edgead.detectors.learned import LearnedModule, load_learned
from edgead.detectors.routing import RoutedModule
from edgead.export.exportable import Exportable, Routing
from edgead.features.backbones import BackboneSpec, build_backbone
from edgead.features.features import build_extractor
from edgead.features.scoring import DefectTerm, ScoringModule
from edgead.model.card_sections import LearnedDefectsCard
from edgead.model.directories import swap_directory, wait_for_disk
from edgead.model.model_card import CARD_FILE, ModelCard, read_card
from edgead.runtime.bundle.layout import MASK_NAME, TEMPLATE_NAME
from edgead.runtime.bundle.reference_names import ReferenceName
from edgead.runtime.decision.known_images import unpack_known
from edgead.runtime.decision.threshold import Threshold
from edgead.runtime.decision.verdict import Limits, Verdict
from edgead.runtime.errors import BundleError, ConfigError, DataError
from edgead.runtime.files import reason
from edgead.runtime.imaging.alignment import Alignment, encode_template
from edgead.runtime.imaging.decode import decode_image
from edgead.runtime.imaging.preprocess import resize
from edgead.runtime.imaging.roi import Region, encode_mask
from edgead.runtime.imaging.tiling import Tiles
from edgead.runtime.inspection.inspector import Inspector
from edgead.training.training_log import draw_log

Module = ScoringModule | RoutedModule | LearnedModule | EnsembleModule

_WEIGHTS = "weights.safetensors"
_REFERENCES = "references"
_CALIBRATION = "calibration"
_CURVE = "training.png"
_OWN = {CARD_FILE, _WEIGHTS, _REFERENCES, _CALIBRATION, _CURVE, MASK_NAME, TEMPLATE_NAME}
_NAMED = 3  # files in one line


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A fitted detector with everything export and evaluation need.

    Attributes:
        card: what `ModelCard` says.
        module: the scoring module, the routed one of several categories, a trained network, or several of these as one,
            in eval mode.
        references: ``(name, PNG bytes)`` of a few good images, moved a little where the model was fitted on
            them, and of the same with planted defects.
        calibration: ``(name, PNG bytes)`` of more good images at network size, and of some with planted defects, from
            which an export takes the ranges and thresholds of reduced precisions; a bundle does not carry them.
        region: the part of the images that is judged, as the card says; None: all of it.
        align: how the part's pose is found and undone, as the card says; None: not at all.
    """

    card: ModelCard
    module: Module
    references: tuple[tuple[str, bytes], ...]
    calibration: tuple[tuple[str, bytes], ...] = ()
    region: Region | None = None
    align: Alignment | None = None

    @property
    def threshold(self) -> Threshold:
        return self.card.threshold.to_threshold()

    @property
    def limits(self) -> Limits:
        """The thresholds that scores are compared with."""
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
            align=self.align,
            bits=self.card.bits,
        )

    def inspector(self, name: str = "model") -> Inspector:
        """Return what judges frames with this model on torch; close it, or use it as a context manager.

        Args:
            name: what is inspected, for messages.

        Example:
            >>> with model.inspector() as inspect:
            ...     print(inspect(image).score)
        """
        # Categories have names where frames are routed to them; otherwise there is one, of all.
        sections = self.card.normals
        known = unpack_known(self.card.provenance())
        normals = {
            name if self.card.routing else None: replace(section.to_normals(), known=known)
            for name, section in sections.items()
        }
        return Inspector(
            self.exportable(name).torch_backend(),
            height=self.card.height,
            width=self.card.width,
            threshold=self.limits,
            name=name,
            why="a model directory runs on torch",
            region=self.region,
            tiles=self.tiles,
            align=self.align,
            bits=self.card.bits,
            normals=normals,
        )

    @property
    def tiles(self) -> Tiles | None:
        """How pictures are cut, None where they are judged whole."""
        section = self.card.tiles
        if section is None:
            return None
        return Tiles(section.rows, section.columns, section.overlap, self.card.grid)

    def with_learned_defects(self, learned: LearnedDefectsCard) -> TrainedModel:
        """Return the model whose card says what it learned from the defects at hand."""
        assert self.card.defects is not None
        defects = self.card.defects.model_copy(update={"learned": learned})
        return replace(self, card=self.card.model_copy(update={"defects": defects}))

    def planted_defects(self) -> list[Verdict]:
        """Return the verdicts on the images with a planted defect that the model holds.

        Defects painted on training images, the rest of which the model has seen: a warning where most of them pass,
        no promise of what it does with real ones.
        """
        model = self.exportable("model")
        size = (model.height, model.width)
        images = [model.prepare(decode_image(data, name)) for name, data in self.references if _is_planted(name)]
        if model.tiles is None:  # which lie in these at network size
            images += [resize(decode_image(data, name), *size) for name, data in self.calibration if _is_planted(name)]
        backend, limits = model.torch_backend(), model.limits
        return [limits.judge(backend.run(image[None]), 0) for image in images]

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
            if self.align is not None:
                (temporary / TEMPLATE_NAME).write_bytes(encode_template(self.align))
            state = self.module.save_tensors() if isinstance(self.module, RoutedModule) else self.module.state_dict()
            tensors = {name: tensor.contiguous() for name, tensor in state.items()}
            save_file(tensors, temporary / _WEIGHTS)
            if self.card.training is not None:
                (temporary / _CURVE).write_bytes(draw_log(self.card.training.log))
            # Last, because its presence is what makes the folder a model.
            (temporary / CARD_FILE).write_text(json.dumps(self.card.model_dump(), indent=2, sort_keys=True) + "\n")
            wait_for_disk(temporary)
            swap_directory(temporary, path)
        except Exception as error:
            if isinstance(error, OSError) or "safetensors" in type(error).__module__:
                raise BundleError(f"cannot write {path}: {reason(error)}; nothing was changed") from error
            raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def check_model_path(path: Path) -> None:
    """Raise `ConfigError` where something that is no model is in the way; call it before training, too."""
    if not path.exists():
        return
    inside = {one.name for one in path.iterdir()} if path.is_dir() else {""}
    if inside and CARD_FILE not in inside:
        raise ConfigError(f"{path} exists and is no model directory; choose another -o or remove it")
    others = sorted(name for name in inside - _OWN if not name.startswith("."))
    if others:
        more = " …" if len(others) > _NAMED else ""
        raise ConfigError(
            f"{path} holds files that are not of its model ({', '.join(others[:_NAMED])}{more}) and would be lost; "
            "move them away, or choose another -o"
        )


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
    return TrainedModel(card, module, references, calibration, _read_region(path, card), _read_align(path, card))


def _is_planted(name: str) -> bool:
    return ReferenceName.parse(name).kind == "planted"


def _read_region(path: Path, card: ModelCard) -> Region | None:
    section = card.region
    if section is None:
        return None
    try:
        mask = None if section.mask is None else (path / section.mask).read_bytes()
        return section.to_region(mask)
    except (OSError, ConfigError, DataError) as error:
        raise BundleError(f"{path} is damaged: its region cannot be read ({reason(error)}); fit again") from error


def _read_align(path: Path, card: ModelCard) -> Alignment | None:
    section = card.align
    if section is None:
        return None
    try:
        return section.to_alignment((path / section.template).read_bytes())
    except (OSError, ConfigError, DataError) as error:
        raise BundleError(f"{path} is damaged: its alignment cannot be read ({reason(error)}); fit again") from error


def _rebuild(card: ModelCard, tensors: dict[str, torch.Tensor]) -> Module:
    detector = create_detector(card.detector, card.settings)
    spec = BackboneSpec(card.backbone["name"], "random", tuple(card.backbone["strides"]))
    size = (card.height, card.width)
    if isinstance(detector, Ensemble):
        return _rebuild_ensemble(detector, spec, card, tensors)
    if learns(card.detector):
        return load_learned(detector, spec, size, tensors)
    if not pools_categories(card.detector) and card.routing is None:
        return _rebuild_closed_form(detector, spec, card, tensors)
    extractor = build_extractor(build_backbone(spec, size, load_weights=False), size)
    if pools_categories(card.detector) != (card.routing is not None):
        raise ConfigError(
            f"{CARD_FILE} says how a model of several categories was made, or does not, unlike its detector"
        )
    assert card.routing is not None
    routed: RoutedModule = detector.empty(extractor, tensors, card.seed)
    if len(routed.heads) != len(card.routing.categories):
        raise ConfigError(f"{len(routed.heads)} heads for {len(card.routing.categories)} categories")
    routed.load_tensors(tensors)
    return routed.eval().requires_grad_(False)


def _rebuild_ensemble(
    ensemble: Ensemble, spec: BackboneSpec, card: ModelCard, tensors: Mapping[str, torch.Tensor]
) -> EnsembleModule:
    size = (card.height, card.width)
    modules: list[ScoringModule | LearnedModule] = []
    for place, member in enumerate(ensemble.members):
        prefix = f"members.{place}."
        own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        spec_of_member = ensemble.of_member(member, spec)
        if is_learned(member):
            modules.append(load_learned(member, spec_of_member, size, own))
        else:
            modules.append(_rebuild_closed_form(member, spec_of_member, card, own))
    count = len(modules)
    module = EnsembleModule(modules, [_grid(one) for one in modules], np.zeros(count), np.ones(count))
    module.load_state_dict(dict(tensors))
    return module.eval().requires_grad_(False)


def _grid(module: ScoringModule | LearnedModule) -> tuple[int, int]:
    return module.grid if isinstance(module, LearnedModule) else module.extractor.grid


def _rebuild_closed_form(
    detector: Any, spec: BackboneSpec, card: ModelCard, tensors: dict[str, torch.Tensor]
) -> ScoringModule:
    size = (card.height, card.width)
    extractor = build_extractor(build_backbone(spec, size, load_weights=False), size)
    extractor = detector.extractor(extractor, card.seed)
    head = detector.empty_head({k.removeprefix("head."): v for k, v in tensors.items() if k.startswith("head.")})
    term = None
    if "defects.weight" in tensors:
        term = DefectTerm(torch.empty(extractor.channels), torch.empty(()), torch.empty(()))
    module = ScoringModule(extractor, head, smooth=bool(detector.settings.smooth), defects=term)
    module.load_state_dict(tensors)
    return module.eval().requires_grad_(False)
