"""From rows to what they say together: means over seeds with intervals, and paired differences to one detector.

- *mean, range*: over the seeds; the range says how far another fit moves the figure.
- *interval*: 95 % percentile bootstrap of the seed mean. All seeds meet the same resample of test images, so it says
  how far the mean would move with other test images. Where seeds did not score the same images (a router left some
  out), it is the mean of the seeds' own intervals, which is wide rather than narrow.
- *escapes, false alarms*: the mean of the seeds' shares, with the exact interval of one seed's, or the mean of theirs.
- *difference*: detector minus the first one, on the images that both scored in every seed. Image AUROC: DeLong's test
  of the seed means (`edgead.metrics.delong`), and p adjusted by Holm's method for the number of comparisons. The other
  metrics: the joint bootstrap above, without a test.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgead.comparing.rows import Outcome, Row
from edgead.comparing.shares import allowed, decided
from edgead.evaluation.evaluation import METRICS
from edgead.metrics.delong import compare_auroc, holm
from edgead.runtime.errors import DataError
from edgead.runtime.machine import describe_machine
from edgead.runtime.version import __version__

SCHEMA = "edgead.compare/1"


@dataclass(frozen=True, slots=True)
class Group:
    """The rows of one category and variant, one a seed, in the order of seeds; ``outcomes`` in the same order."""

    category: str
    label: str
    rows: tuple[Row, ...]
    outcomes: tuple[Outcome, ...]


def group_rows(rows: Sequence[Row], labels: Sequence[str] = ()) -> list[Group]:
    """Return the measured rows by category and variant, variants in the order of ``labels``, then of measuring.

    Two setups under one label (another size, other data) stay apart, and the label then names the setup.
    """
    setups: dict[tuple[str, str], list[str]] = {}
    found: dict[tuple[str, str, str], dict[int, Row]] = {}
    for row in rows:
        if row.outcome is not None:
            known = setups.setdefault((row.category, row.label), [])
            if row.setup not in known:
                known.append(row.setup)
            found.setdefault((row.category, row.label, row.setup), {})[row.seed] = row
    categories = list(dict.fromkeys(category for category, *_ in found))
    order = list(dict.fromkeys([*labels, *(label for _, label, _ in found)]))
    groups = []
    for category, label, setup in sorted(found, key=lambda key: (categories.index(key[0]), order.index(key[1]))):
        members = [row for _, row in sorted(found[category, label, setup].items())]
        shown = label if len(setups[category, label]) == 1 else f"{label} [{setup[:6]}]"
        outcomes = tuple(row.outcome for row in members if row.outcome is not None)
        groups.append(Group(category, shown, tuple(members), outcomes))
    return groups


def summarise(rows: Sequence[Row], labels: Sequence[str] = ()) -> dict[str, Any]:
    """Return the JSON form of a comparison, schema ``edgead.compare/1``; rows without image scores, which are in
    their files."""
    groups = group_rows(rows, labels)
    first: dict[str, Group] = {}
    for group in groups:
        first.setdefault(group.category, group)
    if labels:
        # A category where the first detector failed has nothing to be compared with.
        first = {name: group for name, group in first.items() if group.rows[0].label == labels[0]}
    summary = [_summary(group, first.get(group.category)) for group in groups]
    tested = [one["difference"] for one in summary if (one["difference"] or {}).get("image_auroc")]
    for difference, adjusted in zip(tested, holm([one["image_auroc"]["p"] for one in tested]), strict=True):
        difference["image_auroc"]["p_holm"] = adjusted
    return {
        "schema": SCHEMA,
        "edgead": __version__,
        "machine": describe_machine(),
        "labels": list(dict.fromkeys(group.label for group in groups)),
        "summary": summary,
        "overall": _overall(summary),
        "failed": [
            {"category": row.category, "label": row.label, "seed": row.seed, "error": row.error}
            for row in rows
            if row.error is not None
        ],
        "rows": [row.to_dict(images=False) for row in rows],
    }


def _summary(group: Group, first: Group | None) -> dict[str, Any]:
    row, outcomes = group.rows[0], group.outcomes
    peaks = [one.fit_peak_rss_bytes for one in outcomes if one.fit_peak_rss_bytes is not None]
    return {
        "category": group.category,
        "label": group.label,
        "detector": row.detector,
        "settings": row.settings,
        "size": {"height": row.height, "width": row.width},
        "backbone": row.backbone,
        "random_weights": bool(outcomes[0].backbone_info.get("random_weights", False)),
        "seeds": [member.seed for member in group.rows],
        "pooled": row.pooled,
        "n_normal": outcomes[0].n_normal,
        "n_anomalous": outcomes[0].n_anomalous,
        **decided(outcomes),
        "allowed": allowed(outcomes),
        "metrics": {name: _figure(outcomes, name) for name in METRICS},
        "decisions": {
            name: sum(getattr(one.decisions, name) for one in outcomes)
            for name in type(outcomes[0].decisions).model_fields
        },
        "fit_seconds": mean(one.fit_seconds for one in outcomes),
        "fit_peak_rss_bytes": max(peaks, default=None),
        "bytes": round(mean(one.bytes for one in outcomes)),
        "parity": _parity(outcomes),
        "bundle_metric_differences": {
            name: max(one.bundle_metric_differences[name] for one in outcomes)
            for name in outcomes[0].bundle_metric_differences
            if all(name in one.bundle_metric_differences for one in outcomes)
        },
        "latency_ms": _latency(outcomes),
        "latency_missing": next((one.latency_missing for one in outcomes if one.latency_missing), None),
        "unlike_normals": next((one.unlike_normals for one in outcomes if one.unlike_normals), []),
        "first": first is group,
        "difference": None if first is None or first is group else _difference(group, first),
    }


def unlike_normals(payload: Mapping[str, Any]) -> list[str]:
    """Return why figures are not those of new parts (light, focus, known images), a line for each category.

    Detectors and seeds see a category at other sizes and in other images, so in other numbers: the first one speaks.
    """
    first: dict[str, list[str]] = {}
    for one in payload["summary"]:
        if one["unlike_normals"]:
            first.setdefault(one["category"], one["unlike_normals"])
    return [f"{category}: {text}" for category, texts in first.items() for text in texts]


def _figure(outcomes: Sequence[Outcome], name: str) -> dict[str, Any] | None:
    figures = [one.metrics[name] for one in outcomes]
    known = [figure for figure in figures if figure is not None]
    if len(known) < len(figures):
        return None
    values = [figure.value for figure in known]
    value = mean(values)
    draws = _joint_draws(outcomes, name)
    if draws is not None:
        low, high = (float(end) for end in np.percentile(draws, (2.5, 97.5)))
    else:
        low, high = mean(figure.low for figure in known), mean(figure.high for figure in known)
    return {
        "mean": value,
        "low": max(0.0, min(low, value)),
        "high": min(1.0, max(high, value)),
        "min": min(values),
        "max": max(values),
        "seeds": values,
        "interval": "seed mean" if draws is not None else "mean of the seeds' intervals",
    }


def _joint_draws(outcomes: Sequence[Outcome], name: str) -> NDArray[np.float64] | None:
    """Return the seed mean on each resample, or None where the seeds' resamples are not of the same images."""
    draws = [one.draws.get(name, []) for one in outcomes]
    if not draws[0] or len({len(one) for one in draws}) > 1 or len({_images(one) for one in outcomes}) > 1:
        return None
    return np.asarray(np.mean(draws, axis=0), dtype=np.float64)


