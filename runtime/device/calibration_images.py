"""The good parts that a source shows to ``edgead calibrate``: their scores, and which of them are no part of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from edgead.runtime.decision.baseline import Normals, map_level, picture_signals
from edgead.runtime.decision.known_images import fingerprint
from edgead.runtime.decision.stray import SHOWS_NOTHING, contrast, empty_images, stray_scores
from edgead.runtime.decision.verdict import UNKNOWN_CATEGORY
from edgead.runtime.errors import BackendError, DataError
from edgead.runtime.frame import BadFrame, Decision, Frame, Result
from edgead.runtime.imaging.alignment import NOT_FOUND
from edgead.runtime.inspection.inspector import Inspector
from edgead.runtime.progress import StepProgress
from edgead.runtime.sources import Source

_MOST_STRANGERS = 200  # pictures of no known category that a camera may show in a row
_SAME = 1e-9  # relative difference of two signals of one image, computed by different processors
# Median score, as a share of what unseen normals had, below which images were learned from: a memory bank holds them.
_KNOWN = 0.5


@dataclass(frozen=True, slots=True)
class Shown:
    """One image of the source.

    Attributes:
        name: of its file, or which frame it was.
        category: of a routed model, else "".
        scores: by precision, or ``precision/category``.
        signals: see `edgead.runtime.decision.baseline`.
        contrast: see `edgead.runtime.decision.stray.contrast`.
        digest: see `edgead.runtime.decision.known_images`.
    """

    name: str
    category: str
    scores: Mapping[str, float]
    signals: Mapping[str, float]
    contrast: float
    digest: bytes = b""


@dataclass(slots=True)
class Taken:
    """What a source showed.

    Attributes:
        shown: the images that were judged, without `stray`.
        stray: images that no threshold should follow: name -> why.
        unreadable: frames that were lost. unknown: frames of no known category.
    """

    shown: list[Shown] = field(default_factory=list)
    stray: dict[str, str] = field(default_factory=dict)
    unreadable: int = 0
    unknown: int = 0

    @property
    def images(self) -> int:
        return len(self.shown)

    def scores(self) -> dict[str, list[float]]:
        """Return the scores by precision, or ``precision/category``."""
        found: dict[str, list[float]] = {}
        for one in self.shown:
            for key, score in one.scores.items():
                found.setdefault(key, []).append(score)
        return found

    def normals(self) -> dict[str, Normals]:
        """Return what the images of each category look like."""
        found = {}
        for category in dict.fromkeys(one.category for one in self.shown):
            rows = [one.signals for one in self.shown if one.category == category]
            found[category] = Normals.of({name: [row[name] for row in rows] for name in rows[0]})
        return found

    def leave_out_stray(self) -> None:
        """Move what shows nothing, or scores far beyond the others, from ``shown`` to ``stray``."""
        for category in dict.fromkeys(one.category for one in self.shown):
            rows = [one for one in self.shown if one.category == category]
            found = {
                rows[index].name: SHOWS_NOTHING for index in empty_images(np.array([row.contrast for row in rows]))
            }
            for key in rows[0].scores:
                scored = [row for row in rows if key in row.scores and row.name not in found]
                for index, why in stray_scores(np.array([row.scores[key] for row in scored])).items():
                    found[scored[index].name] = why
            self.stray |= found
        self.shown = [one for one in self.shown if one.name not in self.stray]

    def fitted_on(self, learned: Normals) -> list[str]:
        """Return the names of those that the model was fitted on; bundles of earlier versions know none."""
        return [one.name for one in self.shown if one.digest in learned.known]

    def repeats(self, learned: Normals) -> bool:
        """Return whether images that a model learned from are among these, by what its bundle says of unseen normals.

        For bundles that do not know the images themselves. Of the training images it has the quantiles of brightness
        and focus; the first and last of them are values of images, and no two parts agree in a focus to the last digit,
        nor in two values of brightness.
        """
        agree = {"brightness": 0, "focus": 0}
        for signal in agree:
            values = np.array([one.signals[signal] for one in self.shown])
            quantiles = learned.quantiles[signal]
            for extreme in {quantiles[0], quantiles[-1]}:
                agree[signal] += bool(np.any(np.abs(values - extreme) <= _SAME * abs(extreme)))
        return agree["focus"] > 0 or agree["brightness"] > 1

    def scores_like_known(self, learned: Normals) -> bool:
        """Return whether most of these score far below unseen normals, as only images do that were learned from."""
        usual = learned.band("score", 0.5)[0]
        return bool(self.shown) and float(np.median([one.signals["score"] for one in self.shown])) < _KNOWN * usual


def collect(
    source: Source,
    inspectors: Mapping[str, Inspector],
    n: int | None,
    min_interval_s: float,
    progress: StepProgress | None,
) -> Taken:
    """Let inspectors, by precision, judge up to ``n`` images of a source (None: all of them).

    Raises:
        DataError: an image file that cannot be read, or a camera that shows no known category.
        BackendError: an image was not inspected, so that its score is missing.
    """
    taken = Taken()
    due_ns: float = -math.inf
    strangers = 0
    for frame in source.frames():
        if isinstance(frame, BadFrame):
            if not source.live:
                # A file can be fixed; a picture that a camera lost is gone.
                raise DataError(frame.reason)
            taken.unreadable += 1
            continue
        if source.live and frame.timestamp_ns < due_ns:
            continue
        due_ns = frame.timestamp_ns + min_interval_s * 1e9
        results = {key: inspector(frame) for key, inspector in inspectors.items()}
        if any(_is_unknown(result) for result in results.values()):
            taken.unknown += 1
            strangers += 1
            if source.live and strangers == _MOST_STRANGERS:
                raise DataError(
                    f"{strangers} pictures of {source.source_id} in a row show no part that the model knows; "
                    "point the camera at its parts, or fit a model of these"
                )
            continue
        strangers = 0
        taken.shown.append(_shown(frame, results, inspectors["fp32"]))
        if progress is not None:
            progress(taken.images, n or 0)
        if taken.images == n:
            break
    taken.leave_out_stray()
    return taken


def _shown(frame: Frame, results: Mapping[str, Result], inspector: Inspector) -> Shown:
    full = results["fp32"]
    assert full.map is not None
    picture = inspector.view.prepare(frame.image, frame.layout)
    scores = {}
    for key, result in results.items():
        scores[key if result.category is None else f"{key}/{result.category}"] = _score(result, frame)
    signals = {"score": full.score, "level": map_level(full.map), **picture_signals(picture)}
    name = frame.name or f"frame {frame.index}"
    return Shown(name, full.category or "", scores, signals, contrast(picture), fingerprint(picture))


def _is_unknown(result: Result) -> bool:
    # Between two parts a line shows none, and one of another kind is none of the model's.
    return result.reason is not None and result.reason.startswith((UNKNOWN_CATEGORY, NOT_FOUND))


def _score(result: Result, frame: Frame) -> float:
    if result.decision is Decision.NOT_INSPECTED or not math.isfinite(result.score):
        which = frame.name or f"frame {frame.index} of {frame.source_id}"
        raise BackendError(
            f"{which} was not inspected ({result.reason or 'no finite score'}), and a threshold needs the score "
            "of every good part; run: edgead check"
        )
    return result.score
