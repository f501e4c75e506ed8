"""One fit, measured from training to camera latency; everything one after the other in this process."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import get_num_threads

from edgead.comparing.plan import Job
from edgead.comparing.rows import (
    DecisionCounts,
    Figure,
    ImageRow,
    LatencyRecord,
    Outcome,
    Row,
    Speed,
    file_stem,
)
from edgead.evaluation.evaluation import METRICS, CategoryReport, evaluate
from edgead.export.exporting import export_bundle
from edgead.fitting import fit
from edgead.opening import open_inspector
from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.device.bench import bench
from edgead.runtime.errors import BackendError, BundleError, ConfigError
from edgead.runtime.machine import describe_machine
from edgead.runtime.progress import Progress
from edgead.runtime.version import __version__

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): sets VmHWM to what is resident now


@dataclass(frozen=True, slots=True)
class Options:
    """How to measure.

    Attributes:
        frames: counted frames for each runtime; 0 measures no latency.
        bootstrap: resamples of the intervals.
        keep: folder for models and bundles; None throws them away.
    """

    frames: int
    bootstrap: int
    keep: Path | None = None


def measure(job: Job, options: Options, progress: Progress) -> list[Row]:
    """Fit, evaluate, export, evaluate the bundle on every runtime, and time it; return a row for each category.

    Raises:
        EdgeadError: whatever fit, evaluation or export refuse.
    """
    started = time.perf_counter()
    with _peak_memory() as peak:
        model = fit(
            [subject.path for subject in job.subjects],
            detector=job.variant.detector,
            settings=job.variant.settings,
            backbone=job.backbone,
            taps=job.taps,
            size=job.size,
            seed=job.seed,
            progress=progress,
        )
        seconds = time.perf_counter() - started
    with _folder(options.keep) as folder:
        name = "pooled" if job.pooled else job.subjects[0].name
        stem = file_stem(name, job.variant.label, job.seed, job.keys[0])
        directory, bundle = folder / f"{stem}.model", folder / f"{stem}.edgead"
        model.save(directory)
        trained = _evaluate_all(directory, "auto", job, options.bootstrap, progress)
        # Drift is allowed here so that a change is counted in the table instead of ending the run.
        images = [sample.path for subject in job.subjects for sample in subject.category.test]
        exported = export_bundle(model.exportable(stem), bundle, images=images, allow_drift=True, progress=progress)
        latency, missing, versions = _latency(bundle, options.frames, progress)
        parity = dict(next(iter(exported.parity.values())))  # one graph file decides, in every kind of bundle
        with Bundle.open(bundle) as opened:
            manifest = opened.manifest
        differences: list[dict[str, float]] = [{} for _ in job.subjects]
        for runtime in parity:
            if not runtime.endswith("-bf16"):  # opens only where it changed no decision; its parity says the rest
                for found, by_model, by_bundle in zip(
                    differences, trained, _evaluate_all(bundle, runtime, job, 0, progress), strict=True
                ):
                    found[runtime] = _largest_difference(by_model, by_bundle)
    shared = {
        "fit_seconds": seconds,
        "fit_peak_rss_bytes": peak[0] if peak else None,
        "bytes": exported.size,
        "parity": parity,
        "latency": latency,
        "latency_missing": missing,
        "backbone_info": model.card.backbone_info,
        "machine": {**describe_machine(), "threads": get_num_threads()},  # which decide the last digits
        "versions": {**model.card.versions, **versions},
    }
    rows = []
    for index, report in enumerate(trained):
        own = manifest.categories.get(report.name)
        threshold = (own.threshold if own else None) or manifest.threshold
        outcome = _outcome(report, differences[index], {"threshold": threshold, **shared})
        rows.append(_row(job, index, outcome=outcome))
    return rows


def failed_rows(job: Job, reason: str) -> list[Row]:
    """Return the rows that say why there is nothing to show; folders of this machine are left out of the reason."""
    for subject in job.subjects:
        reason = reason.replace(str(subject.path.absolute()), subject.name).replace(str(subject.path), subject.name)
    return [_row(job, index, error=reason) for index in range(len(job.subjects))]


def _row(job: Job, index: int, *, error: str | None = None, outcome: Outcome | None = None) -> Row:
    return Row(
        key=job.keys[index],
        setup=job.setups[index],
        category=job.subjects[index].name,
        label=job.variant.label,
        detector=job.variant.detector,
        settings=dict(job.variant.settings),
        seed=job.seed,
        height=job.size[0],
        width=job.size[1],
        backbone=job.backbone_name,
        edgead=__version__,
        pooled=None if job.pooled is None else list(job.pooled),
        measured_at=datetime.now(timezone.utc).replace(microsecond=0),
        error=error,
        outcome=outcome,
    )


def _outcome(report: CategoryReport, differences: dict[str, float], shared: dict[str, Any]) -> Outcome:
    found = {name: report.metric(name) for name in METRICS}
    return Outcome(
        n_normal=report.n_normal,
        n_anomalous=report.n_anomalous,
        metrics={name: None if metric is None else Figure(**metric.to_dict()) for name, metric in found.items()},
        draws={
            name: [round(float(draw), 7) for draw in metric.draws]
            for name, metric in found.items()
            if metric is not None
        },
        decisions=DecisionCounts(**report.decisions.to_dict()),
        empty_masks=report.empty_masks,
        unlike_normals=list(report.doubts),
        images=[ImageRow(**image.to_dict()) for image in report.images],
        bundle_metric_differences=differences,
        **shared,
    )


def _evaluate_all(path: Path, backend: str, job: Job, bootstrap: int, progress: Progress) -> list[CategoryReport]:
    with open_inspector(path, backend=backend) as inspector:
        on = inspector.describe().name
        return [
            evaluate(
                inspector,
                subject.category,
                bootstrap=bootstrap,
                progress=lambda done, total: progress(f"evaluation on {on}", done, total),
            )
            for subject in job.subjects
        ]


def _largest_difference(one: CategoryReport, other: CategoryReport) -> float:
    pairs = [(one.metric(name), other.metric(name)) for name in METRICS]
    return max(abs(a.value - b.value) for a, b in pairs if a is not None and b is not None)


def _latency(bundle: Path, frames: int, progress: Progress) -> tuple[LatencyRecord | None, str | None, dict[str, str]]:
    """Return latency by runtime or why there is none, and the versions of the runtimes."""
    if frames == 0:
        return None, None, {}
    try:
        report = bench(bundle, frames=frames, progress=lambda done, total: progress("latency", done, total))
    except (BackendError, BundleError, ConfigError) as error:
        return None, str(error).replace(str(bundle), "the bundle"), {}
    runtimes = {}
    for row in report.rows:
        measured = row.to_dict()["latency_ms"]
        stages = measured.pop("stages")
        runtimes[row.backend.name] = Speed(
            network=stages["network"], preprocess=stages["preprocess"], end_to_end=measured
        )
    record = LatencyRecord(frames=frames, frame_size=report.frame_size, runtimes=runtimes)
    return record, None, {row.backend.name: row.backend.version for row in report.rows}


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep
        return
    with TemporaryDirectory(prefix="edgead-compare-") as folder:
        yield Path(folder)


@contextmanager
def _peak_memory() -> Iterator[list[int]]:
    """Yield a list that holds the largest resident memory in bytes afterwards, or nothing where no one knows."""
    found: list[int] = []
    try:
        _CLEAR.write_text(_RESET_PEAK)
    except OSError:
        yield found
        return
    yield found
    match = re.search(r"^VmHWM:\s*(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    if match is not None:
        found.append(int(match[1]) * 1024)
