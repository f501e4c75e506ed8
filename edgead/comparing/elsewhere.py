"""The fits of a comparison on other nodes: only of the very images and weights that a row's key names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from edgead.comparing.measure import Options, failed_rows
from edgead.comparing.plan import Job, Subject, make_jobs, open_subjects
from edgead.comparing.rows import Row
from edgead.comparing.running import Measuring, measure_or_fail
from edgead.dispatch.node import SAME_PATH, SharedFolder, read_here
from edgead.dispatch.workers import FAILURES, Answer, Workers, explain_failure
from edgead.runtime.errors import DataError
from edgead.runtime.progress import silent


@dataclass(frozen=True, slots=True)
class Errand:
    """What a node is asked: a job with absolute paths, and the folder of the models, if they are kept."""

    job: Job
    options: Options
    shared: SharedFolder | None

    @property
    def name(self) -> str:
        return self.job.name


def measure_elsewhere(workers: Workers, options: Options, shared: SharedFolder | None) -> Measuring:
    """Return what measures jobs by workers in other processes; ``shared`` is where they keep models, None: nowhere."""

    def work(jobs: Iterable[Job]) -> Iterator[Answer[list[Row]]]:
        return workers.work(measure_there, (Errand(job, options, shared) for job in jobs))

    return work


def measure_there(errand: Errand) -> list[Row]:
    """Return the rows of a job as this node measures them, or the failed ones where it lacks what the job names."""
    try:
        if errand.shared is not None:
            errand.shared.require()
        job = _same_here(errand.job)
    except FAILURES as error:
        return failed_rows(errand.job, explain_failure(error))
    return measure_or_fail(job, errand.options, silent)


def _same_here(job: Job) -> Job:
    """Return the job as this node finds it; raises `DataError` where that is not the same."""
    subjects = [read_here(one.path, _open, _digests(one), _digests) for one in job.subjects]
    (found,) = make_jobs(subjects, [job.variant], [job.seed], size=job.size, backbone=job.backbone, taps=job.taps)
    if found.keys != job.keys:
        raise DataError(f"the weights of {job.backbone} are others there; {SAME_PATH}")
    return replace(found, backbone_name=job.backbone_name)


def _digests(subject: Subject) -> str:
    return f"{subject.train_sha256} {subject.test_sha256}"


@cache
def _open(path: Path) -> Subject:
    # Once a process, as a local run does it once.
    return open_subjects([path])[0]
