"""A comparison as a Markdown table for documents and as CSV for spreadsheets."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

from edgead.comparing.rows import Row
from edgead.comparing.shares import of_outcome
from edgead.evaluation.evaluation import METRICS
from edgead.metrics.shares import RATES

COLUMNS = (
    "category",
    "detector",
    "seeds",
    "escapes at the threshold (mean, 95 % interval)",
    "false alarms at the threshold (mean, 95 % interval)",
    *(f"escapes that the scores allow at {rate * 100:g} % false alarms" for rate in RATES),
    "image AUROC (mean, 95 % interval; range)",
    "pixel AUROC",
    "AUPRO",
    "false-alarm rate at zero escapes",
    "not inspected",
    "MB",
    "fit s",
    "latency ms (network / camera to decision, p50)",
    "changed decisions",
    "worst score difference",
    "image AUROC minus first (95 % interval; p)",
)
MISSING = "–"


def markdown(summary: dict[str, Any]) -> str:
    """Return a Markdown table, one line a category and variant."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(_plain(cell) for cell in cells(one)) + " |" for one in summary["summary"]]
    for failure in summary["failed"]:
        text = f"{failure['category']}, {failure['label']}, seed {failure['seed']}: {failure['error']}"
        lines += ["", f"Failed: {_plain(text)}"]
    return "\n".join(lines) + "\n"


def cells(one: dict[str, Any]) -> list[str]:
    """Return the cells of a line of the table, in the order of `COLUMNS`."""
    metrics = one["metrics"]
    return [
        one["category"],
        one["label"] + (f" (one model of {len(one['pooled'])})" if one["pooled"] else ""),
        str(len(one["seeds"])),
        *decisions(one),
        _with_interval(metrics["image_auroc"]),
        *(figure(metrics[name]) for name in ("pixel_auroc", "aupro", "false_alarm_rate_at_zero_escapes")),
        left_out(one),
        f"{one['bytes'] / 1e6:.1f}",
        f"{one['fit_seconds']:.1f}",
        latency(one),
        changed(one),
        worst(one),
        difference(one),
    ]


def decisions(one: dict[str, Any]) -> list[str]:
    """Return escapes and false alarms at the threshold, and the escapes that the scores allow at each of `RATES`."""
    allowed = [point["escape_rate"] for point in one["allowed"]] or [None] * len(RATES)
    return [share(one["escape_rate"]), share(one["false_alarm_rate"]), *(percent(found) for found in allowed)]


def share(found: dict[str, Any] | None) -> str:
    """Return the mean share with its interval."""
    return MISSING if found is None else f"{percent(found)} ({interval(found)})"


def percent(found: dict[str, Any] | None) -> str:
    """Return the mean share."""
    return MISSING if found is None else f"{found['mean'] * 100:.1f} %"


def interval(found: dict[str, Any]) -> str:
    """Return the interval of a share."""
    return f"{found['low'] * 100:.1f}–{found['high'] * 100:.1f} %"


def figure(metric: dict[str, Any] | None) -> str:
    """Return the mean with four decimals."""
    return MISSING if metric is None else f"{metric['mean']:.4f}"


def left_out(one: dict[str, Any]) -> str:
    """Return how many test images of all seeds were not inspected."""
    found = one["decisions"]
    return f"{found['not_inspected']} of {found['not_inspected'] + found['normal'] + found['anomalous']}"


def changed(one: dict[str, Any]) -> str:
    """Return how many decisions each runtime of full precision changed."""
    found = (f"{name} {record['changed']} of {record['images']}" for name, record in _gated(one))
    return ", ".join(found) or MISSING


def worst(one: dict[str, Any]) -> str:
    """Return the largest difference of a score on any runtime of full precision."""
    found = [record["max_score_difference"] for _, record in _gated(one)]
    return f"{max(found):.1e}" if found else MISSING


