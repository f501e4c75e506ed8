"""The page of one model on one category."""

from __future__ import annotations

import math
from typing import Any

from edgead.evaluation.decisions import ImageScore
from edgead.evaluation.evaluation import METRICS
from edgead.metrics.metrics import Metric
from edgead.pages import plots
from edgead.pages.compare_page import TITLES
from edgead.pages.markup import Markup, cell, document, element, facts, image, number, section, table
from edgead.pages.report_decisions import decisions
from edgead.reporting import ESCAPES, FALSE_ALARMS, LEFT_OUT, Report
from edgead.runtime.bundle.manifest_schema import ParityRecord
from edgead.runtime.device.bench_report import BenchReport, BenchRow
from edgead.runtime.imaging.heatmap import colormap

_STAGES = ("wait", "preprocess", "network", "decide")

_MEANING = {
    "image_auroc": "how often a defective image scores above a good one; 0.5 is chance",
    "pixel_auroc": "the same for single pixels of the anomaly map",
    "aupro": "how much of each defect the map covers, up to 30 % false pixels",
    "f1_max": "best F1 of any threshold, chosen on these test images: what a line gets is no better",
    "false_alarm_rate_at_zero_escapes": "share of good images rejected by a threshold that lets no defect pass",
}


def report_page(report: Report) -> str:
    """Return the page."""
    found, about = report.evaluation, report.about
    lead = (
        f"{about.detector} at {about.height}x{about.width} pixels, a {about.kind}, judged {found.n_normal} good and "
        f"{found.n_anomalous} defective test images on {report.backend.name} ({report.backend.precision})."
    )
    return document(
        f"{about.name} on {found.name}",
        element("h1", f"{about.name} on {found.name}"),
        element("p", lead, class_="lead"),
        *_warnings(report),
        _tiles(report),
        section("Decisions", *decisions(report), anchor="decisions"),
        section("Metrics", _metrics(report), anchor="metrics"),
        section("Images", *_gallery(report), anchor="images"),
        section("Export", _parity(report), *_worst(report), anchor="export"),
        section("Latency", *_latency(report), anchor="latency"),
        section("Model and machine", *_provenance(report), anchor="model"),
    )


def _warnings(report: Report) -> list[Markup]:
    said = []
    if report.about.provenance.get("random_weights"):
        said.append("The backbone has random weights: good for trials, not for production.")
    if not report.about.threshold.supported:
        said.append(report.about.threshold.explain())
    if report.evaluation.empty_masks:
        said.append(f"{report.evaluation.empty_masks} defects vanish at network size; fit with a larger --size.")
    said += [f"{report.evaluation.name}: {doubt}." for doubt in report.evaluation.doubts]
    return [element("p", text, class_="warning") for text in said]


def _tiles(report: Report) -> Markup:
    found, judged = report.evaluation, report.evaluation.decisions
    escapes, alarms = judged.escape_share, judged.false_alarm_share
    tiles = [
        (
            "escapes",
            f"{escapes.count} of {escapes.n}",
            f"defective images passed at the threshold: {escapes.percent}, {escapes.interval}",
        ),
        (
            "false alarms",
            f"{alarms.count} of {alarms.n}",
            f"good images rejected at the threshold: {alarms.percent}, {alarms.interval}",
        ),
        ("image AUROC", _value(found.image_auroc), _interval(found.image_auroc)),
        ("pixel AUROC", _value(found.pixel_auroc), _interval(found.pixel_auroc)),
        ("AUPRO", _value(found.aupro), _interval(found.aupro)),
    ]
    if judged.not_inspected:
        tiles.append(("not inspected", str(judged.not_inspected), "the router did not know the part"))
    if report.latency:
        fastest = min(report.latency.rows, key=lambda row: row.latency.p50)
        text = f"camera to decision, p50, {fastest.backend.name}"
        tiles.append(("latency", f"{fastest.latency.p50:.2f} ms", text))
    made = [
        element("div", element("span", name), element("b", value), element("small", below), class_="tile")
        for name, value, below in tiles
    ]
    return element("div", *made, class_="tiles")


def _value(metric: Metric | None) -> str:
    return "–" if metric is None else f"{metric.value:.4f}"