def _images(outcome: Outcome) -> tuple[tuple[str, bool], ...]:
    """The images that the metrics and their resamples stand on."""
    return tuple((image.path, image.anomalous) for image in outcome.images if image.score is not None)


def _parity(outcomes: Sequence[Outcome]) -> dict[str, dict[str, Any]]:
    result = {}
    for runtime in dict.fromkeys(name for one in outcomes for name in one.parity):
        records = [one.parity[runtime] for one in outcomes if runtime in one.parity]
        result[runtime] = {
            "changed": sum(record.flips + record.borderline for record in records),
            "images": sum(record.images for record in records),
            "max_score_difference": max(record.max_score_difference for record in records),
            "max_map_difference": max(record.max_map_difference for record in records),
            "note": records[0].note,
        }
    return result


def _latency(outcomes: Sequence[Outcome]) -> dict[str, dict[str, float]] | None:
    """Return medians over the seeds, by runtime."""
    records = [one.latency for one in outcomes if one.latency is not None]
    if not records:
        return None
    result = {}
    for runtime in dict.fromkeys(name for record in records for name in record.runtimes):
        speeds = [record.runtimes[runtime] for record in records if runtime in record.runtimes]
        result[runtime] = {
            f"{stage}_{quantile}": median(getattr(getattr(speed, stage), quantile) for speed in speeds)
            for stage in ("network", "end_to_end")
            for quantile in ("p50", "p99")
        }
    return result


