"""Judges the parts of a study on this device, and says what that supports."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.device.check import check_bundle
from edgead.runtime.device.signoff.agreement import (
    Rating,
    Share,
    cohen_kappa,
    fleiss_kappa,
    parts_needed,
    rating,
    upper_limit,
)
from edgead.runtime.device.signoff.changes import CHANGES, changed_pictures
from edgead.runtime.device.signoff.parts import StudyPart, StudyParts, read_parts, require_new
from edgead.runtime.errors import DataError
from edgead.runtime.files import file_sha256
from edgead.runtime.frame import Decision, Result
from edgead.runtime.imaging.decode import read_image
from edgead.runtime.inspection.inspector import Inspector
from edgead.runtime.inspection.run_config import RunConfig
from edgead.runtime.machine import describe_machine
from edgead.runtime.progress import StepProgress
from edgead.runtime.version import __version__

STATION = "edgead"
_GREY_ZONE = 3.0  # standard deviations of repeatability


@dataclass(frozen=True, slots=True)
class JudgedPart:
    """What the station made of one part.

    Attributes:
        digests: SHA-256 of each capture's file.
        scores: of each capture, raw; rejected: likewise, also where it was not inspected.
        not_inspected: how many captures were not.
        threshold: that the scores were compared with.
        changed: small change -> captures that it decides otherwise.
    """

    part: StudyPart
    digests: tuple[str, ...]
    scores: tuple[float, ...]
    rejected: tuple[bool, ...]
    not_inspected: int
    threshold: float
    changed: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Appraiser:
    """How one appraiser, a person or the station, decides.

    A part counts as agreed with its reference where *every* trial is right.

    Attributes:
        parts: that were appraised; trials: of each, the fewest.
        effectiveness: parts decided right in every trial.
        miss: defective parts that passed in any trial; false_alarm: good parts that were rejected in any.
        within: parts of which all trials say the same; None with one trial.
        kappa: with the reference, by first trials; kappa_within: between trials.
    """

    name: str
    parts: int
    trials: int
    effectiveness: Share
    miss: Share
    false_alarm: Share
    within: Share | None
    kappa: float | None
    kappa_within: float | None
    rating: Rating | None

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "parts": self.parts,
            "trials": self.trials,
            "effectiveness": self.effectiveness.to_dict(),
            "miss": self.miss.to_dict(),
            "false_alarm": self.false_alarm.to_dict(),
            "within": None if self.within is None else self.within.to_dict(),
            "kappa": self.kappa,
            "kappa_within": self.kappa_within,
            "rating": self.rating,
        }


@dataclass(frozen=True, slots=True)
class Repeatability:
    """How much the score of one part varies from capture to capture.

    Attributes:
        deviation: pooled standard deviation, raw score units; None where every part was captured once.
        of_margin: the same over the way from the median good score to the threshold.
        near: parts whose mean score lies within three deviations of the threshold; another capture may be decided
            otherwise.
    """

    deviation: float | None
    of_margin: float | None
    near: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return {"deviation": self.deviation, "of_margin": self.of_margin, "near": list(self.near)}


@dataclass(frozen=True, slots=True)
class Signoff:
    """The study.

    Attributes:
        parts: as judged, by name.
        appraisers: the station first, then people.
        kinds: of defect -> parts that passed in any trial; changes: small change -> parts of which any capture is then
            decided otherwise.
        claim: what the defective parts support, in one sentence.
        provenance: what judged: bundle, digest, versions, threshold, parity, device.
    """

    parts: tuple[JudgedPart, ...]
    appraisers: tuple[Appraiser, ...]
    repeatability: Repeatability
    kinds: Mapping[str, Share]
    changes: Mapping[str, Share]
    claim: str
    provenance: Mapping[str, Any]

    @property
    def station(self) -> Appraiser:
        """The station itself."""
        return self.appraisers[0]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form (schema ``edgead.signoff/1``)."""
        return {
            "schema": "edgead.signoff/1",
            **self.provenance,
            "appraisers": [one.to_dict() for one in self.appraisers],
            "repeatability": self.repeatability.to_dict(),
            "kinds": {kind: share.to_dict() for kind, share in self.kinds.items()},
            "small_changes": {name: share.to_dict() for name, share in self.changes.items()},
            "claim": self.claim,
            "parts": [
                {
                    "part": one.part.name,
                    "defective": one.part.defective,
                    "sha256": list(one.digests),
                    "scores": [_finite(score) for score in one.scores],
                    "threshold": one.threshold,
                    "rejected": list(one.rejected),
                    "not_inspected": one.not_inspected,
                    "changed": dict(one.changed),
                }
                for one in self.parts
            ],
        }


