"""Plots as inline SVG: drawn by matplotlib, coloured by the page, so that they follow light and dark."""

from __future__ import annotations

import io
import math
import re
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgead.pages.markup import Markup, element
from edgead.pages.style import SERIES

# Colours that stand for the page's own; no series has them.
_TEXT, _SOFT, _LINE = "#010203", "#040506", "#070809"
_MARKERS = "osD^vPX*"
GOOD, DEFECTIVE = SERIES[0], SERIES[1]


@dataclass(frozen=True, slots=True)
class Dot:
    """A line of `dots`: a value with its interval, and single values beside it."""

    text: str
    series: int
    value: float
    low: float
    high: float
    singles: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class Curve:
    """A line of `roc`: share of good parts rejected against share of defects found, both ascending from 0 to 1."""

    text: str
    series: int
    x: NDArray[np.float64]
    y: NDArray[np.float64]


def roc_curve(scores: NDArray[np.float64], anomalous: NDArray[np.bool_]) -> tuple[NDArray[np.float64], ...]:
    """Return ``(false-positive rate, true-positive rate)``, one point a different score; ties make a slope."""
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    found = np.concatenate(([0], np.cumsum(anomalous[order])[ends])) / max(1, int(anomalous.sum()))
    rejected = np.concatenate(([0], np.cumsum(~anomalous[order])[ends])) / max(1, int((~anomalous).sum()))
    return rejected, found


def roc(curves: Sequence[Curve], what: str, *, point: tuple[float, float] | None = None) -> Markup:
    """Return ROC curves; ``point`` is where the threshold stands."""
    figure, axes = _figure(4.6, 4.2)
    axes.plot([0, 1], [0, 1], color=_LINE, lw=1, ls=(0, (4, 4)))
    styles = ("-", (0, (6, 2)), (0, (2, 1.5)), "-.")
    for curve in curves:
        axes.plot(
            curve.x,
            curve.y,
            color=SERIES[curve.series % len(SERIES)],
            lw=1.8,
            ls=styles[curve.series % len(styles)],
            label=_plain(curve.text),
        )
    if point is not None:
        axes.plot(*point, "o", ms=9, mfc="none", mec=_TEXT, mew=1.8, label="at the threshold", clip_on=False, zorder=5)
    axes.set(
        xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), xlabel="false alarms, share of good", ylabel="found, share of defective"
    )
    axes.set_aspect("equal")
    axes.legend(loc="lower right", frameon=False, fontsize=8.5, labelcolor=_TEXT)
    return _svg(figure, what)


def usual_threshold(thresholds: list[float]) -> float:
    """Return the threshold that most images were compared with; a router may choose one for each."""
    return max(set(thresholds), key=lambda value: (thresholds.count(value), value))


def histogram(
    good: NDArray[np.float64], defective: NDArray[np.float64], threshold: float, what: str, *, width: float = 4.6
) -> Markup:
    """Return the image scores of good and defective parts, and the threshold."""
    figure, axes = _figure(width, width * 0.52)
    every = np.concatenate((good, defective, [threshold]))
    low, high = float(every.min()), float(every.max())
    margin = (high - low) * 0.03 or max(abs(high), 1.0) * 0.03
    edges = np.linspace(low - margin, high + margin, 41)
    counts, found = np.histogram(good, edges)[0], np.histogram(defective, edges)[0]
    axes.stairs(counts, edges, fill=True, color=GOOD, alpha=0.55, label="good")
    axes.stairs(found, edges, color=DEFECTIVE, lw=1.7, label="defective")
    axes.axvline(threshold, color=_TEXT, lw=1.2, ls=(0, (4, 2)), label="threshold")
    axes.set(xlabel="image score", ylabel="images", xlim=(edges[0], edges[-1]))
    axes.set_ylim(0, max(1, int(max(counts.max(), found.max()))) * 1.08)
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False, fontsize=8.5, labelcolor=_TEXT, loc="best")
    return _svg(figure, what)


