"""Both ends of a stream: its sources and sinks, opened all or none."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from edgead.runtime.errors import ConfigError
from edgead.runtime.imaging.decode import ALL_BITS
from edgead.runtime.sinks import Sink, open_sink
from edgead.runtime.sources import Clock, Source, open_source
from edgead.runtime.streaming.part_naming import name_parts


def open_ends(
    sources: str | Path | Source | Sequence[str | Path | Source],
    sinks: Sequence[str | Path | Sink],
    clock: Clock,
    bits: int = ALL_BITS,
) -> tuple[list[Source], list[Sink]]:
    """Open what is given as a URI, and take what is open already; ``bits`` are those of the inspector.

    Raises:
        ConfigError, SourceError: one cannot be opened, a source is given twice, or none fits a sink that takes part ids
            from the line; those already open are closed.
    """
    given = list(sources) if isinstance(sources, Sequence) and not isinstance(sources, str) else [sources]
    with ExitStack() as undo:
        opened: list[Source] = []
        for item in given:
            opened.append(open_source(item, clock=clock, bits=bits) if isinstance(item, str | Path) else item)
            undo.callback(opened[-1].close)
        if not opened:
            raise ConfigError("a stream needs a source, such as 0 or parts/good or synthetic://")
        names = [source.source_id for source in opened]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"source {name} is given twice; give each source once")
        targets: list[Sink] = []
        for target in sinks:
            targets.append(open_sink(target) if isinstance(target, str | Path) else target)
            undo.callback(targets[-1].close)
        opened = name_parts(opened, targets)
        undo.pop_all()
    return opened, targets
