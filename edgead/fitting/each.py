"""One model for each of many categories: what is there is kept, what fails is written down, the others go on."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgead.data import open_category
from edgead.data.category import Category
from edgead.detectors import create_detector
from edgead.dispatch.node import SharedFolder, read_here, remarks
from edgead.dispatch.workers import FAILURES, Answer, LocalWorkers, Workers, explain_failure
from edgead.features.backbones import BackboneSpec, build_backbone, describe_backbone
from edgead.fitting.config import FitConfig
from edgead.fitting.fit_report import fit_payload, model_warnings
from edgead.fitting.fitting import fit
from edgead.fitting.preparing import check_names
from edgead.model.model import check_model_path
from edgead.model.model_card import CARD_FILE
from edgead.runtime.errors import ConfigError, DataError
from edgead.runtime.files import atomic_write, file_sha256, reason
from edgead.runtime.progress import Progress, silent
from edgead.runtime.sinks.result_json import finite
from edgead.runtime.version import __version__

SCHEMA: Literal["edgead.fit-each/1"] = "edgead.fit-each/1"
FOLDER = "rows"


class FitRow(BaseModel):
    """One category: its model, or the ``error`` that kept it from one.

    Attributes:
        key: digest of all that decides the model; empty where the category could not be read.
        model: name of its directory beside the folder of rows.
        card_sha256: of the model's card, so that another model in its place is noticed.
        warnings: what a person has to know, one line each.
        fit: what ``edgead fit --json`` says.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    schema_name: Literal["edgead.fit-each-row/1"] = Field(default="edgead.fit-each-row/1", alias="schema")
    key: str
    category: str
    model: str
    fitted_at: datetime
    error: str | None = None
    card_sha256: str | None = None
    warnings: tuple[str, ...] = ()
    fit: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        return self.model_dump(mode="json", by_alias=True)


@dataclass(frozen=True, slots=True)
class FitJob:
    """One category to fit, into ``output``; the digest is of its training images and the defects beside them."""

    name: str
    path: Path
    output: Path
    config: FitConfig
    key: str
    images_sha256: str


@dataclass(frozen=True, slots=True)
class Errand:
    """What a node is asked: a job with absolute paths, and the folder that its model goes into."""

    job: FitJob
    shared: SharedFolder

    @property
    def name(self) -> str:
        return self.job.name


Fitting: TypeAlias = Callable[[Iterable[FitJob]], Iterator[Answer[FitRow]]]


@dataclass(frozen=True, slots=True)
class EachListener:
    """Who hears of the work: a line on what was done, a line on what is wrong, and how far it is."""

    note: Callable[[str], None]
    warn: Callable[[str], None]
    progress: Progress


def plan_each(paths: Sequence[Path], config: FitConfig, folder: Path) -> tuple[list[FitJob], list[FitRow]]:
    """Return the fits of all categories that can be read, and the rows of those that cannot.

    Raises:
        ConfigError: settings that no category can be fitted with, or two categories of one name.
    """
    method = create_detector(config.detector, config.settings)
    config.check(1)
    if (config.mask, config.defects) != (None, None) or config.exclude:
        raise ConfigError("--mask, --defects and --exclude are of one category; fit it alone, or put defects in train/")
    spec = BackboneSpec.parse(config.backbone, config.taps)
    info = describe_backbone(spec, build_backbone(spec, config.network_size()))
    asked = asdict(config) | {
        "backbone": [info.name, info.weights_sha256, list(spec.strides)],
        "size": config.network_size(),
        "settings": method.settings.model_dump(mode="json"),
        # A budget chooses what is left open.
        "given": sorted(config.settings or ()) if config.budgeted else None,
    }
    jobs, failed, opened = [], [], []
    for path in paths:
        try:
            category = _open(path.expanduser())
            check_names([category])
            images = _digest(category)
        except FAILURES as error:
            failed.append(_failed(path.name or str(path), "", explain_failure(error)))
            continue
        opened.append(category)
        made_of = {"edgead": __version__, **asked, "images": images}
        key = hashlib.sha256(json.dumps(made_of, sort_keys=True, default=str).encode()).hexdigest()
        output = folder / _model_name(category.name)
        jobs.append(FitJob(category.name, path.expanduser(), output, config, key, images))
    check_names(opened)
    return jobs, failed