def _interval(metric: Metric | None) -> str:
    return "no masks" if metric is None else f"{metric.low:.4f} – {metric.high:.4f}"


def _metrics(report: Report) -> Markup:
    rows = []
    for name in METRICS:
        metric = report.evaluation.metric(name)
        rows.append(
            [
                TITLES[name],
                number(_value(metric), None if metric is None else metric.value),
                number(_interval(metric), None if metric is None else metric.low),
                element("td", _MEANING[name]),
            ]
        )
    note = "Intervals: 95 % bootstrap over the test images, good and defective ones resampled separately."
    return table(["metric", "value", "95 % interval", "what it says"], rows, note=note, text_last=True)


def _gallery(report: Report) -> list[Markup]:
    steps = ", ".join(f"rgb({red},{green},{blue})" for red, green, blue in colormap()[::32].tolist())
    scale = element("i", style=f"width:120px;background:linear-gradient(90deg,{steps})")
    legend = element(
        "ul",
        element("li", scale, "score 0, threshold in the middle, twice the threshold"),
        element("li", element("i", style="background:rgb(255,64,64)"), "the map crosses the threshold"),
        element("li", element("i", style="background:rgb(0,214,255)"), "edge of the labelled defect"),
        class_="legend",
    )
    parts: list[Markup] = [
        element("p", "Left the image, right its heat map. The scale is the same for every image."),
        legend,
    ]
    for name, none in ((ESCAPES, "No defect escaped."), (FALSE_ALARMS, "No good image was rejected.")):
        if not any(picture.group == name for picture in report.pictures):
            parts.append(element("p", none))
    for group in dict.fromkeys(picture.group for picture in report.pictures):
        members = [picture for picture in report.pictures if picture.group == group]
        figures = []
        for picture in members:
            one = picture.image
            views = element(
                "div",
                image(picture.photo, "jpeg", f"image {one.path}"),
                image(picture.heat_map, "jpeg", f"heat map of {one.path}"),
                class_="views",
            )
            caption = element("figcaption", one.path, element("small", *_caption(one, group)))
            figures.append(element("figure", views, caption))
        parts += [element("h3", group), element("div", *figures, class_="gallery")]
    return parts


def _caption(one: ImageScore, group: str) -> list[Markup | str]:
    wrong = group in (ESCAPES, FALSE_ALARMS, LEFT_OUT)
    badge = element("span", one.decision.value, class_="badge bad" if wrong else "badge")
    if not math.isfinite(one.score):
        return [badge, f" {one.reason or ''}"]
    share = f", {one.score / one.threshold:.0%} of the threshold" if one.threshold > 0 else ""
    return [badge, f" score {one.score:.5g}{share}"]


def _parity(report: Report) -> Markup:
    if report.about.parity is None:
        return element("p", "A model directory runs on torch and has no export record; report the bundle for one.")
    rows = []
    for file, records in report.about.parity.items():
        for runtime, record in records.items():
            changed = record.flips + record.borderline
            cells = (record.max_score_difference, record.p99_score_difference, record.max_map_difference)
            rows.append(
                [
                    file,
                    cell(runtime, record.note),
                    number(f"{changed} of {record.images}", changed),
                    *(number(f"{value:.1e}" if math.isfinite(value) else "not finite", value) for value in cells),
                    number(_change(record), record.auroc_change),
                ]
            )
    headings = ["graph", "runtime", "changed decisions", "max score diff.", "p99 score diff.", "max map diff."]
    headings.append("AUROC change")
    note = "Recorded at export: the graph on each runtime against the torch model, from image file to decision."
    return table(headings, rows, text_columns=2, note=note)


def _change(record: ParityRecord) -> str:
    if record.auroc_change is None:
        return "–"
    return f"{record.auroc_change:+.4f} ({record.auroc_change_low:+.4f} to {record.auroc_change_high:+.4f})"


