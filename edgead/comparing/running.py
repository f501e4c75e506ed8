"""Works through the jobs of a comparison: skips what is there, records what fails, goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from edgead.comparing.measure import Options, failed_rows, measure
from edgead.comparing.plan import Job
from edgead.comparing.rows import FOLDER, Row, read_row, row_path, write_row
from edgead.dispatch.workers import FAILURES, Answer, LocalWorkers, explain_failure
from edgead.runtime.errors import DataError
from edgead.runtime.progress import Progress

Measuring: TypeAlias = Callable[[Iterable[Job]], Iterator[Answer[list[Row]]]]


@dataclass(frozen=True, slots=True)
class Listener:
    """Who hears of the work.

    Attributes:
        note: one line on what was done, or what is left.
        warn: one line on a row file that cannot be used, or a row that failed.
        progress: ``(stage, done, total)`` within the work.
    """

    note: Callable[[str], None]
    warn: Callable[[str], None]
    progress: Progress


def run_jobs(
    folder: Path, jobs: Sequence[Job], options: Options, listener: Listener, measuring: Measuring | None = None
) -> list[Row]:
    """Return the rows of all jobs, in their order, measuring those that are not in ``folder`` yet.

    A row is written when its job is done, so that whatever ends the process leaves the finished ones. A row that
    failed before is tried again.

    Args:
        measuring: answers for jobs in any order; None: this process measures one after the other.

    Raises:
        DataError: a row cannot be written.
    """
    rows: dict[int, list[Row]] = {}
    for index, job in enumerate(jobs):
        found = _kept_rows(folder, job, listener)
        if found is not None:
            rows[index] = found
    left = [index for index in range(len(jobs)) if index not in rows]
    if rows:
        listener.note(f"{len(rows)} of {len(jobs)} fits are there already and are skipped")
    if measuring is None:
        measuring = _measure_here(options, listener)
    clock = _Clock()
    waiting = dict.fromkeys(left)
    listener.progress("fits", len(rows), len(jobs))
    started = time.perf_counter()
    for answer in measuring(jobs[index] for index in left):
        index = left[answer.index]
        job = jobs[index]
        measured = failed_rows(job, answer.lost or "") if answer.value is None else answer.value
        for row in measured:
            write_row(folder, row)
        rows[index] = measured
        del waiting[index]
        now = time.perf_counter()
        clock.add(job, now - started)
        started = now
        listener.progress("fits", len(rows), len(jobs))
        _tell(measured, clock.left([jobs[later] for later in waiting]), len(waiting), listener)
    return [row for index in range(len(jobs)) for row in rows[index]]


def read_rows(folder: Path, warn: Callable[[str], None]) -> list[Row]:
    """Return every row in ``folder`` that can be read, in the order of measuring; damaged ones are warned of.

    Raises:
        DataError: there is none.
    """
    rows = []
    for path in sorted((folder / FOLDER).glob("*.json")):
        try:
            rows.append(read_row(path))
        except DataError as error:
            warn(f"{error}; it is omitted")
    if not rows:
        raise DataError(f"{folder} holds no rows of a comparison; run: edgead compare CATEGORY_DIR -o {folder}")
    return sorted(rows, key=lambda row: (row.measured_at, row.category, row.label, row.seed))


def _kept_rows(folder: Path, job: Job, listener: Listener) -> list[Row] | None:
    """Return the rows of a job where all of them are there and hold an outcome."""
    rows = []
    for subject, key in zip(job.subjects, job.keys, strict=True):
        path = row_path(folder, subject.name, job.variant.label, job.seed, key)
        if not path.exists():
            return None
        try:
            row = read_row(path)
        except DataError as error:
            listener.warn(f"{error}; it is measured again")
            return None
        if row.key != key or row.label != job.variant.label:
            listener.warn(f"{path.name} holds another row than its name says; it is measured again")
            return None
        if row.outcome is None:
            return None
        rows.append(row)
    return rows


def measure_or_fail(job: Job, options: Options, progress: Progress) -> list[Row]:
    """Measure a job; where it fails its rows say why."""
    try:
        return measure(job, options, progress)
    except FAILURES as error:
        return failed_rows(job, explain_failure(error))


def _measure_here(options: Options, listener: Listener) -> Measuring:
    return lambda jobs: LocalWorkers().work(lambda job: measure_or_fail(job, options, listener.progress), jobs)


def _tell(rows: Sequence[Row], seconds_left: float, left: int, listener: Listener) -> None:
    rest = f"; {left} left, about {_duration(seconds_left)}" if left else ""
    for row in rows:
        if row.outcome is None:
            listener.warn(f"{row.category} {row.label} seed {row.seed} failed: {row.error}")
            continue
        figure = row.outcome.metrics["image_auroc"]
        auroc = "no image AUROC" if figure is None else f"image AUROC {figure.value:.4f}"
        listener.note(
            f"{row.category} {row.label} seed {row.seed}: {auroc}, fit {row.outcome.fit_seconds:.1f} s, "
            f"{row.outcome.bytes / 1e6:.1f} MB{rest if row is rows[-1] else ''}"
        )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class _Clock:
    """Expects of a job what the same detector took before, or else what all took on average.

    Counted from one finished job to the next, so that jobs at once count by their share.
    """

    def __init__(self) -> None:
        self._seconds: dict[str, list[float]] = {}

    def add(self, job: Job, seconds: float) -> None:
        self._seconds.setdefault(job.variant.label, []).append(seconds)

    def left(self, jobs: Sequence[Job]) -> float:
        every = [value for values in self._seconds.values() for value in values]
        total = 0.0
        for job in jobs:
            values = self._seconds.get(job.variant.label, every)
            total += sum(values) / len(values)
        return total
