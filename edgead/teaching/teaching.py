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
from edgead.detectors import learns, pools_categories
from edgead.export.exporting import export_bundle
from edgead.export.options import DEFAULT_MAX_DROP
from edgead.fitting import fit
from edgead.fitting.again import config_again, require_same_backbone, require_same_images
from edgead.fitting.audit import exclude_images, image_names
from edgead.model.model import TrainedModel, load_model
from edgead.model.model_card import ModelCard
from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.bundle.manifest import Manifest
from edgead.runtime.bundle.writing import replace_manifest
from edgead.runtime.decision.threshold import Threshold
from edgead.runtime.errors import ConfigError, DataError
from edgead.runtime.files import reason
from edgead.runtime.imaging.view import View
from edgead.runtime.inspection.inspector import Inspector
from edgead.runtime.inspection.run_config import RunConfig
from edgead.runtime.journal.reader import JournalReader
from edgead.runtime.progress import Progress, silent
from edgead.teaching.gate import GateReport, draw, prove, require_known
from edgead.teaching.growing import PREFIX, grow
from edgead.teaching.lessons import Lessons, read_lessons

PROVENANCE_KEY = "teaching"
DEFAULT_SAMPLE = 200

_log = logging.getLogger("edgead.teach")


@dataclass(frozen=True, slots=True)
class TeachConfig:
    """How a model is taught.

    Attributes:
        bundle: the one that is to be replaced; None: the newest in the record that was exported from the model.
        backend, precision: what the gate judges with; the precision None is that of full precision.
        sample: unlabelled parts that old and new are compared on, at most.
        waivers: id or row of a labelled part -> why its problem does not stand in the way.
        teacher: who answers for the waivers.
        cache: of calibrated ranges of INT8.

    Raises:
        ConfigError: waivers without a name, or without a reason.
    """

    bundle: Path | None = None
    backend: str = "auto"
    precision: str | None = None
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


