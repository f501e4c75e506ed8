"""What a combination decides, beside what the model was validated with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgead.runtime.bundle.reference_names import ReferenceName
from edgead.runtime.decision.paired_auroc import Ranking
from edgead.runtime.decision.verdict import BORDERLINE_SHARE, Verdict, score_margin
from edgead.runtime.device.tuning.search_space import Setup
from edgead.runtime.frame import Decision

Kind = Literal["good", "planted", "other"]


@dataclass(frozen=True, slots=True)
class Picture:
    """One image that all combinations judge.

    Attributes:
        image: ``(H, W, 3)`` uint8 RGB, as the camera or the file gave it.
        kind: ``good``: a part that the model has not seen; ``planted``: a copy of one with a painted defect; ``other``:
            nobody says, and only a changed decision counts.
        owner: of a planted copy, the name of the good one.
    """

    name: str
    image: NDArray[np.uint8]
    kind: Kind = "other"
    owner: str | None = None


@dataclass(frozen=True, slots=True)
class Trial:
    """What the worker said of one combination, see `edgead.runtime.device.tuning.worker`."""

    setup: Setup
    backend: dict[str, Any]
    start_s: float
    frame_ms: float
    peak_bytes: int | None
    resident_bytes: int | None
    problems: tuple[str, ...]
    references: dict[str, Verdict]
    pictures: list[Verdict]

    @classmethod
    def parse(cls, setup: Setup, answer: Mapping[str, Any]) -> Trial:
        memory = answer["memory"] or {}
        return cls(
            setup=setup,
            backend=answer["backend"],
            start_s=answer["start_s"],
            frame_ms=answer["frame_ms"],
            peak_bytes=memory.get("peak"),
            resident_bytes=memory.get("resident"),
            problems=tuple(answer["problems"]),
            references={name: _verdict(one) for name, one in answer["references"].items()},
            pictures=[_verdict(one) for one in answer["pictures"]],
        )


@dataclass(frozen=True, slots=True)
class Judgement:
    """How a combination decides.

    Attributes:
        images: references and pictures that it judged.
        drift: 99th percentile of the score differences, references to the trained model and pictures to FP32 here, each
            as a share of the way from the median good score to the threshold.
        flips: pictures that it decides otherwise than FP32; ``borderline`` counts those of a reduced precision that lie
            so close to the threshold that the rounding of scores explains them.
        ranking: planted copies against good pictures, by the distance of the score from the threshold; None where
            nothing tells one from the other. ``held_out``: whether the model has not seen the good ones.
        excluded: why it must not be used; None where nothing speaks against it.
    """

    images: int
    drift: float
    flips: tuple[str, ...] = ()
    borderline: int = 0
    ranking: Ranking | None = field(default=None, repr=False)
    held_out: bool = False
    excluded: str | None = None

    @property
    def auroc(self) -> float | None:
        return None if self.ranking is None else round(self.ranking.auroc, 6)


def judge(
    trial: Trial, baseline: Trial | None, expected: Mapping[str, Verdict], pictures: Sequence[Picture]
) -> Judgement:
    """Judge a combination.

    Args:
        trial: of the combination; ``baseline``: of FP32 on the same bundle, None where no such combination holds.
        expected: of the references, what the trained model gave.
        pictures: in the order in which they were judged; their pixels are not looked at.
    """
    shares = _shares(trial.references, expected)
    names = [picture.name for picture in pictures]
    judged = dict(zip(names, trial.pictures, strict=True))
    flips: list[str] = []
    borderline = 0
    if baseline is not None:
        before = dict(zip(names, baseline.pictures, strict=True))
        differences = _shares(judged, before)
        shares |= {f"picture {name}": share for name, share in differences.items()}
        near = 0.0 if trial.setup.exact else min(_p99(differences.values()), BORDERLINE_SHARE)
        margins = _margins(before)
        for name in names:
            if before[name].same(judged[name]):
                continue
            if before[name].borderline(judged[name], near * margins[before[name].category]):
                borderline += 1
            else:
                flips.append(name)
    ranking = _rank_pictures(pictures, judged)
    return Judgement(
        images=len(trial.references) + len(names),
        drift=_p99(shares.values()),
        flips=tuple(flips),
        borderline=borderline,
        ranking=ranking or _rank_references(trial.references),
        held_out=ranking is not None,
        excluded=_excluded(trial, judged, flips, baseline),
    )


def _excluded(trial: Trial, judged: Mapping[str, Verdict], flips: Sequence[str], baseline: Trial | None) -> str | None:
    if trial.problems:
        more = f" (and {len(trial.problems) - 1} more)" if len(trial.problems) > 1 else ""
        return f"{trial.problems[0]}{more}"
    lost = [name for name, verdict in judged.items() if not math.isfinite(verdict.score)]
    if lost:
        return f"{lost[0]}: the score or map is not finite"
    if flips:
        more = f" (and {len(flips) - 1} more)" if len(flips) > 1 else ""
        return f"{flips[0]}: decided otherwise than in fp32{more}"
    if baseline is None and judged:
        return "no fp32 combination decides as the model did, so that there is nothing to compare with"
    return None


def _verdict(values: Sequence[Any]) -> Verdict:
    score, threshold, decision, category = values
    return Verdict(math.nan if score is None else score, threshold, Decision(decision), category, None)


def _margins(verdicts: Mapping[str, Verdict]) -> dict[str | None, float]:
    """Return category -> its score margin."""
    margins = {}
    for category in {verdict.category for verdict in verdicts.values()}:
        own = [verdict for verdict in verdicts.values() if verdict.category == category]
        margins[category] = max(score_margin(own, own[0].threshold), 1e-12)
    return margins


def _shares(found: Mapping[str, Verdict], expected: Mapping[str, Verdict]) -> dict[str, float]:
    margins = _margins(expected)
    shares = {}
    for name, verdict in found.items():
        share = abs(verdict.score - expected[name].score) / margins[expected[name].category]
        shares[name] = share if math.isfinite(share) else math.inf
    return shares


def _p99(values: Any) -> float:
    ordered = sorted(values)
    return ordered[math.ceil(0.99 * len(ordered)) - 1] if ordered else 0.0


def _rank_pictures(pictures: Sequence[Picture], judged: Mapping[str, Verdict]) -> Ranking | None:
    good = [picture.name for picture in pictures if picture.kind == "good"]
    planted = [(picture.name, picture.owner) for picture in pictures if picture.kind == "planted"]
    return _rank(judged, good, [(name, owner) for name, owner in planted if owner is not None])


def _rank_references(judged: Mapping[str, Verdict]) -> Ranking | None:
    names = [ReferenceName.parse(name) for name in judged]
    normal = [one.name for one in names if one.kind == "normal"]
    return _rank(judged, normal, [(one.name, one.source) for one in names if one.source in normal])


def _rank(judged: Mapping[str, Verdict], good: Sequence[str], planted: Sequence[tuple[str, str]]) -> Ranking | None:
    if len({owner for _, owner in planted}) < 2:
        return None

    def above(name: str) -> float:
        # Categories have thresholds of their own; their distances can be compared, their scores cannot.
        return judged[name].score - judged[name].threshold

    scores = np.array([above(name) for name in good]), np.array([above(name) for name, _ in planted])
    if not all(np.isfinite(part).all() for part in scores):
        return None
    return Ranking.of(*scores, np.array([good.index(owner) for _, owner in planted]))
