"""Which parts of a record are meant: by id, or by the time at which they were judged."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from edgead.runtime.journal.reader import JournalReader
    from edgead.runtime.journal.rows import Row

RecordArgument = Annotated[
    Path, typer.Argument(metavar="DIR", help="The folder that --record was given.", show_default=False)
]
PartOption = Annotated[
    str | None, typer.Option("--part", metavar="ID", help="The part with this id only.", show_default=False)
]
SinceOption = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="From then on: 2026-11-28T06:00, or 8h or 2d before now.", show_default=False),
]
UntilOption = Annotated[str | None, typer.Option(metavar="TIME", help="Before then.", show_default=False)]
_UNITS = {"min": "minutes", "h": "hours", "d": "days"}


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rows are meant; None leaves a condition open."""

    part: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None

    @classmethod
    def parse(cls, part: str | None, since: str | None, until: str | None) -> Selection:
        """Read the options; raises `ConfigError` where a time is none."""
        return cls(part, _time_ms("--since", since), _time_ms("--until", until))

    def parts(self, reader: JournalReader) -> Iterator[Row]:
        """Yield the rows of the parts that are meant."""
        return reader.parts(part=self.part, since_ms=self.since_ms, until_ms=self.until_ms)


def _time_ms(option: str, text: str | None) -> int | None:
    if text is None:
        return None
    if match := re.fullmatch(r"([0-9]{1,6})(min|h|d)", text):
        when = datetime.now(timezone.utc) - timedelta(**{_UNITS[match[2]]: int(match[1])})
    else:
        try:
            # Python 3.10 does not know the Z of what edgead itself writes.
            when = datetime.fromisoformat(re.sub(r"Z$", "+00:00", text))
        except ValueError as error:
            from edgead.runtime.errors import ConfigError

            raise ConfigError(
                f"{option} {text} is no time; write 2026-11-28T06:00 (local), 2026-11-28T06:00+00:00, or 8h before now"
            ) from error
    return round(when.timestamp() * 1000)


def shown_time(time_ms: int) -> str:
    """Return a row's time for people, local, to the second."""
    return datetime.fromtimestamp(time_ms / 1000).astimezone().strftime("%Y-%m-%d %H:%M:%S")