def fit_each(
    folder: Path, jobs: Sequence[FitJob], listener: EachListener, fitting: Fitting | None = None
) -> list[FitRow]:
    """Return the rows of all jobs, in their order, fitting those whose model is not in ``folder`` yet.

    A row is written when its model is; what failed before is tried again.

    Args:
        fitting: answers for jobs in any order; None: this process fits one after the other.

    Raises:
        DataError: a row cannot be written.
    """
    rows: dict[int, FitRow] = {}
    for index, job in enumerate(jobs):
        kept = _kept(folder, job, listener.warn)
        if kept is not None:
            rows[index] = kept
    left = [index for index in range(len(jobs)) if index not in rows]
    if rows:
        listener.note(f"{len(rows)} of {len(jobs)} models are there already and are skipped")
    if fitting is None:
        fitting = _fit_here(listener.progress)
    listener.progress("models", len(rows), len(jobs))
    for answer in fitting(jobs[index] for index in left):
        index = left[answer.index]
        job = jobs[index]
        row = answer.value or _failed(job.name, job.key, answer.lost or "")
        _write(folder, row)
        rows[index] = row
        listener.progress("models", len(rows), len(jobs))
        _tell(row, len(jobs) - len(rows), listener)
    return [rows[index] for index in range(len(jobs))]


def fit_elsewhere(workers: Workers, shared: SharedFolder) -> Fitting:
    """Return what fits jobs by workers in other processes."""

    def work(jobs: Iterable[FitJob]) -> Iterator[Answer[FitRow]]:
        return workers.work(fit_there, (Errand(job, shared) for job in jobs))

    return work


def fit_there(errand: Errand) -> FitRow:
    """Fit a job on this node, or say in its row what the node lacks."""
    job = errand.job
    try:
        errand.shared.require()
        read_here(job.path, _open, job.images_sha256, _digest)
    except FAILURES as error:
        return _failed(job.name, job.key, explain_failure(error))
    return fit_or_fail(job, silent)


def fit_or_fail(job: FitJob, progress: Progress) -> FitRow:
    """Fit a job and write its model; where it fails its row says why."""
    checkpoint = job.output.with_name(f".{job.output.name}.training")
    said: list[str] = []
    started = time.perf_counter()
    try:
        check_model_path(job.output)
        with remarks(said.append):
            model = fit([job.path], job.config, checkpoint=checkpoint, progress=progress)
        model.save(job.output)
        checkpoint.unlink(missing_ok=True)
        payload = finite(fit_payload(model, job.output, time.perf_counter() - started))
        card = file_sha256(job.output / CARD_FILE)
    except FAILURES as error:
        return _failed(job.name, job.key, explain_failure(error))
    warnings = (*dict.fromkeys(said), *model_warnings(model, payload))
    return FitRow(
        key=job.key,
        category=job.name,
        model=job.output.name,
        fitted_at=_now(),
        card_sha256=card,
        warnings=warnings,
        fit=payload,
    )


def row_path(folder: Path, category: str) -> Path:
    """Return where the row of a category lies."""
    return folder / FOLDER / f"{category}.json"


def _fit_here(progress: Progress) -> Fitting:
    return lambda jobs: LocalWorkers().work(lambda job: fit_or_fail(job, progress), jobs)


def _kept(folder: Path, job: FitJob, warn: Callable[[str], None]) -> FitRow | None:
    """Return the row of a job where it is of this job, and its model is still the one that it tells of."""
    path = row_path(folder, job.name)
    if not path.exists():
        return None
    try:
        row = FitRow.model_validate(json.loads(path.read_bytes()))
        if row.key != job.key or row.fit is None:
            return None
        if file_sha256(job.output / CARD_FILE) == row.card_sha256:
            return row
        problem = f"{job.output} is another model than {path.name} tells of"
    except (ValidationError, ValueError, RecursionError):
        problem = f"{path} is damaged"
    except (DataError, OSError) as error:
        problem = reason(error)
    warn(f"{problem}; it is fitted again")
    return None


def _write(folder: Path, row: FitRow) -> None:
    path = row_path(folder, row.category)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot write {path.parent}: {reason(error)}") from error
    with atomic_write(path, DataError) as stream:
        stream.write(json.dumps(row.to_dict(), indent=2, allow_nan=False).encode())


def _tell(row: FitRow, left: int, listener: EachListener) -> None:
    if row.fit is None:
        listener.warn(f"{row.category} failed: {row.error}")
        return
    for text in row.warnings:
        listener.warn(f"{row.category}: {text}")
    rest = f"; {left} left" if left else ""
    listener.note(f"{row.category}: {row.fit['images']} images, {row.fit['seconds']:.1f} s, {row.model}{rest}")


def _failed(category: str, key: str, error: str) -> FitRow:
    return FitRow(key=key, category=category, model=_model_name(category), fitted_at=_now(), error=error)


def _open(path: Path) -> Category:
    return open_category(path, train_only=True)


def _digest(category: Category) -> str:
    return f"{category.fingerprint('train')} {category.fingerprint('defects')}"


def _model_name(category: str) -> str:
    return f"{category}.model"


def _now() -> datetime:
    return datetime.now(timezone.utc).replace(microsecond=0)
