"""Sections of the comparison page: speed, ROC curves, histograms, decisions, parity, provenance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgead.comparing.rows import Outcome
from edgead.comparing.summary import Group
from edgead.comparing.tables import MISSING, interval, percent
from edgead.metrics.shares import RATES
from edgead.pages import plots
from edgead.pages.markup import Markup, cell, element, facts, number, section, table

ALLOWED = (
    "Escapes allowed: the threshold is the smallest one at which at most that share of the good test images lies above "
    "it. It is chosen on these test images, so the figure says what the scores allow, not what a line gets."
)
_HISTOGRAMS = 60  # more would make the page slow; the scores are in the rows


def _name(one: dict[str, Any]) -> list[Markup | str]:
    pooled = f"one model of {', '.join(one['pooled'])}" if one["pooled"] else None
    return [one["category"], cell(one["label"], below=pooled)]


def _speed(summary: Sequence[dict[str, Any]], series: dict[str, int]) -> Markup | None:
    timed = [one for one in summary if one["latency_ms"]]
    if not timed:
        return None
    keys = ("network_p50", "network_p99", "end_to_end_p50", "end_to_end_p99")
    rows, points = [], []
    for one in timed:
        for runtime, times in one["latency_ms"].items():
            rows.append([*_name(one), runtime, *(number(f"{times[key]:.2f}", times[key]) for key in keys)])
        # One runtime for all marks: the first, which is what `auto` takes.
        times = next(iter(one["latency_ms"].values()))
        metric = one["metrics"]["image_auroc"]
        points.append((one["label"], series[one["label"]], one["category"], times["end_to_end_p50"], metric["mean"]))
    headings = ["category", "detector", "runtime", "network p50, ms", "p99", "camera to decision p50, ms", "p99"]
    first = next(iter(timed[0]["latency_ms"]))
    picture = plots.scatter(
        points, f"camera to decision on {first}, p50, ms", "image AUROC", "Image AUROC against latency, by detector"
    )
    return section("Speed", element("figure", picture), table(headings, rows, text_columns=3), anchor="speed")


def _legend_note() -> Markup:
    return element("p", "Mean over the seeds of the share found at each share rejected; its area is the mean AUROC.")


def _rocs(groups: Sequence[Group], series: dict[str, int]) -> list[Markup]:
    figures = []
    for category in dict.fromkeys(group.category for group in groups):
        curves = [
            plots.Curve(group.label, series[group.label], *_mean_roc(group.outcomes))
            for group in groups
            if group.category == category
        ]
        picture = plots.roc(curves, f"ROC curves on {category}")
        figures.append(element("figure", element("figcaption", element("b", category)), picture))
    return figures


def _mean_roc(outcomes: Sequence[Outcome]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Average the curves at each false-positive rate. Where one rises, both ends of the rise are points."""
    curves = [plots.roc_curve(*_scores(one)) for one in outcomes]
    places = np.unique(np.concatenate([x for x, _ in curves]))
    x = np.repeat(places, 2)
    below = np.mean([[_at(curve, place, first=True) for place in places] for curve in curves], axis=0)
    above = np.mean([[_at(curve, place, first=False) for place in places] for curve in curves], axis=0)
    y = np.empty(len(x))
    y[0::2], y[1::2] = below, above
    return np.concatenate(([0.0], x)), np.concatenate(([0.0], y))


def _at(curve: tuple[NDArray[np.float64], ...], place: float, *, first: bool) -> float:
    x, y = curve
    side = int(np.searchsorted(x, place, "left" if first else "right")) - (not first)
    if 0 <= side < len(x) and x[side] == place:
        return float(y[side])
    return float(np.interp(place, x, y))


def _scores(outcome: Outcome) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    known = [(image.score, image.anomalous) for image in outcome.images if image.score is not None]
    return np.array([score for score, _ in known], np.float64), np.array([label for _, label in known], bool)


