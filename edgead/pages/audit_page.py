"""The page of an audit: the images that a person should look at, with what is odd about them."""

from __future__ import annotations

from edgead.auditing import AuditedImage, AuditReport
from edgead.pages.markup import Markup, document, element, image, section, table

_MOST_GROUPS = 50


def audit_page(report: AuditReport) -> str:
    """Return the page."""
    card = report.card
    lead = (
        f"{report.images} normal images of {card.parts} parts. Each was scored by a PatchCore of the others; the heat "
        "maps are of a model that saw none of the images below. A defect, another product or a black frame among "
        "normal images is learned as normal: remove it, or fit with --exclude NAME."
    )
    return document(
        f"Audit of {report.name}",
        element("h1", f"Audit of {report.name}"),
        element("p", lead, class_="lead"),
        section("Unlike the others", *_images(report, odd=True), anchor="odd"),
        section("Highest scores", *_images(report, odd=False), anchor="scores"),
        section("Copies", *_copies(report), anchor="copies"),
    )


def _images(report: AuditReport, *, odd: bool) -> list[Markup]:
    chosen = [one for one in report.shown if bool(one.why) == odd]
    if not chosen:
        return [element("p", "None.")]
    note = [] if odd else [element("p", f"A model of all images has its threshold at {report.threshold:.5g}.")]
    return [*note, element("div", *map(_figure, chosen), class_="gallery")]


def _figure(one: AuditedImage) -> Markup:
    views = element(
        "div",
        image(one.picture, "jpeg", f"image {one.name}"),
        image(one.heat_map, "jpeg", f"heat map of {one.name}"),
        class_="views",
    )
    said = one.why or (f"score {one.score:.5g}" if one.score is not None else "")
    return element("figure", views, element("figcaption", one.name, element("small", said)))


def _copies(report: AuditReport) -> list[Markup]:
    groups = report.card.copies
    if not groups:
        return [element("p", "No image is a copy of another.")]
    rows = [[str(len(group)), ", ".join(group)] for group in groups[:_MOST_GROUPS]]
    left = len(groups) - len(rows)
    more = [element("p", f"{left} more groups are in the JSON.")] if left else []
    return [
        element("p", "Images of one group count once in a threshold: they show the same part."),
        table(["images", "names"], rows),
        *more,
    ]
