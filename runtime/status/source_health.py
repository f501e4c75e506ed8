"""How a source is at one instant."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

State = Literal["waiting", "running", "reconnecting", "ended"]


@dataclass(frozen=True, slots=True)
class Health:
    """How a source is at one instant.

    Attributes:
        state: ``waiting`` for its first frame, ``running``, ``reconnecting``, ``ended``.
        reconnects: times it was lost and delivered again.
        attempts: openings that were tried for that.
        stuck: threads that have not come back from its driver.
        resized: times its pictures changed their size.
        last_loss: why it was lost last; None where it never was.
    """

    state: State
    reconnects: int
    attempts: int
    stuck: int
    resized: int
    last_loss: str | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
