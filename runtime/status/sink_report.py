"""What became of the results that a sink accepted."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class SinkReport:
    """What became of the results a sink accepted: ``accepted = written + failed + missed + pending``.

    Attributes:
        written: the sink's `write` returned.
        failed: it raised; ``last_error`` says what, last.
        missed: never given to it, or not finished in time, because it was too slow or dead.
        pending: still on the way; 0 once the stream has ended.
    """

    name: str
    accepted: int
    written: int
    failed: int
    missed: int
    pending: int
    last_error: str | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
