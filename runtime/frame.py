"""What enters the runtime (`Frame`) and what leaves it (`Result`)."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from edgead.runtime.errors import ConfigError, suggest

Layout = Literal["rgb", "bgr", "gray"]
# ``(a, b, c, d, e, f)``: a point ``(x, y)`` of the frame lies at ``(a x + b y + c, d x + e y + f)`` of what was judged;
# all of them shares, 0 to 1 from the left upper corner.
Placement = tuple[float, float, float, float, float, float]
_LAYOUTS: tuple[str, ...] = get_args(Layout)


LONGEST_PART_ID = 128  # characters


def require_part_id(part_id: object) -> None:
    """Refuse what cannot be a part's id: other than text, empty, too long, or with characters that cannot be shown.

    Raises:
        ConfigError: in one line, with the limit.
    """
    if part_id is None:
        return
    if not isinstance(part_id, str) or not 0 < len(part_id) <= LONGEST_PART_ID or not part_id.isprintable():
        shown = repr(part_id)[:60]
        raise ConfigError(f"a part id is text of 1 to {LONGEST_PART_ID} characters that can be shown, not {shown}")


def require_layout(layout: str) -> None:
    """Refuse the name of a layout that is not known: it would be taken for another, and the channels mixed up.

    Raises:
        ConfigError: unknown name.
    """
    if layout not in _LAYOUTS:
        raise ConfigError(f"unknown layout '{layout}'.{suggest(str(layout).lower(), _LAYOUTS)}")


@dataclass(frozen=True, slots=True)
class Frame:
    """One image as the source delivered it.

    Attributes:
        image: ``(H, W, 3)`` uint8, C-contiguous, RGB by default; or ``(H, W)`` uint8 where ``layout`` is ``"gray"``.
        index: position in the source, counted from 0.
        timestamp_ns: monotonic clock, taken at capture.
        source_id: name of the source, without secrets.
        layout: channel order of ``image``. Cameras that deliver BGR or grey keep it, because the resize
            to network size reorders channels for free while a full-size conversion costs a pass over the frame.
        name: file the frame came from, relative to its folder; None for cameras and videos.
        part_id: what the line calls the part that is seen, such as a serial number, 128 characters at most; None where
            nobody says.
    """

    image: NDArray[np.uint8]
    index: int
    timestamp_ns: int
    source_id: str
    layout: Layout = "rgb"
    name: str | None = None
    part_id: str | None = None

    def __post_init__(self) -> None:
        require_layout(self.layout)
        require_part_id(self.part_id)

    def to_rgb(self) -> NDArray[np.uint8]:
        """Return ``(H, W, 3)`` uint8 RGB; a copy unless the frame already is RGB."""
        if self.layout == "rgb":
            return self.image
        if self.layout == "bgr":
            return np.ascontiguousarray(self.image[:, :, ::-1])
        return np.repeat(self.image[:, :, None], 3, axis=2)


@dataclass(frozen=True, slots=True)
class BadFrame:
    """A frame that was captured but cannot be shown to a model, such as an unreadable image in a folder.

    Attributes:
        index, timestamp_ns, source_id, name, part_id: as in `Frame`; the index counts on, so its neighbours keep their
            numbers.
        reason: one line on what is wrong with it.
    """

    index: int
    timestamp_ns: int
    source_id: str
    reason: str
    name: str | None = None
    part_id: str | None = None

    def __post_init__(self) -> None:
        require_part_id(self.part_id)

    @classmethod
    def instead_of(cls, frame: Frame | BadFrame, reason: str, source_id: str, timestamp_ns: int) -> BadFrame:
        """Return what stands for a frame that nobody will judge: the same part, without its picture."""
        return cls(frame.index, timestamp_ns, source_id, reason, frame.name, frame.part_id)


class Decision(str, enum.Enum):
    """What the line is told about one part. Only `OK` may pass it."""

    OK = "OK"
    ANOMALY = "ANOMALY"
    NOT_INSPECTED = "NOT_INSPECTED"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True)
class Result:
    """The judgement of one frame.

    Attributes:
        score: raw image score, higher is more anomalous; NaN where nothing was computed.
        threshold: the threshold the score was compared with (`ANOMALY` iff score > threshold).
        decision: `Decision`; `NOT_INSPECTED` carries a ``reason``.
        category: category of a routed model, else None.
        map: ``(gh, gw)`` float32 anomaly map on the detector's own grid, None where nothing was computed.
        frame_index, timestamp_ns, source_id, name, part_id: copied from the frame.
        timings: milliseconds per stage, e.g. ``{"preprocess": 1.6, "network": 4.2, "decide": 0.02}``.
        reason: why the frame was not inspected.
        area: ``(left, top, width, height)`` of the part of the frame that ``map`` lies on, as shares of the frame, 0 to
            1; None: all of it.
        p_value: share of good parts at least as unusual, by the held-out normals behind the threshold; near 0 for a
            defect. It decides nothing. None where these are not known or nothing was computed.
        placement: where points of that part lie on ``map``, if the part's pose was undone (`Placement`); else None.
        bundle: SHA-256 of the bundle that judged it; None where no bundle did.
    """

    score: float
    threshold: float
    decision: Decision
    frame_index: int
    timestamp_ns: int
    source_id: str = ""
    category: str | None = None
    map: NDArray[np.float32] | None = None
    timings: Mapping[str, float] = field(default_factory=dict)
    reason: str | None = None
    name: str | None = None
    area: tuple[float, float, float, float] | None = None
    placement: Placement | None = None
    p_value: float | None = None
    part_id: str | None = None
    bundle: str | None = None

    @classmethod
    def not_inspected(cls, frame: Frame | BadFrame, reason: str, threshold: float = math.nan) -> Result:
        """Return the result of a frame that nobody judged."""
        return cls(
            score=math.nan,
            threshold=threshold,
            decision=Decision.NOT_INSPECTED,
            frame_index=frame.index,
            timestamp_ns=frame.timestamp_ns,
            source_id=frame.source_id,
            reason=reason,
            name=frame.name,
            part_id=frame.part_id,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form (schema ``edgead.result/1``): no map, NaN as null."""
        return {
            "source_id": self.source_id,
            "frame_index": self.frame_index,
            "name": self.name,
            "part_id": self.part_id,
            "timestamp_ns": self.timestamp_ns,
            "decision": self.decision.value,
            "score": self.score if math.isfinite(self.score) else None,
            "threshold": self.threshold,
            "p_value": None if self.p_value is None else round(self.p_value, 6),
            "category": self.category,
            "reason": self.reason,
            "timings_ms": {name: round(value, 4) for name, value in self.timings.items()},
        }


class Inference(NamedTuple):
    """Raw output for a batch: ``score (N,)`` float32 and ``map (N, gh, gw)`` float32, higher is more anomalous.

    A routed model also says the category it took each image for, and its reason where it is not sure enough to judge.
    """

    score: NDArray[np.float32]
    map: NDArray[np.float32]
    category: Sequence[str | None] | None = None
    reason: Sequence[str | None] | None = None
