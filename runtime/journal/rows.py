"""What the rows of a journal say: a part with its decision, what people said of it, and what was done to the line."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from edgead.runtime.errors import ConfigError, DataError, suggest
from edgead.runtime.frame import Frame, Result
from edgead.runtime.journal.images import encode_map

Label = Literal["good", "defect", "unsure"]
# ``bundle``: a run began, or another bundle took over; ``shadow``: one that decides nothing would have decided
# otherwise; ``action``: what a page or a person did.
Kind = Literal["part", "label", "bundle", "shadow", "takeover", "action", "note", "gap", "checkpoint"]
LABELS: tuple[str, ...] = get_args(Label)
KINDS: tuple[str, ...] = get_args(Kind)
_LONGEST = 200  # characters of a name or a reason that people type


@dataclass(frozen=True, slots=True)
class Row:
    """One row as it is stored.

    Attributes:
        seq: its number, 1, 2, 3, …; rows are in this order whatever the clock said.
        kind: `Kind`; one of a later edgead may be another.
        time_ms: wall clock when it was written, in milliseconds since 1970, UTC.
        part: id of the part, where one was given.
        ref: of a label: ``seq`` of the part's row.
        decision, score: of a part.
        image: size in bytes of the part's image file; None where none was kept.
        body: what else it says.
    """

    seq: int
    kind: str
    time_ms: int
    part: str | None = None
    ref: int | None = None
    decision: str | None = None
    score: float | None = None
    image: int | None = None
    body: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def stored(cls, values: Sequence[Any]) -> Row:
        """Read the columns of `schema.COLUMNS`; raises `DataError` where the body is no JSON object."""
        try:
            body = json.loads(values[8])
            if not isinstance(body, dict):
                raise ValueError("no object")
        except (ValueError, TypeError, RecursionError) as error:
            raise DataError(f"row {values[0]} of the record is damaged; run: edgead record verify DIR") from error
        seq, kind, time_ms, part, ref, decision, score, image = values[:8]
        return cls(seq, kind, time_ms, part, ref, decision, score, image, body)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form (schema ``edgead.record-row/1``)."""
        columns = {name: getattr(self, name) for name in ("seq", "kind", "time_ms", "part", "ref", "decision", "score")}
        return {**columns, "image": self.image, **{name: v for name, v in self.body.items() if name not in columns}}


@dataclass(frozen=True, slots=True)
class NewRow:
    """A row before it has its number; ``frame`` is written as its image file, with the map in ``heat``."""

    kind: Kind
    time_ms: int
    part: str | None = None
    ref: int | None = None
    decision: str | None = None
    score: float | None = None
    body: Mapping[str, Any] = field(default_factory=dict)
    frame: Frame | None = None
    heat: bytes = b""


def part_row(
    result: Result,
    frame: Frame | None,
    setup: str | None,
    time_ms: int,
    *,
    keep: bool,
    no_image: str | None = None,
) -> NewRow:
    """Return the row of a judged part.

    Args:
        result: as the stream gave it.
        frame: what was judged; None where there was no picture.
        setup: name of what judged, see `schema.setup_digest`.
        time_ms: wall clock.
        keep: write its image; no_image: why there is none though one was wanted.
    """
    body: dict[str, Any] = {
        "source": result.source_id,
        "frame": result.frame_index,
        "threshold": finite(result.threshold),
        "timings_ms": {name: round(value, 3) for name, value in result.timings.items() if math.isfinite(value)},
    }
    if setup is not None:
        body["setup"] = setup
    optional = {"name": result.name, "category": result.category, "reason": result.reason, "no_image": no_image}
    body |= {name: value for name, value in optional.items() if value is not None}
    if result.map is not None:
        body["map"] = map_digest(result.map)
    if frame is not None:
        body |= {"pixels": frame_digest(frame), "layout": frame.layout, "shape": list(frame.image.shape)}
    score, heat = finite(result.score), encode_map(result) if keep else b""
    kept = frame if keep else None
    return NewRow("part", time_ms, result.part_id, None, result.decision.value, score, body, kept, heat)


def label_row(part: Row, label: str, who: str, time_ms: int, defect: str | None = None, note: str = "") -> NewRow:
    """Return the row of what a person said of a part.

    Args:
        part: the part's row.
        label: ``good``, ``defect`` or ``unsure``.
        who: the person, 80 characters at most.
        time_ms: wall clock.
        defect: what kind of defect, where it is one.
        note: anything else.

    Raises:
        ConfigError: something of it is not acceptable.
    """
    if part.kind != "part":
        raise ConfigError(f"row {part.seq} of the record is no part, and only parts are labelled")
    if label not in LABELS:
        raise ConfigError(f"unknown label '{label[:80]}'.{suggest(label[:80], LABELS)}")
    if defect is not None and label != "defect":
        raise ConfigError(f"a part labelled {label} has no kind of defect")
    body: dict[str, Any] = {"who": person(who), "label": label}
    if defect:
        body["defect"] = line(defect, "the kind of defect")
    if note:
        body["note"] = line(note, "the note")
    return NewRow("label", time_ms, part.part, part.seq, None, None, body)


def person(who: str) -> str:
    """Return a name on one line; raises `ConfigError` where it is none, or longer than 80 characters."""
    who = " ".join(who.split())
    if not who or len(who) > 80 or not who.isprintable():
        raise ConfigError("write your name, 80 characters at most: it goes into the record")
    return who


def line(text: str, what: str) -> str:
    """Return a text on one line; raises `ConfigError` where it is too long or cannot be shown."""
    text = " ".join(text.split())
    if len(text) > _LONGEST or not text.isprintable():
        raise ConfigError(f"{what} is longer than {_LONGEST} characters, or holds some that cannot be shown")
    return text


def finite(value: float) -> float | None:
    """Return a number as SQLite keeps it: NaN and infinity as None, -0.0 as 0.0."""
    return float(value) + 0.0 if math.isfinite(value) else None


def frame_digest(frame: Frame) -> str:
    """Return the SHA-256 of a frame's pixels with their layout and shape: what was judged, before preprocessing."""
    head = f"{frame.layout} {'x'.join(map(str, frame.image.shape))}\n"
    digest = hashlib.sha256(head.encode())
    digest.update(np.ascontiguousarray(frame.image).data)
    return digest.hexdigest()


def map_digest(grid: NDArray[np.float32]) -> str:
    """Return the first 32 hexadecimal digits of the SHA-256 of an anomaly map's float32 values."""
    values = np.ascontiguousarray(grid, dtype="<f4")
    return hashlib.sha256(values.data).hexdigest()[:32]
