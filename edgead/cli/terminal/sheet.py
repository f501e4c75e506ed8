"""A table that loses nothing on narrow paper: a row becomes a paragraph where a figure or a path would be broken."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from textwrap import wrap

from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

_ANY_WIDTH = 100_000
_BESIDE = 3  # of each column: a blank on both sides, and a line
_NAMED = 2  # of the columns that are text, those which a paragraph begins with


class Sheet:
    """A titled table, drawn as wide as the console allows.

    Words are never broken. Where the longest ones of all columns do not fit side by side, each row is a paragraph: its
    name, and a line ``heading: value`` for each other cell, which the terminal breaks, so that what is copied is whole.
    A file has no width: there the table is as wide as it must be.

    Args:
        columns: headings; None for two columns without, what and its value.
        text_columns: how many of the first are text; the others are figures.
        unbroken: headings of columns whose cells stay on one line, such as commands.
    """

    def __init__(
        self,
        title: str,
        columns: Sequence[str] | None,
        rows: Sequence[Sequence[RenderableType]],
        *,
        text_columns: int = 1,
        unbroken: Sequence[str] = (),
    ) -> None:
        self._title, self._columns, self._rows = title, columns, [list(row) for row in rows]
        self._text_columns, self._unbroken = text_columns, unbroken

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        yield flowing(self._title, console, "bold")
        grid = self._grid()
        wide = options.update(max_width=_ANY_WIDTH)
        ranges = [self._measure(console, wide, column) for column in grid.columns]
        room = options.max_width - (_BESIDE * len(ranges) + 1) - sum(one.minimum for one in ranges)
        if room < 0 and has_width(console):
            yield from self._paragraphs()
            return
        # Left to itself, rich makes some columns narrower than their words.
        widths = _share_out(ranges, max(0, room))
        for column, width in zip(grid.columns, widths, strict=True):
            column.width = width
        grid.width = sum(widths) + _BESIDE * len(widths) + 1
        yield grid

    @staticmethod
    def _measure(console: Console, options: ConsoleOptions, column: Column) -> Measurement:
        cells = [column.header, *column.cells]
        found = [Measurement.get(console, options, cell) for cell in cells]
        most = max(one.maximum for one in found)
        return Measurement(most if column.no_wrap else max(one.minimum for one in found), most)

    def _grid(self) -> Table:
        grid = Table(show_header=self._columns is not None)
        if self._columns is None:
            grid.add_column(style="bold", no_wrap=True)
            grid.add_column()
        for number, heading in enumerate(self._columns or ()):
            justify = "left" if number < self._text_columns else "right"
            grid.add_column(heading, justify=justify, no_wrap=heading in self._unbroken)  # type: ignore[arg-type]
        for row in self._rows:
            grid.add_row(*row)
        return grid

    def _paragraphs(self) -> Iterator[Text]:
        if self._columns is None:
            for name, value in self._rows:
                yield _line((_plain(name), "bold"), ": ", _plain(value))
            return
        named = min(self._text_columns, _NAMED)
        for row in self._rows:
            cells = [_plain(cell) for cell in row]
            first, *others = [cell for cell in cells[:named] if cell] or ["-"]
            yield _line((first, "bold"), *(f", {cell}" for cell in others))
            for heading, cell in zip(self._columns[named:], cells[named:], strict=True):
                if cell:
                    yield _line(f"  {heading}: {cell}")


def _share_out(ranges: Sequence[Measurement], room: int) -> list[int]:
    """Return a width for each column: its longest word, and of the room what it can use, who needs least first."""
    widths = [one.minimum for one in ranges]
    order = sorted(range(len(ranges)), key=lambda column: ranges[column].span)
    for place, column in enumerate(order):
        more = min(ranges[column].span, room // (len(order) - place))
        widths[column] += more
        room -= more
    return widths


def has_width(console: Console) -> bool:
    """Whether what is printed lands where lines have an end: a terminal, or what ``COLUMNS`` says."""
    return console.file.isatty() or "COLUMNS" in os.environ


def flowing(text: str, console: Console, style: str = "") -> Text:
    """Return a text whose lines end between words, and never in one; in a file, where there is a line break only."""
    if has_width(console):
        broken = (
            wrap(line, console.width, break_long_words=False, break_on_hyphens=False) for line in text.split("\n")
        )
        text = "\n".join("\n".join(lines) for lines in broken)
    return Text(text, style, no_wrap=True, overflow="ignore")


def _line(*parts: str | tuple[str, str]) -> Text:
    return Text.assemble(*parts, no_wrap=True, overflow="ignore")


def _plain(cell: RenderableType) -> str:
    text = cell.plain if isinstance(cell, Text) else str(cell)
    return ", ".join(part for part in text.split("\n") if part)