def _worst(report: Report) -> list[Markup]:
    """The image that each reduced precision moved most, beside what FP32 makes of it."""
    figures = []
    for one in report.worst:
        views = element(
            "div",
            image(one.photo, "jpeg", f"image {one.name}"),
            image(one.before, "jpeg", f"heat map of {one.name} in fp32"),
            image(one.after, "jpeg", f"heat map of {one.name} in {one.precision}"),
            class_="views",
        )
        said = [
            f"{precision}: {decision}, score {score:.5g} at threshold {threshold:.5g}"
            for precision, decision, score, threshold in zip(
                ("fp32", one.precision), one.decisions, one.scores, one.thresholds, strict=True
            )
        ]
        changed = one.decisions[0] != one.decisions[1]
        badge = element("span", one.precision, class_="badge bad" if changed else "badge")
        caption = element("figcaption", one.name, element("small", badge, f" {'; '.join(said)}"))
        figures.append(element("figure", views, caption))
    if not figures:
        return []
    note = "Of the images that the precision was proved on, the one whose score it moved most: image, fp32, precision."
    return [element("h3", "Largest differences"), element("p", note), element("div", *figures, class_="gallery")]


def _latency(report: Report) -> list[Markup]:
    if report.latency is None:
        reason = report.latency_missing
        if reason is None:
            reason = "only bundles are timed" if report.about.kind != "bundle" else "it was not asked for"
        return [element("p", f"Not measured: {reason}.")]
    found = report.latency
    stages = [name for name in _STAGES if any(name in row.stages for row in found.rows)]
    if all(row.stages["wait"].p50 < 0.005 for row in found.rows if "wait" in row.stages):
        stages = [name for name in stages if name != "wait"]
    drawn = [
        (
            _runtime(row),
            [(name, row.stages[name].p50) for name in stages if name in row.stages],
            f"{row.latency.p50:.2f} ms (p99 {row.latency.p99:.2f})",
        )
        for row in found.rows
    ]
    picture = plots.bars(drawn, "ms, p50 of each stage", "Latency of each stage by runtime")
    rows = []
    for row in found.rows:
        times = (row.latency.p50, row.latency.p95, row.latency.p99, row.latency.max, row.stages["network"].p50)
        rows.append(
            [
                cell(_runtime(row), f"{row.backend.version}, {row.backend.threads or 'own choice of'} threads"),
                *(number(f"{time:.2f}", time) for time in times),
                number(f"{row.throughput_fps:.1f}", row.throughput_fps),
            ]
        )
    headings = ["runtime", "p50, ms", "p95", "p99", "max", "network p50", "frames a second"]
    parts = [element("figure", picture), table(headings, rows, note=_bench_note(found))]
    parts += [
        element("p", f"Not measured on {name}: {reason}", class_="note") for name, reason in found.skipped.items()
    ]
    return parts


def _runtime(row: BenchRow) -> str:
    return f"{row.backend.name} {row.precision}"


def _bench_note(found: BenchReport) -> str:
    width, height = found.frame_size
    return (
        f"Camera frame of {width}x{height} pixels to decision, {found.frames} frames after {found.warm_up} to warm up, "
        "one after the other, runtimes taking turns."
    )


def _provenance(report: Report) -> list[Markup]:
    about, machine = report.about, report.machine
    backbone: Any = about.provenance.get("backbone") or {}
    versions: Any = about.provenance.get("versions") or {}
    pairs: list[tuple[str, str | None]] = [
        ("threshold", about.threshold.explain()),
        ("settings", ", ".join(f"{name}={value}" for name, value in about.settings.items())),
        ("trained on", ", ".join(f"{name}: {count} good images" for name, count in about.categories.items() if count)),
        ("backbone", f"{backbone.get('name', 'not recorded')}, weights: {backbone.get('weights', 'not recorded')}"),
        ("weights SHA-256", backbone.get("weights_sha256")),
        ("weights licence", backbone.get("licence")),
        ("seed", _text(about.provenance.get("seed"))),
        ("manifest SHA-256", about.sha256),
        ("trained with", ", ".join(f"{name} {version}" for name, version in versions.items()) or None),
        ("judged on", f"{report.backend.name} {report.backend.version}, {report.backend.device}"),
        ("machine", f"{machine['system']} {machine['machine']}, {machine['cpu'] or '?'}, {machine['cores']} cores"),
    ]
    return [facts([(name, value) for name, value in pairs if value])]


def _text(value: object) -> str | None:
    return None if value is None else str(value)