def dots(panels: Sequence[tuple[str, Sequence[Dot | None]]], what: str, *, zero: bool = False) -> Markup:
    """Return panels side by side, a line a dot with its interval; the lines' names stand on the left.

    Args:
        panels: heading and dots, every panel with the same lines; None where a line has no value.
        zero: mark zero, for differences.
    """
    import matplotlib.ticker as ticker

    lines = len(panels[0][1])
    known = [[dot for _, panel in panels if (dot := panel[line]) is not None] for line in range(lines)]
    figure, _ = _figure(2.2 + 2.35 * len(panels), 0.75 + 0.27 * lines, axes=False)
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (heading, members) in zip(grid, panels, strict=True):
        _dress(axes)
        axes.grid(axis="x", color=_LINE, lw=0.6)
        for line, dot in enumerate(members):
            if dot is None:
                axes.text(0.5, line, "–", color=_SOFT, ha="center", va="center", transform=axes.get_yaxis_transform())
                continue
            colour = SERIES[dot.series % len(SERIES)]
            axes.plot([dot.low, dot.high], [line, line], color=colour, lw=1.8, solid_capstyle="butt")
            axes.plot(dot.singles, [line + 0.27] * len(dot.singles), "|", color=colour, ms=5, mew=1.2)
            axes.plot([dot.value], [line], _MARKERS[dot.series % len(_MARKERS)], color=colour, ms=6)
        if zero:
            axes.axvline(0, color=_TEXT, lw=1)
        axes.set_title(heading, fontsize=9.5, color=_TEXT, loc="left")
        axes.xaxis.set_major_locator(ticker.MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
        axes.margins(x=0.06)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
    grid[0].set_yticks(range(lines), [_plain(members[0].text) if members else "" for members in known])
    grid[0].set_ylim(lines - 0.4, -0.6)
    return _svg(figure, what)


def scatter(points: Sequence[tuple[str, int, str, float, float]], x: str, y: str, what: str) -> Markup:
    """Return one mark a point ``(series name, series, shape name, x, y)``; x is logarithmic where it spans a decade."""
    figure, axes = _figure(6.2, 4.0)
    shapes = list(dict.fromkeys(shape for _, _, shape, *_ in points))
    for name, series, shape, at, value in points:
        marker = _MARKERS[shapes.index(shape) % len(_MARKERS)]
        axes.plot(
            [at], [value], marker, color=SERIES[series % len(SERIES)], ms=8, alpha=0.9, label=_plain(f"{name}, {shape}")
        )
    places = [at for *_, at, _ in points]
    if min(places) > 0 and max(places) / min(places) > 10:
        axes.set_xscale("log")
    axes.grid(color=_LINE, lw=0.6)
    axes.margins(0.08)
    axes.set(xlabel=x, ylabel=y)
    axes.legend(frameon=False, fontsize=8, labelcolor=_TEXT, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return _svg(figure, what)


def bars(rows: Sequence[tuple[str, Sequence[tuple[str, float]], str]], unit: str, what: str) -> Markup:
    """Return stacked bars, one ``(name, parts, text at its end)`` each; every one has the same named parts."""
    figure, axes = _figure(7.2, 0.9 + 0.42 * len(rows))
    for place, (_, parts, text) in enumerate(rows):
        start = 0.0
        for series, (name, value) in enumerate(parts):
            axes.barh(place, value, 0.62, left=start, color=SERIES[series], alpha=0.85, label=None if place else name)
            start += value
        axes.annotate(text, (start, place), (6, 0), textcoords="offset points", va="center", fontsize=8.5, color=_TEXT)
    axes.set_yticks(range(len(rows)), [_plain(name) for name, *_ in rows])
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    axes.margins(x=0.22)
    axes.tick_params(axis="y", length=0)
    axes.legend(frameon=False, fontsize=8.5, labelcolor=_TEXT, ncols=4, loc="lower left", bbox_to_anchor=(0, 1.0))
    return _svg(figure, what)


def _figure(width: float, height: float, *, axes: bool = True) -> tuple[Any, Any]:
    """Return a figure and its axes in inches, without pyplot and its global state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    if not axes:
        return figure, None
    made = figure.add_subplot()
    _dress(made)
    return figure, made


def _dress(axes: Any) -> None:
    axes.patch.set_alpha(0)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_SOFT)
    axes.tick_params(colors=_SOFT, labelcolor=_TEXT, labelsize=8.5)
    axes.xaxis.label.set(color=_SOFT, fontsize=9)
    axes.yaxis.label.set(color=_SOFT, fontsize=9)


def _svg(figure: Any, what: str) -> Markup:
    """Return the figure as an element that says ``what`` it shows to those who do not see it."""
    import matplotlib

    # Every figure counts its parts from 1; a page may hold an id once.
    mark = f"p{zlib.crc32(what.encode('utf-8', 'replace')):x}-"
    stream = io.StringIO()
    with warnings.catch_warnings(), matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": mark}):
        # The browser has the letters that matplotlib's own font lacks.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure.savefig(stream, format="svg", metadata={"Date": None})
    source = stream.getvalue()
    box = re.search(r'viewBox="([^"]*)"', source)
    inside = source[source.index(">", source.index("<svg")) + 1 : source.rindex("</svg>")]
    inside = re.sub(r"<metadata>.*?</metadata>|<style\b.*?</style>|<!--.*?-->", "", inside, flags=re.DOTALL)
    inside = re.sub(r'\bid="', f'id="{mark}', inside)
    inside = re.sub(r'(?:xlink:)?href="#', f'href="#{mark}', inside).replace("url(#", f"url(#{mark}")
    inside = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px var(--font)", inside)
    for colour, meaning in {_TEXT: "var(--text)", _SOFT: "var(--soft)", _LINE: "var(--line)"}.items():
        inside = inside.replace(colour, meaning)
    for number, colour in enumerate(SERIES):
        inside = inside.replace(colour, f"var(--s{number})")
    inside = re.sub(r"\s*\n\s*", "\n", inside)
    size = box[1] if box else "0 0 400 300"
    width = math.ceil(float(size.split()[2]) * 4 / 3)
    return element(
        "svg",
        Markup(inside),
        viewBox=size,
        role="img",
        aria_label=what,
        style=f"max-width:{width}px;stroke-linejoin:round",
    )


def _plain(text: str) -> str:
    """Return a user's name so that matplotlib takes it for text: no formula, no character that XML forbids."""
    clean = "".join(letter if letter.isprintable() else "�" for letter in text)
    return (clean if len(clean) <= 60 else clean[:59] + "…").replace("$", r"\$")