@dataclass(frozen=True, slots=True)
class TeachReport:
    """What came of it.

    Attributes:
        out: bundle, model directory and folder of training images, that were written where the gate passed.
        lessons: what the labels of the record gave.
        gate: what it found.
        before, after: thresholds.
        still_rejected: taught good parts that a model without them would still reject, of those that were scored so.
        scored: how many those are.
        seconds: in all.
    """

    out: Path
    old: Path
    lessons: Lessons
    gate: GateReport
    before: Threshold
    after: Threshold
    still_rejected: int
    scored: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form (schema ``edgead.teach/1``)."""
        written = {"bundle": str(self.out), "model": str(model_path(self.out)), "images": str(images_path(self.out))}
        return {
            "schema": "edgead.teach/1",
            "old": str(self.old),
            "written": written if self.gate.passed else None,
            "good": len(self.lessons.good),
            "defects": len(self.lessons.defective),
            "disputed": list(self.lessons.disputed),
            "without_image": list(self.lessons.without_image),
            "threshold": {"old": self.before.to_dict(), "new": self.after.to_dict()},
            "taught_good_parts": {"scored_without_them": self.scored, "still_rejected": self.still_rejected},
            "gate": self.gate.to_dict(),
            "seconds": round(self.seconds, 3),
        }


def model_path(out: Path) -> Path:
    """Return where the model directory of a taught bundle lies."""
    return out.with_suffix(".model")


def images_path(out: Path) -> Path:
    """Return where the training images of a taught bundle lie; the folder in it is the category."""
    return out.with_suffix(".images")


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
    proved on every labelled part, see `edgead.teaching.gate.prove`.

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
    for path in (out, model_path(out), images_path(out)):
        if path.exists():
            raise ConfigError(f"{path} exists; choose another -o, or move it away")
    taught_from = load_model(model)
    _require_teachable(taught_from.card, model)
    given = open_category(images, train_only=True)
    require_same_images(taught_from.card, given, model, images)
    with JournalReader(record) as reader:
        lessons = _lessons(reader, config)
        old = _old_bundle(reader, taught_from.card, model, config.bundle)
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{out.stem}.teaching-", dir=out.parent) as name:
            work = _Lesson(Path(name), taught_from.card, given.with_bits(taught_from.card.bits), out)
            fresh = work.fit(reader, lessons, taught_from, progress)
            exported = work.export(fresh, old, config)
            report = work.prove((old, exported), reader, lessons, config, progress)
            still, scored = _without_them(fresh.card, work.grown)
            found = TeachReport(
                out,
                old,
                lessons,
                report,
                taught_from.threshold,
                fresh.threshold,
                still,
                scored,
                time.perf_counter() - started,
            )
            if report.passed:
                work.write(exported, fresh, _provenance(found, old, reader, config))
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
        grow(kept, reader, [*lessons.good, *lessons.defective], self.grown)
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
            drop = max(one.max_drop or DEFAULT_MAX_DROP for one in precisions.values())
        path = self._folder / self._out.name
        export_bundle(
            fresh.exportable(self._out.stem), path, precisions=list(precisions), max_drop=drop, cache=config.cache
        )
        return path

    def prove(
        self,
        bundles: tuple[Path, Path],
        reader: JournalReader,
        lessons: Lessons,
        config: TeachConfig,
        progress: Progress,
    ) -> GateReport:
        """Judge with the old bundle and the new one."""
        run = RunConfig(config.backend, config.precision)
        sample = draw(lessons.unlabelled, config.sample, self._card.seed)
        with Inspector.open(bundles[0], run) as old, Inspector.open(bundles[1], run, made_here=True) as new:
            return prove(old, new, reader, lessons, sample, config.waivers, progress)

    def write(self, exported: Path, fresh: TrainedModel, teaching: dict[str, Any]) -> None:
        """Put bundle, model and training images in place, the bundle last: who sees it finds the others."""
        with Bundle.open(exported, made_here=True) as bundle:
            manifest = bundle.manifest
        provenance = {**manifest.provenance, PROVENANCE_KEY: teaching}
        try:
            (self._folder / "images").rename(images_path(self._out))
            fresh.save(model_path(self._out))
            replace_manifest(
                exported, self._out, manifest.model_copy(update={"provenance": provenance}), made_here=True
            )
        except BaseException as error:
            for path in (images_path(self._out), model_path(self._out)):
                shutil.rmtree(path, ignore_errors=True)
            if isinstance(error, OSError):
                raise DataError(f"cannot write beside {self._out}: {reason(error)}; nothing was changed") from error
            raise


def _lessons(reader: JournalReader, config: TeachConfig) -> Lessons:
    lessons = read_lessons(reader)
    if not lessons.good and not lessons.defective:
        raise DataError(
            f"the record {reader.folder} has no labelled part with its image, so there is nothing to learn; "
            "label parts: edgead review"
        )
    require_known(config.waivers, lessons)
    for names, why in (
        (lessons.disputed, "are disputed, or somebody was unsure of them; they teach nothing"),
        (lessons.without_image, "are labelled, but the record kept no image of them; they teach nothing"),
    ):
        if names:
            _log.warning("%d parts %s: %s", len(names), why, ", ".join(names[:5]) + (" …" if len(names) > 5 else ""))
    return lessons


def _require_teachable(card: ModelCard, model: Path) -> None:
    if learns(card.detector) or pools_categories(card.detector):
        raise ConfigError(
            f"{model} is of '{card.detector}', which cannot be fitted again within a minute; fit it with the images "
            "of the record, or make its threshold anew: edgead calibrate"
        )
    if card.backbone["weights"] not in ("package", "hub", "random"):
        raise ConfigError(f"{model} has own backbone weights, of which only the name is known; fit it with more images")


def _old_bundle(reader: JournalReader, card: ModelCard, model: Path, given: Path | None) -> Path:
    """Return the bundle that is to be replaced."""
    if given is not None:
        with Bundle.open(given) as bundle:
            if _made_from(bundle.manifest, card):
                return given
        raise ConfigError(f"{given} was not exported from {model}; give the model directory that it came from")
    seen = [str(row.body.get("sha256")) for row in reader.rows("bundle")]
    for digest in reversed(list(dict.fromkeys(seen))):
        try:
            path = reader.bundle(digest)
        except DataError:
            continue
        with Bundle.open(path) as bundle:
            if _made_from(bundle.manifest, card):
                return path
    raise ConfigError(f"no bundle of the record {reader.folder} was exported from {model}; give it with --bundle")


def _made_from(manifest: Manifest, card: ModelCard) -> bool:
    return manifest.provenance.get("data_fingerprint") == card.fingerprint and manifest.detector.name == card.detector


def _without_them(card: ModelCard, grown: Path) -> tuple[int, int]:
    """Return how many taught good parts a model without them would reject, and how many were scored so."""
    names = image_names([open_category(grown, train_only=True)])
    rows = range(len(card.normal_scores)) if card.scored is None else card.scored
    scores = [
        score for row, score in zip(rows, card.normal_scores, strict=True) if Path(names[row]).name.startswith(PREFIX)
    ]
    return sum(score > card.threshold.value for score in scores), len(scores)


def _provenance(found: TeachReport, old: Path, reader: JournalReader, config: TeachConfig) -> dict[str, Any]:
    """Return what the new bundle says of how it came to be; the old one's digest is what it may replace."""
    with Bundle.open(old) as bundle:
        sha256 = bundle.sha256
    number, digest = reader.head()
    taught = (*found.lessons.good, *found.lessons.defective)
    people = sorted({name for lesson in taught for name in lesson.people})
    gate = found.gate.to_dict()
    waived = [one for one in found.gate.labelled if one.waived is not None]
    return {
        "old_bundle": sha256,
        "record": {"rows": number, "hash": digest},
        "good": len(found.lessons.good),
        "defects": len(found.lessons.defective),
        "labelled_by": people,
        "gate": {name: gate[name] for name in ("false_alarms", "escapes")},
        "waived": [
            {"part": one.name, "problem": one.problem, "why": one.waived, "by": config.teacher} for one in waived
        ],
    }