def _histograms(groups: Sequence[Group]) -> list[Markup]:
    figures = []
    for group in groups[:_HISTOGRAMS]:
        outcome, seed = group.outcomes[0], group.rows[0].seed
        scores, labels = _scores(outcome)
        what = f"Image scores, {group.category}, {group.label}, seed {seed}"
        threshold = plots.usual_threshold([image.threshold for image in outcome.images])
        picture = plots.histogram(scores[~labels], scores[labels], threshold, what)
        caption = element(
            "figcaption", element("b", f"{group.category}  {group.label}"), element("small", f"seed {seed}")
        )
        figures.append(element("figure", caption, picture))
    left = len(groups) - len(figures)
    note = element("p", f"{left} more are not drawn; their scores are in the rows.", class_="note") if left else None
    return [element("div", *figures, class_="grid"), *([note] if note else [])]


def _decisions(summary: Sequence[dict[str, Any]]) -> list[Markup]:
    rows = []
    for one in summary:
        found = one["decisions"]
        allowed = [point["escape_rate"] for point in one["allowed"]] or [None] * len(RATES)
        rows.append(
            [
                *_name(one),
                _share(f"{found['escapes']} of {found['anomalous']} defective", one["escape_rate"]),
                _share(f"{found['false_alarms']} of {found['normal']} good", one["false_alarm_rate"]),
                number(str(found["not_inspected"]), found["not_inspected"]),
                *(
                    _share(None if share is None else f"{share['count']} of {share['images']}", share)
                    for share in allowed
                ),
            ]
        )
    headings = ["category", "detector", "escapes", "false alarms", "not inspected"]
    headings += [f"escapes allowed at {rate * 100:g} % false alarms" for rate in RATES]
    note = (
        "All seeds together, below each count the mean share with its 95 % interval. Escapes are defective parts that "
        "pass, false alarms good parts that are rejected, both at the model's threshold. Images that were not "
        "inspected (a router did not know the part) never pass the line."
    )
    return [table(headings, rows, text_columns=2, note=note), element("p", ALLOWED, class_="note")]


def _share(text: str | None, share: dict[str, Any] | None) -> Markup:
    if text is None or share is None:
        return number(text or MISSING, None)
    return number(text, share["mean"], f"{percent(share)} ({interval(share)})")


def _parity(summary: Sequence[dict[str, Any]]) -> Markup:
    rows = []
    for one in summary:
        for runtime, record in one["parity"].items():
            worst, drift = record["max_score_difference"], one["bundle_metric_differences"].get(runtime)
            rows.append(
                [
                    *_name(one),
                    cell(runtime, below=record["note"]),
                    number(f"{record['changed']} of {record['images']}", record["changed"]),
                    number("not finite" if worst is None else f"{worst:.1e}", worst),
                    number(MISSING if drift is None else f"{drift:.1e}", drift),
                ]
            )
    headings = [
        "category",
        "detector",
        "runtime",
        "changed decisions",
        "worst score difference",
        "worst metric difference",
    ]
    note = "The exported bundle against the torch model, from image file to decision, every test image, all seeds."
    return table(headings, rows, text_columns=3, note=note)


def _provenance(payload: dict[str, Any], groups: Sequence[Group]) -> list[Markup]:
    rows = []
    for one in payload["summary"]:
        size = f"{one['size']['height']}x{one['size']['width']}"
        settings = ", ".join(f"{name}={value}" for name, value in one["settings"].items())
        peak = one["fit_peak_rss_bytes"]
        rows.append(
            [
                *_name(one),
                one["detector"],
                settings,
                one["backbone"],
                number(size, one["size"]["height"]),
                number(MISSING if peak is None else f"{peak / 1e6:.0f}", peak),
                number(f"{one['n_normal']} + {one['n_anomalous']}", one["n_normal"]),
            ]
        )
    headings = [
        "category",
        "detector",
        "method",
        "settings",
        "backbone",
        "size",
        "fit peak RSS, MB",
        "good + defective",
    ]
    machine = payload["machine"]
    versions: dict[str, str] = {}
    for group in groups:
        for outcome in group.outcomes:
            versions |= outcome.versions
    known = [
        (
            "machine",
            f"{machine['system']} {machine['machine']}, {machine['cpu'] or '?'}, {machine['cores']} cores",
        ),
        ("versions", ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))),
    ]
    return [table(headings, rows, text_columns=5), element("h3", "Measured on"), facts(known)]