def _difference(group: Group, first: Group) -> dict[str, Any]:
    result: dict[str, Any] = {"against": first.label, "image_auroc": None, "reason": None}
    try:
        result["image_auroc"] = _test(group, first)
    except DataError as error:
        result["reason"] = str(error)
    same = len({_images(one) for one in (*group.outcomes, *first.outcomes)}) == 1
    for name in METRICS[1:]:
        one, other = (_joint_draws(each.outcomes, name) for each in (group, first))
        found = None
        if same and one is not None and other is not None and len(one) == len(other):
            value = mean(_values(group, name)) - mean(_values(first, name))
            low, high = (float(end) for end in np.percentile(one - other, (2.5, 97.5)))
            found = {"value": value, "low": min(low, value), "high": max(high, value)}
        result[name] = found
    return result


def _values(group: Group, name: str) -> list[float]:
    return [figure.value for one in group.outcomes if (figure := one.metrics[name]) is not None]


def _test(group: Group, first: Group) -> dict[str, Any]:
    scores = [
        {image.path: (image.score, image.anomalous) for image in one.images if image.score is not None}
        for one in (*group.outcomes, *first.outcomes)
    ]
    shared = [path for path in scores[0] if all(path in one for one in scores)]
    if any(one[path][1] != scores[0][path][1] for one in scores for path in shared):
        raise DataError("the two were measured on test images with different labels")
    matrix = np.array([[one[path][0] for path in shared] for one in scores], np.float64)
    labels = np.array([scores[0][path][1] for path in shared], bool)
    split = len(group.outcomes)
    found = compare_auroc(matrix[:split], matrix[split:], labels)
    return {**found.to_dict(), "p_holm": None}


def _overall(summary: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the mean over categories of the variants that have them all; none where there is one category only.

    Categories are independent test sets, so the half-widths of their intervals add as a root of squares.
    """
    categories = list(dict.fromkeys(one["category"] for one in summary))
    if len(categories) < 2:
        return []
    result = []
    for label in dict.fromkeys(one["label"] for one in summary):
        members = [one for one in summary if one["label"] == label]
        if len(members) < len(categories):
            continue
        metrics: dict[str, Any] = {}
        for name in METRICS:
            found = [one["metrics"][name] for one in members if one["metrics"][name] is not None]
            metrics[name] = None
            if found:
                value = mean(one["mean"] for one in found)
                down = math.sqrt(sum((one["mean"] - one["low"]) ** 2 for one in found)) / len(found)
                up = math.sqrt(sum((one["high"] - one["mean"]) ** 2 for one in found)) / len(found)
                metrics[name] = {
                    "mean": value,
                    "low": max(0.0, value - down),
                    "high": min(1.0, value + up),
                    "categories": len(found),
                }
        result.append({"label": label, "categories": len(members), "metrics": metrics})
    return result
