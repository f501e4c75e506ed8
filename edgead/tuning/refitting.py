"""Smaller networks and banks for ``edgead tune``: a model fitted again, at other sizes and with cheaper settings."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from edgead.budget.choosing import varied
from edgead.data import Category, open_category
from edgead.detectors import create_detector, learns, members, pools_categories
from edgead.export.exporting import export_bundle
from edgead.export.options import DEFAULT_MAX_DROP
from edgead.features.backbones import BackboneSpec, build_backbone, size_step
from edgead.features.features import build_extractor
from edgead.fitting import fit
from edgead.fitting.again import config_again, require_same_backbone, require_same_images, spec_of
from edgead.fitting.audit import exclude_images
from edgead.model.model import TrainedModel
from edgead.model.model_card import check_size, read_card
from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.device.tuning.report import TuneReport
from edgead.runtime.device.tuning.tune import TuneOptions, tune
from edgead.runtime.errors import ConfigError, DataError, ExportError
from edgead.runtime.inspection.device_profile import Choice
from edgead.runtime.progress import Progress, silent
from edgead.tuning.tuning import MOST_NORMALS, good_pictures

FACTORS = (1.0, 0.75, 0.5)  # of the model's size, where nobody names sizes

_LEAST_SIDE = 64
_LEAST_HELD_OUT = 4
_RUNGS = 3  # settings of each size: the model's own, and every second of the detector's ladder below it


@dataclass(frozen=True, slots=True)
class Variant:
    """One size and setting: ``settings`` are all of the detector's, ``label`` names what differs."""

    size: tuple[int, int]
    settings: dict[str, Any]
    label: str

    def to_dict(self) -> dict[str, Any]:
        return {"height": self.size[0], "width": self.size[1], "settings": self.settings, "label": self.label}


@dataclass(frozen=True, slots=True)
class Refit:
    """The outcome.

    Attributes:
        variants: cheap to expensive; the last one is the model as it is.
        skipped: label -> why it could not be exported.
        fitted, held_out: good images that each was fitted on, and that it was judged by.
        report: of all that were exported; its bundles are named by the labels.
        chosen: None where none keeps within the budgets.
    """

    variants: tuple[Variant, ...]
    skipped: dict[str, str]
    fitted: int
    held_out: int
    report: TuneReport
    chosen: Variant | None

    @property
    def changed(self) -> bool:
        """Whether another one than the model as it is was chosen."""
        return self.chosen is not None and self.chosen != self.variants[-1]

    def to_dict(self) -> dict[str, Any]:
        return {
            "variants": [variant.to_dict() for variant in self.variants],
            "skipped": self.skipped,
            "fitted": self.fitted,
            "held_out": self.held_out,
            "chosen": None if self.chosen is None else self.chosen.label,
            "report": self.report.to_dict(),
        }


