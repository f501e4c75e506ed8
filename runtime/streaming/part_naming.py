"""A source whose frames take the part ids that the line announces."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from edgead.runtime.errors import ConfigError
from edgead.runtime.frame import BadFrame, Frame
from edgead.runtime.sinks import Sink
from edgead.runtime.sinks.part_ids import PartIds
from edgead.runtime.sources import Source


class NamedParts(Source):
    """Hands on the frames of another source, each with the id that was announced for it (`PartIds`).

    Args:
        source: closed together with this one.
        ids: where the ids come from.
        again: the source was lost and is opened anew.
    """

    def __init__(self, source: Source, ids: PartIds, *, again: bool = False) -> None:
        self.source_id, self.live, self.delivery = source.source_id, source.live, source.delivery
        self._source, self._ids = source, ids
        if again:
            ids.interrupt()

    def frames(self) -> Iterator[Frame | BadFrame]:
        frames = iter(self._source.frames())
        try:
            for item in frames:
                yield self._ids.name(item)
        finally:
            # Generators release their camera when they are closed, and only the thread that ran them may do it.
            close = getattr(frames, "close", None)
            if close is not None:
                close()

    def close(self) -> None:
        self._source.close()

    def reopener(self) -> Callable[[], Source] | None:
        # A source that only looks like one need not have it.
        reopen: Callable[[], Source] | None = getattr(self._source, "reopener", lambda: None)()
        return None if reopen is None else lambda: NamedParts(reopen(), self._ids, again=True)


def name_parts(sources: list[Source], sinks: Sequence[Sink]) -> list[Source]:
    """Return the sources as they are, or, where a sink takes part ids from the line, the one source that gets them.

    Raises:
        ConfigError: several sinks take ids, or not exactly one source is there, or it may leave frames out.
    """
    naming = [(sink, ids) for sink in sinks if (ids := getattr(sink, "part_ids", None)) is not None]
    if not naming:
        return sources
    (sink, ids), *others = naming
    if others:
        raise ConfigError(f"part ids come from one place; keep part_id=announced at {sink.name} or {others[0][0].name}")
    if len(sources) != 1:
        raise ConfigError(f"{sink.name}: announced part ids are for one camera, and there are {len(sources)} sources")
    (source,) = sources
    if not source.live or source.delivery.policy != "every":
        raise ConfigError(
            f"{sink.name}: announced part ids need a triggered camera of which no frame is left out; "
            f"give {source.source_id} ?policy=every"
        )
    return [NamedParts(source, ids)]
