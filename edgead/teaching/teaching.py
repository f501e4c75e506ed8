"""One lesson: fit again with the confirmed parts, export, prove; written only where the gate passes."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from edgead.data import Category, open_category
from edgead.data.layouts import list_defects
from edgead.detectors import learns, members, pools_categories
from edgead.export.exporting import export_bundle
from edgead.export.options import DEFAULT_MAX_DROP
from edgead.fitting import fit
from edgead.fitting.again import config_again, require_same_backbone, require_same_images
from edgead.fitting.audit import exclude_images, image_names
from edgead.model.model import TrainedModel, load_model
from edgead.model.model_card import ModelCard
from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.bundle.writing import check_bundle_path, replace_manifest
from edgead.runtime.errors import ConfigError, DataError
from edgead.runtime.files import reason
from edgead.runtime.imaging.view import View
from edgead.runtime.inspection.inspector import Inspector
from edgead.runtime.inspection.run_config import RunConfig
from edgead.runtime.journal.reader import JournalReader
from edgead.runtime.progress import Progress, silent
from edgead.teaching.gate import GateReport, Proof, draw, resolve_waivers
from edgead.teaching.growing import PREFIX, file_name, grow
from edgead.teaching.lesson_report import TeachReport, images_path, model_path
from edgead.teaching.lessons import Lessons, part_name, read_lessons
from edgead.teaching.lineage import PROVENANCE_KEY, Lineage

DEFAULT_SAMPLE = 200

_log = logging.getLogger("edgead.teach")


@dataclass(frozen=True, slots=True)
class TeachConfig:
    """How a model is taught.

    Attributes:
        bundle: the one that is to be replaced; None: the newest in the record that was exported from the model.
        backend, precision: what the gate judges with; the precision None is that in which the old bundle judged last.
        defects: folder of defects that the model was fitted with (``fit --defects``).
        sample: unlabelled parts that old and new are compared on, at most.
        waivers: ``row:N`` or ``part:ID`` of a labelled part -> why its problem does not stand in the way.
        teacher: who answers for the waivers.
        cache: of calibrated ranges of INT8.

    Raises:
        ConfigError: waivers without a name, or without a reason.
    """

    bundle: Path | None = None
    backend: str = "auto"
    precision: str | None = None
    defects: Path | None = None
    sample: int = DEFAULT_SAMPLE
    waivers: Mapping[str, str] = field(default_factory=dict)
    teacher: str | None = None
    cache: Path | None = None

    def __post_init__(self) -> None:
        if self.waivers and not (self.teacher or "").strip():
            raise ConfigError("who waives a part answers for it: give --by NAME")
        for part, why in self.waivers.items():
            if not why.strip():
                raise ConfigError(f"--waive {part} needs its reason: --waive '{part}=…'")


def teach(
    model: Path,
    images: Path,
    record: Path,
    out: Path,
    config: TeachConfig | None = None,
    *,
    progress: Progress = silent,
) -> TeachReport:
    """Fit a model again with the parts that people confirmed in a record, and prove that nothing right becomes wrong.

    The new model is that of a fit on all images, to the bit: confirmed good parts are normals, confirmed defects set
    the operating point and sharpen the score where that helps, and the threshold is made anew. What was right is
    proved on every labelled part, see `edgead.teaching.gate.Proof`.

    Args:
        model: directory of ``edgead fit``, of a closed-form detector and one category.
        images: what it was fitted on.
        record: folder of a journal, which may be written meanwhile.
        out: the new bundle; model and training images go beside it, see `model_path` and `images_path`.
        config: how; None: the defaults of `TeachConfig`.
        progress: called with ``(stage, done, total)``.

    Returns:
        What came of it; nothing was written unless ``report.gate.passed``.

    Raises:
        ConfigError, DataError, BundleError: what is wrong and what to do, in one line; nothing was written.
        ParityError: a precision did not keep to what it promises.

    Example:
        >>> report = teach(Path("plate.model"), Path("parts/plate"), Path("line3"), Path("plate.next.edgead"))
        >>> report.gate.passed
        True
    """
    config, started = config or TeachConfig(), time.perf_counter()
    check_bundle_path(out)
    _require_free(out)
    taught_from = load_model(model)
    card = taught_from.card
    _require_teachable(card, model)
    given = _given(images, model, card, config)
    with JournalReader(record) as reader:
        lineage = Lineage(reader, card, model, config.bundle)
        lessons = _lessons(reader, lineage)
        waivers = resolve_waivers(config.waivers, lessons)
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{out.stem}.teaching-", dir=out.parent) as name:
            work = _Lesson(Path(name), card, given.with_bits(card.bits), out)
            fresh = work.fit(reader, lessons, taught_from, progress)
            exported = work.export(fresh, lineage.old, config)
            report = work.prove((lineage, exported), reader, lessons, config, (waivers, progress))
            still, scored = _scored_without_their_own(fresh.card, work.grown)
            found = TeachReport(
                out,
                lineage.old,
                lessons,
                report,
                taught_from.threshold,
                fresh.threshold,
                still,
                scored,
                time.perf_counter() - started,
            )
            if report.passed:
                work.write(exported, fresh, _provenance(found, lineage.sha256, config))
    return replace(found, seconds=time.perf_counter() - started)


class _Lesson:
    """One fit with more images, in a folder of its own until it is proved."""

    def __init__(self, folder: Path, card: ModelCard, given: Category, out: Path) -> None:
        self._folder, self._card, self._given, self._out = folder, card, given, out
        self.grown = folder / "images" / given.name

    def fit(self, reader: JournalReader, lessons: Lessons, before: TrainedModel, progress: Progress) -> TrainedModel:
        """Return the model of all images."""
        excluded = [] if self._card.audit is None else list(self._card.audit.excluded)
        (kept,) = exclude_images([self._given], excluded)
        self._before = [one for one in kept.train if one.path.name.startswith(PREFIX)] + list(kept.defects)
        grow(kept, reader, lessons, self.grown)
        view = View(self._card.height, self._card.width, before.region, align=before.align)
        again = config_again(self._card, view)
        # What people confirmed is learned, however unlike the others it is: that is what they say by it.
        fresh = fit(self.grown, replace(again, keep_stray=True), progress=progress)
        require_same_backbone(self._card, fresh.card)
        stray = {} if fresh.card.audit is None else fresh.card.audit.stray
        for name, why in stray.items():
            if Path(name).name.startswith(PREFIX):
                _log.warning("a part confirmed as good is unlike all others, look at it again: %s (%s)", name, why)
        return fresh

    def export(self, fresh: TrainedModel, old: Path, config: TeachConfig) -> Path:
        """Return the new bundle, in the precisions that the old one has."""
        with Bundle.open(old) as bundle:
            precisions = bundle.manifest.precisions
            # FP32 has none of its own.
            drops = [one.max_drop for one in precisions.values() if one.max_drop is not None]
        path = self._folder / self._out.name
        export_bundle(
            fresh.exportable(self._out.stem),
            path,
            precisions=list(precisions),
            max_drop=max(drops, default=DEFAULT_MAX_DROP),
            cache=config.cache,
        )
        return path

    def prove(
        self,
        bundles: tuple[Lineage, Path],
        reader: JournalReader,
        lessons: Lessons,
        config: TeachConfig,
        asked: tuple[Mapping[int, str], Progress],
    ) -> GateReport:
        """Judge with the old bundle and the new one, as the line judged."""
        lineage, exported = bundles
        run = RunConfig(config.backend, config.precision or lineage.precision())
        sample = draw(lessons.unlabelled, config.sample, self._card.seed)
        taught = {file_name(row) for row in (*lessons.labelled(), *lessons.disputed)}
        earlier = [one for one in self._before if one.path.name not in taught]
        with (
            Bundle.open(lineage.old) as references,
            Inspector.open(lineage.old, run) as old,
            Inspector.open(exported, run, made_here=True) as new,
        ):
            return Proof(old, new, reader, *asked).prove(lessons, earlier, references, sample)

    def write(self, exported: Path, fresh: TrainedModel, teaching: dict[str, Any]) -> None:
        """Put bundle, model and training images in place, the bundle last: who sees it finds the others."""
        with Bundle.open(exported, made_here=True) as bundle:
            manifest = bundle.manifest
        provenance = {**manifest.provenance, PROVENANCE_KEY: teaching}
        written: list[Path] = []
        try:
            _require_free(self._out)
            (self._folder / "images").rename(images_path(self._out))
            written.append(images_path(self._out))
            model = self._folder / "model"
            fresh.save(model)
            model.rename(model_path(self._out))
            written.append(model_path(self._out))
            fresh_manifest = manifest.model_copy(update={"provenance": provenance})
            replace_manifest(exported, self._out, fresh_manifest, made_here=True)
        except BaseException as error:
            for path in written:  # and nothing that somebody else wrote
                shutil.rmtree(path, ignore_errors=True)
            if isinstance(error, OSError):
                raise DataError(f"cannot write beside {self._out}: {reason(error)}; nothing was changed") from error
            raise


def _require_free(out: Path) -> None:
    for path in (out, model_path(out), images_path(out)):
        if path.exists():
            raise ConfigError(f"{path} exists; choose another -o, or move it away")


def _given(images: Path, model: Path, card: ModelCard, config: TeachConfig) -> Category:
    """Return what the model was fitted on, the defects included."""
    given = open_category(images, train_only=True)
    require_same_images(card, given, model, images)
    if config.defects is not None:
        given = replace(given, defects=(*given.defects, *list_defects(config.defects)))
    had = 0 if card.defects is None else card.defects.images
    if len(given.defects) < had:
        raise ConfigError(
            f"{model} was fitted with {had} defects at hand, and {images} has {len(given.defects)}; give the others "
            "with --defects DIR, or the new model forgets them"
        )
    return given


def _lessons(reader: JournalReader, lineage: Lineage) -> Lessons:
    lessons = read_lessons(reader, lineage)
    for rows, why in (
        (lessons.foreign, "were judged by other models, and teach nothing to this one"),
        (lessons.disputed, "are disputed, or somebody was unsure of them; they teach nothing"),
        (lessons.without_image, "are labelled, but the record has no image of them; they teach nothing"),
    ):
        if rows:
            names = ", ".join(map(part_name, rows[:5])) + (" …" if len(rows) > 5 else "")
            _log.warning("%d parts %s: %s", len(rows), why, names)
    if not lessons.good and not lessons.defective:
        raise DataError(
            f"the record {reader.folder} has no labelled part of this model with its image, so there is nothing to "
            "learn; label parts: edgead review"
        )
    return lessons


def _require_teachable(card: ModelCard, model: Path) -> None:
    if learns(card.detector) or pools_categories(card.detector) or len(members(card.detector)) > 1:
        raise ConfigError(
            f"{model} is of '{card.detector}', which cannot be fitted again within a minute; fit it with the images "
            "of the record, or make its threshold anew: edgead calibrate"
        )
    if card.backbone["weights"] not in ("package", "hub", "random"):
        raise ConfigError(f"{model} has own backbone weights, of which only the name is known; fit it with more images")


def _scored_without_their_own(card: ModelCard, grown: Path) -> tuple[int, int]:
    """Return how many taught good parts lie above the threshold without their own image, of how many scored so."""
    names = image_names([open_category(grown, train_only=True)])
    rows = range(len(card.normal_scores)) if card.scored is None else card.scored
    scores = [
        score for row, score in zip(rows, card.normal_scores, strict=True) if Path(names[row]).name.startswith(PREFIX)
    ]
    return sum(score > card.threshold.value for score in scores), len(scores)


def _provenance(found: TeachReport, old: str, config: TeachConfig) -> dict[str, Any]:
    """Return what the new bundle says of how it came to be; the old one's digest is what it may replace."""
    number, digest = found.lessons.head
    taught = (*found.lessons.good, *found.lessons.defective)
    people = sorted({name for lesson in taught for name in lesson.people})
    gate = found.gate.to_dict()
    waived = [one for one in found.gate.labelled if one.waived is not None]
    return {
        "old_bundle": old,
        "record": {"rows": number, "hash": digest},
        "good": len(found.lessons.good),
        "defects": len(found.lessons.defective),
        "labelled_by": people,
        "gate": {name: gate[name] for name in ("false_alarms", "escapes")},
        "waived": [
            {"part": one.name, "problem": one.problem, "why": one.waived, "by": config.teacher} for one in waived
        ],
    }
