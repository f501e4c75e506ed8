"""The page of a replay: the parts of a record that are decided otherwise now, each with its picture."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from edgead.pages.markup import Markup, document, element, facts, image, section, table
from edgead.runtime.device.rejudge import Rejudged, ReplayReport
from edgead.runtime.frame import Decision


def replay_page(report: ReplayReport, pictures: Mapping[int, tuple[bytes, bytes]]) -> str:
    """Return the page.

    Args:
        report: what was judged again.
        pictures: by row, the part and the part with its heat map, JPEG; parts without one are in the table only.
    """
    by = "the bundle that judged each of them" if report.bundle is None else report.bundle
    title = f"Changed decisions of {report.folder}"
    lead = (
        f"{report.judged} of {report.parts} recorded parts were judged again from their stored pixels, by {by}. "
        f"{len(report.changed)} come out otherwise."
    )
    return document(
        title,
        element("h1", title),
        element("p", lead, class_="lead"),
        _facts(report),
        section("Rejected then, passed now", *_group(report, pictures, passed=True), anchor="passed"),
        section("Passed then, rejected now", *_group(report, pictures, passed=False), anchor="rejected"),
    )


def _facts(report: ReplayReport) -> Markup:
    pairs = [("Ran on", text) for text in report.backends]
    if report.without_image:
        pairs.append(("Without an image", f"{report.without_image} parts, which were not judged again"))
    if report.not_judged:
        pairs.append(("Not judged then", f"{report.not_judged} parts, by no bundle"))
    if report.compared is not None:
        pairs += [("What is known", claim) for claim in report.compared.claims()]
    for label, counts in sorted(report.labelled.items()):
        text = f"{counts['parts']} parts: {counts['rejected']} rejected then, {counts['rejected_now']} now"
        pairs.append((f"Labelled {label}", text))
    pairs += [("Could not be read", problem) for problem in report.problems[:20]]
    return facts(pairs)


def _group(report: ReplayReport, pictures: Mapping[int, tuple[bytes, bytes]], *, passed: bool) -> list[Markup]:
    chosen = [one for one in report.changed if (one.result.decision is Decision.OK) == passed]
    if not chosen:
        return [element("p", "None.")]
    rows = [
        [one.row.part or f"row {one.row.seq}", _time(one), _was(one), _now(one), ", ".join(one.labels)]
        for one in chosen
    ]
    shown = [_figure(one, *pictures[one.row.seq]) for one in chosen if one.row.seq in pictures]
    left = len(chosen) - len(shown)
    return [
        element("div", *shown, class_="gallery"),
        table(
            ["part", "judged", "was", "is now", "labels"],
            rows,
            text_columns=5,
            note=f"{left} of them are not pictured above." if left else "",
        ),
    ]


def _figure(one: Rejudged, part: bytes, heat: bytes) -> Markup:
    name = one.row.part or f"row {one.row.seq}"
    views = element(
        "div", image(part, "jpeg", f"part {name}"), image(heat, "jpeg", f"heat map of {name}"), class_="views"
    )
    said = f"{_was(one)} → {_now(one)}"
    return element("figure", views, element("figcaption", name, element("small", said)))


def _was(one: Rejudged) -> str:
    return _said(str(one.row.decision), one.row.score, one.row.body.get("threshold"))


def _now(one: Rejudged) -> str:
    said = one.result.to_dict()
    return _said(one.result.decision.value, said["score"], said["threshold"])


def _said(decision: str, score: float | None, threshold: float | None) -> str:
    if score is None or threshold is None:
        return decision
    return f"{decision} ({score:.5g}, threshold {threshold:.5g})"


def _time(one: Rejudged) -> str:
    return datetime.fromtimestamp(one.row.time_ms / 1000).astimezone().strftime("%Y-%m-%d %H:%M:%S")