def study(bundle: Path, folder: Path, config: RunConfig | None = None, progress: StepProgress | None = None) -> Signoff:
    """Judge every capture of every part, and the same under small changes, and draw what follows.

    Args:
        bundle: what judges; it passes ``edgead check`` first.
        folder: see `read_parts`.
        config: backend and precision; None: the defaults of `RunConfig`.
        progress: called with (done, total).

    Raises:
        DataError: the folder or an image of it cannot be used.
        BundleError, BackendUnavailable, ConfigError: as `Inspector.open`.
    """
    with Bundle.open(bundle):
        pass  # a bundle that cannot be used is said before images are read
    given = read_parts(folder)
    _require_own_captures(given)
    config = config or RunConfig()
    checked = check_bundle(bundle, config)
    total = sum(len(part.captures) for part in given.parts)
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    with Inspector.open(bundle, config) as inspect:
        judged = tuple(_judge(inspect, part, tick) for part in given.parts)
        promised, omitted = inspect.promised, inspect.left_out
    appraisers = (_station(judged), *_people(given))
    provenance = {
        "bundle": str(bundle),
        "model_sha256": checked.model_sha256,
        "backend": checked.backend.to_dict(),
        "precision": checked.precision,
        "profile_omitted": omitted,
        "versions": _versions(bundle),
        "machine": describe_machine(),
        "threshold": {name or "all": {**one.to_dict(), "meaning": one.explain()} for name, one in promised.items()},
        "check": {
            "passed": checked.passed,
            "problems": list(checked.problems),
            "references": len(checked.references),
            "max_score_difference": _finite(checked.max_score_difference),
        },
    }
    return Signoff(
        judged,
        appraisers,
        _repeatability(judged),
        _kinds(judged),
        {name: Share.of(sum(one.changed[name] > 0 for one in judged), len(judged)) for name in CHANGES},
        _claim(appraisers[0].miss, sum(one.not_inspected > 0 for one in judged if one.part.defective)),
        provenance,
    )


def _versions(path: Path) -> dict[str, str]:
    """Return what made the bundle, and what judged now."""
    with Bundle.open(path) as bundle:
        made = bundle.manifest.provenance.get("versions")
    fitted = {f"fitted with {name}": str(value) for name, value in made.items()} if isinstance(made, Mapping) else {}
    return {**fitted, "judged by edgead": __version__}


def _require_own_captures(given: StudyParts) -> None:
    """Refuse one picture as the capture of two parts: copies are no parts, and would support what nobody saw."""
    seen: dict[str, str] = {}
    for part in given.parts:
        for path in part.captures:
            other = seen.setdefault(file_sha256(path), part.name)
            if other != part.name:
                raise DataError(f"{path} is also a capture of {other}; each part needs its own")


def _judge(inspect: Inspector, part: StudyPart, tick: Callable[[], None]) -> JudgedPart:
    results: list[Result] = []
    changed = dict.fromkeys(CHANGES, 0)
    for path in part.captures:
        image = read_image(path, inspect.bits)
        require_new(inspect, image, path)
        result = inspect(image)
        results.append(result)
        for name, make in changed_pictures(image).items():
            changed[name] += inspect(make()).decision is not result.decision
        tick()
    return JudgedPart(
        part,
        tuple(file_sha256(path) for path in part.captures),
        tuple(result.score for result in results),
        tuple(result.decision is not Decision.OK for result in results),
        sum(result.decision is Decision.NOT_INSPECTED for result in results),
        results[0].threshold,
        changed,
    )


