"""The part of a report that tells of escapes and false alarms."""

from __future__ import annotations

import math

import numpy as np

from edgead.pages import plots
from edgead.pages.compare_sections import ALLOWED
from edgead.pages.markup import Markup, element, number, table
from edgead.reporting import Report


def decisions(report: Report) -> list[Markup]:
    """Return what the threshold does, in all and by kind of defect, what the scores allow, and the scores."""
    known = [one for one in report.evaluation.images if math.isfinite(one.score)]
    scores = np.array([one.score for one in known], np.float64)
    labels = np.array([one.anomalous for one in known], bool)
    name, found = report.evaluation.name, report.evaluation.decisions
    rejected, caught = plots.roc_curve(scores, labels)
    point = (found.false_alarms / max(1, found.normal), 1 - found.escapes / max(1, found.anomalous))
    histogram = plots.histogram(
        scores[~labels],
        scores[labels],
        plots.usual_threshold([one.threshold for one in known]),
        f"Image scores of good and defective images, {name}",
        width=5.6,
    )
    auroc = report.evaluation.image_auroc.value
    roc = plots.roc([plots.Curve(f"AUROC {auroc:.4f}", 0, rejected, caught)], f"ROC curve, {name}", point=point)
    caught_text = f"{found.anomalous - found.escapes} of {found.anomalous} defects found"
    alarms = f"{found.false_alarms} of {found.normal} good images rejected"
    threshold = report.about.threshold
    meaning = f"{_first_upper(threshold.explain())}. At it" if threshold.supported else "At the threshold"
    return [
        element("p", f"{meaning} {caught_text}, {alarms}."),
        *_defects(report),
        *_allowed(report),
        element(
            "div",
            element("figure", element("figcaption", element("b", "Image scores")), histogram),
            element("figure", element("figcaption", element("b", "ROC")), roc),
            class_="pair",
        ),
    ]


def _first_upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _defects(report: Report) -> list[Markup]:
    if len(report.evaluation.defects) < 2:
        return []
    rows = [
        [
            one.label,
            number(one.images, one.images),
            number(f"{one.escapes}", one.escapes, f"{one.escape_share.percent}, {one.escape_share.interval}"),
            number(one.not_inspected, one.not_inspected),
            number("–" if one.image_auroc is None else f"{one.image_auroc:.4f}", one.image_auroc),
        ]
        for one in report.evaluation.defects
    ]
    headings = ["defect", "images", "escapes", "not inspected", "image AUROC against all good"]
    return [element("h3", "By kind of defect"), table(headings, rows)]


def _allowed(report: Report) -> list[Markup]:
    if not report.evaluation.allowed:
        return []
    rows = [
        [
            number(f"{one.rate * 100:g} %", one.rate),
            number(f"{one.false_alarms.count} of {one.false_alarms.n}", one.false_alarms.count),
            number(f"{one.escapes.count} of {one.escapes.n}", one.escapes.count),
            number(one.escapes.percent, one.escapes.value, one.escapes.interval),
        ]
        for one in report.evaluation.allowed
    ]
    headings = ["at most so many false alarms", "good images rejected", "escapes", "share of the defective images"]
    return [
        element("h3", "Escapes that the scores allow"),
        table(headings, rows, text_columns=0, note=ALLOWED),
    ]