class Refitting:
    """A model that can be fitted again.

    Args:
        bundle: exported from the model.
        model: directory that ``edgead fit`` wrote; of a closed-form detector, one category, whole pictures.
        category: what it was fitted on.
        cache: of calibrated ranges.

    Raises:
        ConfigError: a model that cannot be fitted again like this, or a bundle of another one.
        DataError: other images than the model's, or too few.
        BundleError: bundle or model are damaged.
    """

    def __init__(self, bundle: Path, model: Path, category: Path, cache: Path | None = None) -> None:
        self._card = card = read_card(model)
        own_weights = card.backbone["weights"] not in ("package", "hub", "random")  # of a file only the name is known
        alone = len(members(card.detector)) == 1 and not learns(card.detector) and not pools_categories(card.detector)
        special = own_weights or not alone
        if special or any(one is not None for one in (card.region, card.tiles, card.align)):
            raise ConfigError(
                f"{model} (a trained network, several detectors or categories, own weights, --roi, --tiles, --align) "
                "is not fitted again here; fit and export it at other sizes, and compare: "
                "edgead tune A.edgead B.edgead --normals DIR"
            )
        if card.defects is not None and card.defects.learned is not None and card.defects.learned.strength:
            raise ConfigError(
                f"{model} learned from defects, which its variants would not; fit and export it at other sizes, and "
                "compare: edgead tune A.edgead B.edgead --normals DIR"
            )
        self._source = category
        given = open_category(category, train_only=True)
        require_same_images(card, given, model, category)
        # What the model was kept from learning is kept from its variants.
        self._excluded = [] if card.audit is None else list(card.audit.excluded)
        (self._category,) = exclude_images([given], self._excluded)
        with Bundle.open(bundle) as opened:
            manifest = opened.manifest
            of_model = manifest.provenance.get("data_fingerprint") == card.fingerprint
            if not of_model or manifest.detector.name != card.detector:
                raise ConfigError(f"{bundle} was not exported from {model}; give the model directory that it came from")
            self._drops = {key: one.max_drop or DEFAULT_MAX_DROP for key, one in manifest.precisions.items()}
        count = len(self._category.train)
        held_out = min(MOST_NORMALS, max(_LEAST_HELD_OUT, count // 4))
        if count < 3 * _LEAST_HELD_OUT:
            raise DataError(
                f"{count} good images are too few to fit on some and judge by others, which takes "
                f"{3 * _LEAST_HELD_OUT}; add images, or omit --model"
            )
        order = np.random.default_rng(card.seed).permutation(count).tolist()
        self._held_out = [self._category.train[index].path for index in sorted(order[:held_out])]
        self._fitted = [self._category.train[index].path for index in sorted(order[held_out:])]
        self._cache = cache

    def plan(self, sides: Sequence[int] = ()) -> list[Variant]:
        """Return what will be tried, cheap to expensive; ``sides``: heights in pixels, the model's shape kept.

        Raises:
            ConfigError: a size that no network takes, or a larger one than the model's.
        """
        card = self._card
        detector = create_detector(card.detector, card.settings)
        rungs: list[tuple[tuple[int, int], Any]] = []
        for size in sorted({*self._sizes(sides), (card.height, card.width)}):
            extractor = build_extractor(build_backbone(self._spec, size), size)
            cells = extractor.grid[0] * extractor.grid[1]
            ladder = list(detector.ladder(extractor.channels, cells, len(self._fitted), ()))
            # The model's own settings may lie beyond what fewer images can fill.
            last = ladder.index(detector.settings) if detector.settings in ladder else len(ladder) - 1
            kept = ladder[: last + 1][::-2][:_RUNGS][::-1]
            rungs += [(size, one) for one in [*kept[:-1], detector.settings]]
        changes = varied([settings for _, settings in rungs])
        return [
            Variant(size, settings.model_dump(), _label(size, change))
            for (size, settings), change in zip(rungs, changes, strict=True)
        ]

    def compare(
        self,
        variants: Sequence[Variant],
        choice: Choice,
        options: TuneOptions,
        progress: Progress = silent,
    ) -> Refit:
        """Fit and export each variant on part of the images, and compare them by the others; no test image is read.

        Args:
            variants: from `plan`; the model as it is stays where it keeps within the budgets, unless another is better
                by more than one standard error.
            choice: what runs all of them.
            options: budgets and frames; which combinations are tried, and what stays, is said by the above.
            progress: called with ``(stage, done, total)``.

        Raises:
            ExportError: not one could be exported.
        """
        skipped: dict[str, str] = {}
        with TemporaryDirectory(prefix="edgead-variants-") as folder:
            images = _write_list(self._category, self._fitted, Path(folder))
            exported: dict[Path, Variant] = {}
            for number, variant in enumerate(variants):
                progress("sizes and settings", number, len(variants))
                path = Path(folder, f"{variant.label}.edgead")
                try:
                    self._export(self._fit(images, variant), path, [choice.precision])
                except ExportError as error:
                    skipped[variant.label] = str(error)
                else:
                    exported[path] = variant
            progress("sizes and settings", len(variants), len(variants))
            if not exported:
                raise ExportError(f"no size could be exported: {next(iter(skipped.values()))}")
            # The bundle that is there is not given up for a difference that may be chance.
            keep = list(exported.values()).index(variants[-1]) if variants[-1] in exported.values() else None
            report = tune(
                list(exported),
                replace(options, like=choice, keep=keep),
                pictures=good_pictures(self._held_out, None, self._card.seed, self._card.bits),
                progress=progress,
            )
        chosen = None if report.chosen is None else list(exported.values())[report.chosen.bundle]
        return Refit(tuple(variants), skipped, len(self._fitted), len(self._held_out), report, chosen)

    def write(self, variant: Variant, output: Path) -> None:
        """Fit a variant on all images and export it, in the precisions that the bundle had, to ``output``.

        Raises:
            ParityError: a precision did not keep to what it promises; nothing is written.
        """
        self._export(self._fit(self._source, variant, self._excluded), output, list(self._drops))

    @property
    def _spec(self) -> BackboneSpec:
        return spec_of(self._card)

    def _sizes(self, sides: Sequence[int]) -> Iterator[tuple[int, int]]:
        card, step = self._card, size_step(self._spec.name)
        for side in sides or [round(card.height * factor / step) * step for factor in FACTORS]:
            width = round(card.width * side / card.height / step) * step
            if not sides and min(side, width) < _LEAST_SIDE:
                continue
            size = check_size(side, width)
            if size[0] > card.height:
                raise ConfigError(f"--size {side} is larger than the model's {card.height}; fit a larger model first")
            yield size

    def _fit(self, images: Path, variant: Variant, exclude: Sequence[str] = ()) -> TrainedModel:
        card = self._card
        again = config_again(card, exclude=exclude)
        # A model that learned from defects is refused above.
        model = fit([images], replace(again, settings=variant.settings, size=variant.size, learn_defects=False))
        require_same_backbone(card, model.card)
        return model

    def _export(self, model: TrainedModel, path: Path, precisions: Sequence[str]) -> None:
        drop = max(self._drops[precision] for precision in precisions)
        export_bundle(model.exportable(path.stem), path, precisions=precisions, max_drop=drop, cache=self._cache)


def _label(size: tuple[int, int], change: dict[str, Any]) -> str:
    values = (
        f"{name}={value:.6g}" if isinstance(value, float) else f"{name}={value}" for name, value in change.items()
    )
    return " ".join([f"{size[0]}x{size[1]}", *values]).replace("/", "-")


def _write_list(category: Category, files: Sequence[Path], folder: Path) -> Path:
    """Write a CSV list of some images of a category, under its name."""
    path = folder / f"{category.name}.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        writer.writerows([str(one.resolve()), "good", "train"] for one in files)
    return path
