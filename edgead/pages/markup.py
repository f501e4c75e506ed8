"""HTML that cannot forget to escape: text becomes markup in `element` only."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Sequence

from edgead.pages.style import SCRIPT, STYLE
from edgead.runtime.version import __version__

_VOID = frozenset({"br", "img", "meta"})
_SPACES = re.compile(r"\s+")


class Markup(str):
    """Text that is HTML already; everything else is escaped where it is put in."""

    __slots__ = ()


Child = str | float | None


def element(name: str, /, *children: Child, **attributes: str | float | None) -> Markup:
    """Return one element with its children; None children and attributes are omitted.

    An attribute ``class_`` is written ``class``, and ``data_value`` is written ``data-value``.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value), quote=True)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{join(*children)}</{name}>")


def join(*children: Child) -> Markup:
    """Return children one after the other, escaped where they are not `Markup`."""
    parts = (child if isinstance(child, Markup) else html.escape(str(child)) for child in children if child is not None)
    return Markup("".join(parts))


def cell(text: Child, below: Child = None) -> Markup:
    """Return a table cell of text; ``below`` is a smaller second line."""
    return element("td", text, None if below is None else element("small", below))


def number(text: Child, value: float | None, below: Child = None) -> Markup:
    """Return a table cell of a figure; ``value`` is what it is sorted by, None comes before every other."""
    small = None if below is None else element("small", below)
    return element("td", text, small, data_value="-Infinity" if value is None else value, class_="number")


def table(
    headings: Sequence[str],
    rows: Sequence[Sequence[Child]],
    *,
    text_columns: int = 1,
    text_last: bool = False,
    note: str = "",
) -> Markup:
    """Return a table that a click on a heading sorts.

    Args:
        headings, rows: a cell that is not from `cell` or `number` is made a cell of text.
        text_columns: how many columns on the left are text; ``text_last``: the last one is text, too.
        note: what to know about the table, below it.
    """
    last = len(headings) - 1
    head = [
        element(
            "th", text, scope="col", class_=None if place < text_columns or (text_last and place == last) else "number"
        )
        for place, text in enumerate(headings)
    ]
    lines = []
    for row in rows:
        cells = (one if isinstance(one, Markup) and one.startswith("<td") else element("td", one) for one in row)
        lines.append(element("tr", *cells))
    body = element("table", element("thead", element("tr", *head)), element("tbody", *lines), class_="sortable")
    return join(element("div", body, class_="scroll"), element("p", note, class_="note") if note else None)


def facts(pairs: Sequence[tuple[str, Child]]) -> Markup:
    """Return a list of names and what they are."""
    return element("dl", *(join(element("dt", name), element("dd", value)) for name, value in pairs))


def section(title: str, *children: Child, anchor: str) -> Markup:
    """Return a part of the page with its heading."""
    return element("section", element("h2", title), *children, id=anchor)


def document(title: str, *body: Child) -> str:
    """Return the whole page.

    A policy in its head forbids the browser to load anything, and to run any script but our own, which sorts tables.
    """
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", name="generator", content=f"edgead {__version__}"),
        element("title", title),
        element("style", Markup(STYLE)),
    )
    content = element("body", element("main", *body), element("script", Markup(SCRIPT)))
    return f"<!doctype html>\n{element('html', head, content, lang='en')}\n"


def image(data: bytes, kind: str, text: str) -> Markup:
    """Return a picture that is part of the page; ``kind`` is ``jpeg`` or ``png``, ``text`` says what it shows."""
    uri = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return element("img", src=uri, alt=_SPACES.sub(" ", text))
