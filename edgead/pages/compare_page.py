"""The page of a comparison, made of its JSON form and of the image scores in its rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgead.comparing.summary import Group, unlike_normals
from edgead.comparing.tables import MISSING, p_value
from edgead.evaluation.evaluation import METRICS
from edgead.pages import plots
from edgead.pages.compare_sections import (
    _decisions,
    _histograms,
    _legend_note,
    _name,
    _parity,
    _provenance,
    _rocs,
    _speed,
)
from edgead.pages.markup import Markup, document, element, join, number, section, table

TITLES = {
    "image_auroc": "image AUROC",
    "pixel_auroc": "pixel AUROC",
    "aupro": "AUPRO",
    "f1_max": "F1-max",
    "false_alarm_rate_at_zero_escapes": "false alarms at zero escapes",
}

_READING = (
    "Intervals are 95 % bootstrap intervals of the seed mean: every seed meets the same resample of test images, so "
    "they say how far the mean would move with other test images. The range over the seeds says how far another fit "
    "moves it.",
    "Differences are paired: both detectors scored the same images. For image AUROC it is DeLong's test of the seed "
    "means (DeLong 1988, midranks of Sun and Xu 2014), p two-sided, and adjusted by Holm's method for the number of "
    "comparisons on this page; it answers for the draw of test images, with these fits given. The other differences "
    "have a paired bootstrap interval and no test.",
    "F1-max and false alarms at zero escapes choose their threshold on the test images: what a line gets is no better. "
    "Decisions at the threshold use the model's own, from good training parts only. The interval of a share is that of "
    "Clopper and Pearson (1934); of several seeds, which judged the same images, it is the mean of their intervals.",
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
            section("Escapes and false alarms", *_decisions(summary), anchor="decisions"),
            section("Result", _main_table(summary), _overall(payload["overall"]), anchor="result"),
            section("How sure", _metric_dots(summary, series), anchor="intervals"),
            _differences(summary, series),
            _speed(summary, series),
            section("ROC", _legend_note(), element("div", *_rocs(groups, series), class_="grid"), anchor="roc"),
            section("Image scores", *_histograms(groups), anchor="scores"),
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
        names = ", ".join(dict.fromkeys(random))
        said.append(f"The backbone has random weights: {names}. For trials, not for production.")
    said += [
        f"{one['category']}, {one['label']}: no latency: {one['latency_missing']}"
        for one in payload["summary"]
        if one["latency_missing"]
    ]
    said += unlike_normals(payload)
    return [element("p", text, class_="warning") for text in said]


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
