"""The page of a comparison, made of its JSON form and of the image scores in its rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgead.comparing.rows import Outcome
from edgead.comparing.summary import Group
from edgead.comparing.tables import MISSING, p_value
from edgead.evaluation.evaluation import METRICS
from edgead.pages import plots
from edgead.pages.markup import Markup, cell, document, element, facts, join, number, section, table

TITLES = {
    "image_auroc": "image AUROC",
    "pixel_auroc": "pixel AUROC",
    "aupro": "AUPRO",
    "f1_max": "F1-max",
    "false_alarm_rate_at_zero_escapes": "false alarms at zero escapes",
}
_HISTOGRAMS = 60  # more would make the page slow; the scores are in the rows

_READING = (
    "Intervals are 95 % bootstrap intervals of the seed mean: every seed meets the same resample of test images, so "
    "they say how far the mean would move with other test images. The range over the seeds says how far another fit "
    "moves it.",
    "Differences are paired: both detectors scored the same images. For image AUROC it is DeLong's test of the seed "
    "means (DeLong 1988, midranks of Sun and Xu 2014), p two-sided, and adjusted by Holm's method for the number of "
    "comparisons on this page; it answers for the draw of test images, with these fits given. The other differences "
    "have a paired bootstrap interval and no test.",
    "F1-max and false alarms at zero escapes choose their threshold on the test images: what a line gets is no better. "
    "Decisions at the threshold use the model's own, from good training parts only.",
    "Latency is the median over the seeds, taken in the same process right after the export, one model after the "
    "other: network alone, and from camera frame to decision.",
)


def compare_page(payload: dict[str, Any], groups: Sequence[Group]) -> str:
    """Return the page.

    Args:
        payload: what `edgead.comparing.summary.summarise` returned, with None for numbers that are not finite.
        groups: the same rows as `edgead.comparing.summary.group_rows` gave them.
    """
    summary = payload["summary"]
    series = {label: number for number, label in enumerate(payload["labels"])}
    categories = list(dict.fromkeys(one["category"] for one in summary))
    parts: list[Markup | None] = [
        element("h1", "Detectors compared"),
        element("p", _lead(payload, categories), class_="lead"),
        *_warnings(payload),
    ]
    if summary:
        parts += [
            section("Result", _main_table(summary), _overall(payload["overall"]), anchor="result"),
            section("How sure", _metric_dots(summary, series), anchor="intervals"),
            _differences(summary, series),
            _speed(summary, series),
            section("ROC", _legend_note(), element("div", *_rocs(groups, series), class_="grid"), anchor="roc"),
            section("Image scores", *_histograms(groups), anchor="scores"),
            section("Decisions at the threshold", _decisions(summary), anchor="decisions"),
            section("Export", _parity(summary), anchor="export"),
        ]
    parts += [
        section("Settings and machine", *_provenance(payload, groups), anchor="settings"),
        section("How to read this", *(element("p", text) for text in _READING), anchor="reading"),
    ]
    return document(f"Detectors compared: {', '.join(categories) or 'nothing measured'}", *parts)


def _lead(payload: dict[str, Any], categories: Sequence[str]) -> str:
    seeds = sorted({seed for one in payload["summary"] for seed in one["seeds"]})
    return (
        f"{', '.join(payload['labels']) or 'no detector'} on {', '.join(categories) or 'no category'}; "
        f"seeds {', '.join(map(str, seeds)) or 'none'}. Measured with edgead {payload['edgead']} on "
        f"{payload['machine']['cpu'] or payload['machine']['machine']}, {payload['machine']['cores']} cores."
    )


def _warnings(payload: dict[str, Any]) -> list[Markup]:
    said = [
        f"{one['category']}, {one['label']}, seed {one['seed']} failed: {one['error']}" for one in payload["failed"]
    ]
    random = [one["label"] for one in payload["summary"] if one["random_weights"]]
    if random:
        said.append(f"The backbone has random weights: {', '.join(dict.fromkeys(random))}. For trials, not for a line.")
    said += [
        f"{one['category']}, {one['label']}: no latency: {one['latency_missing']}"
        for one in payload["summary"]
        if one["latency_missing"]
    ]
    return [element("p", text, class_="warning") for text in said]


def _name(one: dict[str, Any]) -> list[Markup | str]:
    pooled = f"one model of {', '.join(one['pooled'])}" if one["pooled"] else None
    return [one["category"], cell(one["label"], below=pooled)]


def _figure(metric: dict[str, Any] | None) -> Markup:
    if metric is None:
        return number(MISSING, None)
    return number(f"{metric['mean']:.4f}", metric["mean"], f"{metric['low']:.4f} – {metric['high']:.4f}")


def _spread(metric: dict[str, Any] | None) -> Markup:
    if metric is None or len(metric["seeds"]) < 2:
        return number(MISSING, None)
    return number(f"{metric['min']:.4f} – {metric['max']:.4f}", metric["max"] - metric["min"])


def _main_table(summary: Sequence[dict[str, Any]]) -> Markup:
    headings = ["category", "detector", *(TITLES[name] for name in METRICS)]
    headings[3:3] = ["range over seeds"]
    headings += ["seeds", "MB", "fit s"]
    rows = []
    for one in summary:
        metrics = one["metrics"]
        rows.append(
            [
                *_name(one),
                _figure(metrics["image_auroc"]),
                _spread(metrics["image_auroc"]),
                *(_figure(metrics[name]) for name in METRICS[1:]),
                number(len(one["seeds"]), len(one["seeds"])),
                number(f"{one['bytes'] / 1e6:.1f}", one["bytes"]),
                number(f"{one['fit_seconds']:.1f}", one["fit_seconds"]),
            ]
        )
    note = "Means over seeds, below each its 95 % interval. A click on a heading sorts. – means: no masks, or one seed."
    return table(headings, rows, text_columns=2, note=note)


def _overall(overall: Sequence[dict[str, Any]]) -> Markup | None:
    if not overall:
        return None
    rows = [[one["label"], *(_figure(one["metrics"][name]) for name in METRICS)] for one in overall]
    note = (
        f"Detectors with all {overall[0]['categories']} categories. Pixel metrics over those that have masks. "
        "Categories count alike."
    )
    return join(
        element("h3", "Mean over categories"),
        table(["detector", *(TITLES[name] for name in METRICS)], rows, note=note),
    )


def _metric_dots(summary: Sequence[dict[str, Any]], series: dict[str, int]) -> Markup:
    panels = []
    for name in ("image_auroc", "pixel_auroc", "aupro", "false_alarm_rate_at_zero_escapes"):
        dots = []
        for one in summary:
            metric = one["metrics"][name]
            text = f"{one['category']}  {one['label']}"
            singles = metric["seeds"] if metric and len(metric["seeds"]) > 1 else ()
            dots.append(
                metric and plots.Dot(text, series[one["label"]], metric["mean"], metric["low"], metric["high"], singles)
            )
        if any(dots):
            panels.append((TITLES[name], dots))
    return element(
        "figure",
        plots.dots(panels, "Metrics with their intervals, by category and detector; the table above has the figures"),
        element("p", "Mark: seed mean. Line: 95 % interval. Ticks below: single seeds.", class_="note"),
    )


def _differences(summary: Sequence[dict[str, Any]], series: dict[str, int]) -> Markup | None:
    compared = [one for one in summary if one["difference"]]
    if not compared:
        return None
    against = ", ".join(dict.fromkeys(one["difference"]["against"] for one in compared))
    rows, dots = [], []
    for one in compared:
        found = one["difference"]
        test = found["image_auroc"]
        if test is None:
            cells = [number(MISSING, None, found["reason"]), number(MISSING, None), number(MISSING, None)]
        else:
            dots.append(
                plots.Dot(
                    f"{one['category']}  {one['label']}", series[one["label"]], test["value"], test["low"], test["high"]
                )
            )
            cells = [
                _signed(test),
                number(p_value(test["p"]).removeprefix("p = "), test["p"]),
                number(p_value(test["p_holm"]).removeprefix("p = "), test["p_holm"]),
            ]
        rows.append([*_name(one), *cells, *(_signed(found[name]) for name in METRICS[1:])])
    headings = ["category", "detector", "image AUROC", "p", "p (Holm)", *(TITLES[name] for name in METRICS[1:])]
    picture = (
        element(
            "figure",
            plots.dots(
                [("image AUROC minus the first detector's", dots)], "Paired differences of image AUROC", zero=True
            ),
        )
        if dots
        else None
    )
    note = (
        "Detector minus first, on the same images; below each difference its 95 % interval. "
        "One that crosses 0 shows no difference."
    )
    return section(
        f"Against {against}", table(headings, rows, text_columns=2, note=note), picture, anchor="differences"
    )


def _signed(found: dict[str, Any] | None) -> Markup:
    if found is None:
        return number(MISSING, None)
    return number(f"{found['value']:+.4f}", found["value"], f"{found['low']:+.4f} to {found['high']:+.4f}")


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


def _decisions(summary: Sequence[dict[str, Any]]) -> Markup:
    rows = []
    for one in summary:
        found = one["decisions"]
        counts = (
            ("false_alarms", f"{found['false_alarms']} of {found['normal']} good"),
            ("escapes", f"{found['escapes']} of {found['anomalous']} defective"),
            ("not_inspected", str(found["not_inspected"])),
        )
        rows.append([*_name(one), *(number(text, found[name]) for name, text in counts)])
    note = "All seeds together. Images that were not inspected (a router did not know the part) never pass the line."
    return table(["category", "detector", "false alarms", "escapes", "not inspected"], rows, text_columns=2, note=note)


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
