"""One JSON file for each row of a comparison, written whole or not at all, and checked when it is read again."""

from __future__ import annotations

import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edgead.runtime.bundle.manifest_schema import ParityRecord, ThresholdSection
from edgead.runtime.errors import DataError
from edgead.runtime.files import atomic_write, reason

SCHEMA: Literal["edgead.compare-row/1"] = "edgead.compare-row/1"
FOLDER = "rows"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, populate_by_name=True)


class Figure(_Section):
    """A metric with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


class ImageRow(_Section):
    """What was said of one test image; see `edgead.evaluation.decisions.ImageScore`."""

    path: str
    label: str | None
    anomalous: bool
    score: float | None
    threshold: float
    decision: Literal["OK", "ANOMALY", "NOT_INSPECTED"]
    reason: str | None
    category: str | None = None


class DecisionCounts(_Section):
    """See `edgead.evaluation.decisions.Decisions`."""

    false_alarms: int
    normal: int
    escapes: int
    anomalous: int
    not_inspected: int


class Percentiles(_Section):
    """Milliseconds."""

    p50: float
    p95: float
    p99: float
    max: float
    count: int


class Speed(_Section):
    """Latency on one runtime: of the network alone, of preparing the frame, and from camera to decision."""

    network: Percentiles
    preprocess: Percentiles
    end_to_end: Percentiles


class LatencyRecord(_Section):
    """What `edgead.runtime.device.bench.bench` measured right after the export; ``frame_size`` is (width, height)."""

    frames: int
    frame_size: tuple[int, int]
    runtimes: dict[str, Speed]


class Outcome(_Section):
    """What was measured.

    Attributes:
        metrics: of the trained model; None where the category has no masks.
        draws: each metric on every bootstrap resample, so that seeds and detectors can be resampled jointly.
        unlike_normals: why the figures are not those of new parts, in words: `CategoryReport.doubts`.
        fit_seconds, bytes, fit_peak_rss_bytes: of the whole model, which several categories may share (``pooled``).
        fit_peak_rss_bytes: largest resident memory of the process during the fit, None where the system does not say.
        parity: runtime -> record, over every test image of every category of the model.
        bundle_metric_differences: runtime -> largest difference of a metric between the bundle there and the model.
        latency: None where it was not wanted or could not be measured, which ``latency_missing`` then explains.
    """

    n_normal: int
    n_anomalous: int
    metrics: dict[str, Figure | None]
    draws: dict[str, list[float]]
    decisions: DecisionCounts
    empty_masks: int
    unlike_normals: list[str] = Field(default_factory=list)
    images: list[ImageRow]
    threshold: ThresholdSection
    fit_seconds: float
    fit_peak_rss_bytes: int | None
    bytes: int
    parity: dict[str, ParityRecord]
    bundle_metric_differences: dict[str, float]
    latency: LatencyRecord | None
    latency_missing: str | None
    backbone_info: dict[str, Any]
    machine: dict[str, Any]
    versions: dict[str, str]


class Row(_Section):
    """One category, detector, size, backbone and seed: its ``outcome``, or the ``error`` that kept it from one.

    Attributes:
        key: digest of all that decides the outcome; ``setup``: the same without the seed.
        pooled: categories that share the model, None where it has one of its own.
        measured_at: UTC, ISO 8601.
    """

    schema_name: Literal["edgead.compare-row/1"] = Field(default=SCHEMA, alias="schema")
    key: str
    setup: str
    category: str
    label: str
    detector: str
    settings: dict[str, Any]
    seed: int
    height: int
    width: int
    backbone: str
    edgead: str
    pooled: list[str] | None
    measured_at: datetime
    error: str | None = None
    outcome: Outcome | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Row:
        if (self.error is None) == (self.outcome is None):
            raise ValueError("a row holds an error or an outcome")
        return self

    def to_dict(self, *, images: bool = True) -> dict[str, Any]:
        """Return the JSON form; without image scores and draws where ``images`` is False."""
        left_out = None if images else {"outcome": {"images", "draws"}}
        return self.model_dump(mode="json", by_alias=True, exclude=left_out)


def row_path(folder: Path, category: str, label: str, seed: int, key: str) -> Path:
    """Return where a row lies: readable, and of no other row."""
    return folder / FOLDER / f"{file_stem(category, label, seed, key)}.json"


def file_stem(category: str, label: str, seed: int, key: str) -> str:
    """Return a file name without suffix that every file system takes, and that no other row has."""
    plain = re.sub(r"[^A-Za-z0-9_.+-]", "_", category).lstrip(".")[:60]
    return f"{plain}-{label}-{seed}-{key[:10]}"


def write_row(folder: Path, row: Row) -> None:
    """Write a row; raises `DataError` where the disk does not take it."""
    path = row_path(folder, row.category, row.label, row.seed, row.key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot write {path.parent}: {reason(error)}") from error
    with atomic_write(path, DataError) as stream:
        # Escaped, because a file name may hold bytes that are no text; pydantic's own writer refuses those.
        stream.write(json.dumps(row.to_dict(), allow_nan=False).encode())


def read_row(path: Path) -> Row:
    """Read a row; raises `DataError` where it is damaged."""
    try:
        return Row.model_validate(json.loads(path.read_bytes()))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise DataError(f"{path.name} is damaged ({where}: {first['msg']})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path.name} is damaged (no JSON)") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {reason(error)}") from error