def latency(one: dict[str, Any]) -> str:
    """Return the medians by runtime."""
    found = one["latency_ms"] or {}
    return ", ".join(f"{n} {v['network_p50']:.1f} / {v['end_to_end_p50']:.1f}" for n, v in found.items()) or MISSING


def difference(one: dict[str, Any]) -> str:
    """Return how image AUROC differs from the first detector's, with interval and p."""
    if one["first"]:
        return "(first)"
    test = (one["difference"] or {}).get("image_auroc")
    if test is None:
        return MISSING
    return f"{test['value']:+.4f} ({test['low']:+.4f} to {test['high']:+.4f}; {p_value(test['p'])})"


def p_value(p: float | None) -> str:
    """Return p for people."""
    if p is None:
        return "p not defined"
    return "p < 0.0001" if p < 0.0001 else f"p = {p:.4f}"


def to_csv(rows: Sequence[Row]) -> str:
    """Return one line a row with flat columns; a failed row has its error and no figures."""
    lines = [_flat(row) for row in rows]
    names = list(dict.fromkeys(name for line in lines for name in line))
    # Columns of all rows come first, those that only some have last; a runtime that is missing somewhere is empty.
    stream = io.StringIO()
    writer = csv.DictWriter(stream, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return stream.getvalue()


def _gated(one: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(name, record) for name, record in one["parity"].items() if not name.endswith("-bf16")]


def _with_interval(metric: dict[str, Any] | None) -> str:
    if metric is None:
        return MISSING
    spread = f"; {metric['min']:.4f}–{metric['max']:.4f}" if len(metric["seeds"]) > 1 else ""
    return f"{metric['mean']:.4f} ({metric['low']:.4f}–{metric['high']:.4f}{spread})"


def _plain(text: str) -> str:
    """Keep what a user named a folder from being read as Markdown's own signs."""
    for sign in "\\|`*_<>[]":
        text = text.replace(sign, {"<": "&lt;", ">": "&gt;"}.get(sign, "\\" + sign if sign != "_" else sign))
    return " ".join(text.split())


def _flat(row: Row) -> dict[str, Any]:
    line: dict[str, Any] = {
        **{
            name: getattr(row, name)
            for name in ("category", "label", "detector", "seed", "height", "width", "backbone")
        },
        "settings": " ".join(f"{name}={value}" for name, value in row.settings.items()),
        "pooled": " ".join(row.pooled or ()),
        "measured_at": row.measured_at.isoformat(),
        "error": row.error or "",
    }
    if row.outcome is None:
        return line
    one = row.outcome
    line |= one.decisions.model_dump()
    line |= {f"escapes_allowed_at_{point.rate * 100:g}_percent": point.escapes.count for point in of_outcome(one)}
    for name in METRICS:
        metric = one.metrics[name]
        for end in ("value", "low", "high"):
            line[name if end == "value" else f"{name}_{end}"] = "" if metric is None else getattr(metric, end)
    line |= {"threshold": one.threshold.value, "threshold_supported": one.threshold.supported}
    line |= {"fit_seconds": one.fit_seconds, "fit_peak_rss_bytes": one.fit_peak_rss_bytes, "bytes": one.bytes}
    for runtime, record in one.parity.items():
        line[f"{runtime}_changed_decisions"] = record.flips + record.borderline
        line[f"{runtime}_parity_images"] = record.images
        line[f"{runtime}_max_score_difference"] = _finite(record.max_score_difference)
    for runtime, value in one.bundle_metric_differences.items():
        line[f"{runtime}_metric_difference"] = value
    for runtime, speed in one.latency.runtimes.items() if one.latency else ():
        for stage in ("network", "end_to_end"):
            for quantile in ("p50", "p99"):
                line[f"{runtime}_{stage}_{quantile}_ms"] = getattr(getattr(speed, stage), quantile)
    return line


def _finite(value: float) -> float | str:
    return value if math.isfinite(value) else ""
