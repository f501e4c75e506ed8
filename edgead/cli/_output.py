"""What a command says: one JSON object or tables on stdout, progress and warnings on stderr."""

from __future__ import annotations

import json
import logging
import math
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from types import TracebackType
from typing import Any, TextIO, cast

from rich.console import Console, RenderableType

from edgead.cli.terminal.progress import bars, lines
from edgead.cli.terminal.sheet import Sheet, flowing
from edgead.runtime.progress import silent
from edgead.runtime.sinks.result_json import finite
from edgead.runtime.uri import redact

MOST_ALIKE = 5  # of things that are alike, those which are said
_WIDTH = 120  # where nobody says how wide the paper is: a file, a pipe


class _Unfailing:
    """A text stream whose loss stops nothing: remarks are lost with a terminal that was closed, the run goes on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Telling(logging.Handler):
    """Hands on each message once: a comparison fits the same images again and again."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__()
        self._tell = tell
        self._told: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        if (text := record.getMessage()) not in self._told:
            self._told.add(text)
            self._tell(text)


@contextmanager
def handled_by(name: str, handler: logging.Handler) -> Iterator[None]:
    """Have one handler, and no other, take what the logger of that name says."""
    logger = logging.getLogger(name)
    propagate = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


class Output:
    """Where a command writes. Used as a context manager around its whole work.

    With ``as_json``, stdout belongs to the one JSON object: what a library prints meanwhile goes to stderr.

    Attributes:
        as_json: whether `--json` was given.
    """

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self._stdout = sys.stdout
        self._stack = ExitStack()
        self._notes = _console(cast(TextIO, _Unfailing(sys.stderr)))

    def __enter__(self) -> Output:
        if self.as_json:
            self._stack.enter_context(redirect_stdout(sys.stderr))
        self._stack.enter_context(handled_by("edgead.fit", _Telling(self.warn)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def watched(self) -> bool:
        """Whether stderr is a terminal that can draw over what it shows; FORCE_COLOR makes none of a log."""
        return self._notes.is_interactive and self._notes.file.isatty()

    @property
    def notes(self) -> Console:
        """The console on stderr."""
        return self._notes

    def note(self, text: str) -> None:
        """Say something on stderr that a person wants to know, and a program does not."""
        if not self.as_json:
            self._notes.print(redact(text), soft_wrap=True)

    def warn(self, text: str) -> None:
        """Say on one line of stderr what is wrong, though not wrong enough to stop."""
        self._notes.print(f"Warning: {redact(' '.join(text.split()))}", style="yellow", soft_wrap=True)

    def warn_all(self, texts: Sequence[str]) -> None:
        """Warn of things that are alike: of the first few, and of how many more there are, so that results are seen."""
        for text in texts[:MOST_ALIKE]:
            self.warn(text)
        if len(texts) > MOST_ALIKE:
            self.warn(f"and {len(texts) - MOST_ALIKE:,} more of this kind")

    def finish(
        self,
        payload: Mapping[str, Any],
        *people: RenderableType,
        on_stderr: bool = False,
        next_command: Sequence[str] = (),
    ) -> None:
        """Print the outcome: the JSON object with `--json`, else what people read.

        ``on_stderr`` is for people's part, where stdout carries something else. ``next_command``: the words of what is
        typed next; it is the last line, on one line however narrow the terminal is, so that it can be copied.
        Numbers that are not finite become null, for JSON has none.
        """
        if self.as_json:
            text = json.dumps(finite(payload), indent=2, allow_nan=False)
            self._stdout.write(text + "\n")
            self._stdout.flush()
            return
        console = self._notes if on_stderr else _console(self._stdout)
        for item in people:
            # Not cropped: what is wider than the console may be broken by the terminal, but must be there.
            console.print(flowing(item, console) if isinstance(item, str) else item, crop=False)
        if next_command:
            console.print(f"Next: {redact(shlex.join(next_command))}", soft_wrap=True)

    @contextmanager
    def progress(self) -> Iterator[Callable[[str, int, int], None]]:
        """Yield ``step(stage, done, total)``, which shows how far a stage is; a total of 0 is one that nobody knows."""
        if self.watched:
            with bars(self._notes) as step:
                yield step
        elif self.as_json:
            yield silent
        else:
            with lines(self.note, dumb=self._notes.file.isatty()) as step:
                yield step


def table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[RenderableType]],
    *,
    text_columns: int = 1,
    unbroken: Sequence[str] = (),
) -> Sheet:
    """Return a table whose first columns are text and whose others are figures; see `Sheet`."""
    return Sheet(redact(title), columns, rows, text_columns=text_columns, unbroken=unbroken)


def listing(title: str, rows: Mapping[str, str]) -> Sheet:
    """Return a table of two columns without headings: what, and its value."""
    return Sheet(redact(title), None, [(name, redact(value)) for name, value in rows.items()])


def some(texts: Sequence[str]) -> str:
    """Return the first of many reasons, and how many more there are, for one line."""
    more = len(texts) - MOST_ALIKE
    return "; ".join(texts[:MOST_ALIKE]) + (f"; and {more:,} more" if more > 0 else "")


def number(value: float | None, digits: int = 4) -> str:
    """Return a figure for people, ``-`` where there is none."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}g}"


def milliseconds(value: float | None) -> str:
    """Return a time in ms with two decimals, ``-`` where there is none."""
    return "-" if value is None else f"{value:.2f}"


def backend_text(info: dict[str, Any]) -> str:
    """Return one line on the backend that really ran, of its JSON form."""
    threads = f"{info['threads']} threads" if info["threads"] else "threads: its own choice"
    return f"{info['name']} {info['version']} ({info['provider']}, {info['precision']}, {info['device']}, {threads})"


def _console(stream: TextIO) -> Console:
    # Nothing of what a user named a file is markup or an emoji.
    wide = stream.isatty() or "COLUMNS" in os.environ
    return Console(file=stream, markup=False, emoji=False, highlight=False, width=None if wide else _WIDTH)