def _station(judged: Sequence[JudgedPart]) -> Appraiser:
    return _appraiser(STATION, [(one.part.defective, one.rejected) for one in judged])


def _people(given: StudyParts) -> list[Appraiser]:
    defective = {part.name: part.defective for part in given.parts}
    return [
        _appraiser(who, [(defective[part], trials) for part, trials in sorted(by_part.items())])
        for who, by_part in given.people.items()
    ]


def _appraiser(name: str, parts: Sequence[tuple[bool, Sequence[bool]]]) -> Appraiser:
    trials = min(len(said) for _, said in parts)
    right = sum(all(one is defective for one in said) for defective, said in parts)
    missed = [not all(said) for defective, said in parts if defective]
    rejected = [any(said) for defective, said in parts if not defective]
    repeated = [said for _, said in parts if len(said) > 1]
    effectiveness, miss, false_alarm = (
        Share.of(right, len(parts)),
        Share.of(sum(missed), len(missed)),
        Share.of(sum(rejected), len(rejected)),
    )
    return Appraiser(
        name,
        len(parts),
        trials,
        effectiveness,
        miss,
        false_alarm,
        Share.of(sum(len(set(said)) == 1 for said in repeated), len(repeated)) if repeated else None,
        cohen_kappa([defective for defective, _ in parts], [said[0] for _, said in parts]),
        fleiss_kappa([sum(said[:trials]) for _, said in parts], trials) if trials > 1 else None,
        rating(effectiveness.value, miss.value, false_alarm.value),
    )


def _repeatability(judged: Sequence[JudgedPart]) -> Repeatability:
    known = [(one, [score for score in one.scores if math.isfinite(score)]) for one in judged]
    repeated = [scores for _, scores in known if len(scores) > 1]
    if not repeated:
        return Repeatability(None, None, ())
    freedom = sum(len(scores) - 1 for scores in repeated)
    deviation = math.sqrt(sum((len(scores) - 1) * float(np.var(scores, ddof=1)) for scores in repeated) / freedom)
    margins = [one.threshold - float(np.mean(scores)) for one, scores in known if scores and not one.part.defective]
    margin = float(np.median(margins)) if margins else math.nan
    near = tuple(
        one.part.name
        for one, scores in known
        if scores and abs(float(np.mean(scores)) - one.threshold) <= _GREY_ZONE * deviation
    )
    return Repeatability(deviation, deviation / margin if margin > 0 else None, near)


def _kinds(judged: Sequence[JudgedPart]) -> dict[str, Share]:
    kinds = sorted({one.part.kind for one in judged if one.part.defective})
    own = {kind: [one for one in judged if one.part.defective and one.part.kind == kind] for kind in kinds}
    return {kind: Share.of(sum(not all(one.rejected) for one in parts), len(parts)) for kind, parts in own.items()}


def _claim(miss: Share, not_inspected: int) -> str:
    limit = upper_limit(miss.seen, miss.n)
    seen = "none passed" if not miss.seen else f"{miss.seen} passed"
    more = ""
    if not miss.seen:
        goal = next((rate for rate in (0.10, 0.05, 0.02, 0.01) if rate < limit), None)
        more = "" if goal is None else f" {parts_needed(goal)} without an escape would support {goal:.0%}."
    if not_inspected:
        seen += f" ({not_inspected} were not inspected in a capture, which rejects them without having seen the defect)"
    rate = f"at most {limit:.1%} of defects like these escape"
    return f"Of {miss.n} defective parts {seen}: with 95 % confidence {rate}.{more}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
