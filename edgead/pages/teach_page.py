"""The page of a lesson: what was learned, what old and new bundle decide, and what stands in the way."""

from __future__ import annotations

from collections.abc import Sequence

from edgead.pages.markup import Markup, document, element, facts, image, section, table
from edgead.runtime.frame import Decision
from edgead.teaching.gate import Judged
from edgead.teaching.lesson_report import TeachReport

_WORDS = {Decision.OK: "passes", Decision.ANOMALY: "is rejected", Decision.NOT_INSPECTED: "is not inspected"}


def teach_page(report: TeachReport) -> str:
    """Return the page."""
    gate = report.gate
    verdict = (
        f"The new bundle may take over: {report.out}"
        if gate.passed
        else f"Refused: {len(gate.problems)} labelled parts would be decided worse. Nothing was written."
    )
    waived = [one for one in gate.labelled if one.waived is not None]
    return document(
        "What the model was taught",
        element("h1", "What the model was taught"),
        element("p", verdict, class_="lead"),
        section("What was learned", facts(_learned(report)), anchor="learned"),
        section("Labelled parts", _figures(report), anchor="labelled"),
        section("In the way", *_gallery(gate.problems), anchor="problems"),
        *([section("Waived", *_gallery(waived), anchor="waived")] if waived else []),
        section("Decided otherwise, not labelled", *_unlabelled(report), anchor="unlabelled"),
    )


def _learned(report: TeachReport) -> list[tuple[str, str]]:
    lessons = report.lessons
    left = [
        *([f"{len(lessons.disputed)} disputed"] if lessons.disputed else []),
        *([f"{len(lessons.without_image)} without image"] if lessons.without_image else []),
    ]
    return [
        ("good parts", str(len(lessons.good))),
        ("defects", str(len(lessons.defective))),
        ("not learned", ", ".join(left) or "none"),
        ("threshold before", report.before.explain()),
        ("threshold now", report.after.explain()),
        (
            "taught good parts",
            f"{report.still_rejected} of {report.scored} lie above the threshold when scored without their own image",
        ),
    ]


def _figures(report: TeachReport) -> Markup:
    gate = report.gate
    rows: list[list[str]] = []
    for label, wrong, name in (
        ("good", Decision.ANOMALY, "good parts that are rejected"),
        ("defect", Decision.OK, "defects that pass"),
    ):
        parts = sum(one.label == label for one in gate.labelled)
        rows.append([name, *(f"{gate.count(label, wrong, new=new)} of {parts}" for new in (False, True))])
    return table(["", "old bundle", "new bundle"], rows)


def _unlabelled(report: TeachReport) -> list[Markup]:
    gate = report.gate
    lead = (
        f"{len(gate.changed)} of {gate.sampled} parts, drawn at random from {gate.of_unlabelled} of which nobody said "
        "anything, are decided otherwise. Nobody knows which decision is right: look at them."
    )
    return [element("p", lead), *(_gallery(gate.changed) if gate.changed else [])]


def _gallery(parts: Sequence[Judged]) -> list[Markup]:
    if not parts:
        return [element("p", "None.")]
    shown = [one for one in parts if one.picture]
    more = [element("p", f"{len(parts) - len(shown)} more are in the JSON.")] if len(shown) < len(parts) else []
    return [element("div", *map(_figure, shown), class_="gallery"), *more]


def _figure(one: Judged) -> Markup:
    views = element(
        "div",
        image(one.picture, "jpeg", one.name),
        image(one.before, "jpeg", f"heat map of the old bundle, {one.name}"),
        image(one.after, "jpeg", f"heat map of the new bundle, {one.name}"),
        class_="views",
    )
    kind = f" ({one.kind})" if one.kind else ""
    label = f"labelled {one.label}{kind}; " if one.label else ""
    shares = f"scores {one.scores[0]:.2f} and {one.scores[1]:.2f} of the threshold"
    said = f"{label}old: {_WORDS[one.old]}, new: {_WORDS[one.new]}; {shares}"
    if one.problem is not None:
        said = f"{one.problem}{'' if one.waived is None else f'; waived: {one.waived}'}. {said}"
    return element("figure", views, element("figcaption", one.name, element("small", said)))
