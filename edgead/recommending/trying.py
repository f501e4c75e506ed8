"""Detectors tried on a part: fitted on most of its normal images, judged on the rest and on defects planted there."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgead.budget import STRENGTH
from edgead.data import Category
from edgead.data.survey import Survey
from edgead.detectors.base import assign_folds
from edgead.evaluation.probing import ProbeOutcome, ProbePlan, judge_probes
from edgead.evaluation.validation_normals import PHOTOS, Normals
from edgead.features.scoring import ScoringModule
from edgead.fitting import FitConfig, fit
from edgead.fitting.audit import image_names
from edgead.metrics.shares import Share
from edgead.model.model import TrainedModel
from edgead.probes import KINDS
from edgead.recommending.looking import Look, spread
from edgead.runtime.decision.paired_auroc import Ranking
from edgead.runtime.errors import DataError, EdgeadError
from edgead.runtime.progress import Progress

ROUNDS = 4  # parts that the images are dealt to; each is judged by models of the three others
LEAST_PARTS = 8
_MOST_IMAGES = 160
_PROBES = 4  # planted defects an image
# Above this share of lost detail, in images that have more pixels, a larger network size is tried, too.
_FINE, _LARGER = 0.05, 384


@dataclass(frozen=True, slots=True)
class Candidate:
    """What is tried: a closed-form detector, with its defaults but for what stands here."""

    detector: str
    align: bool = False
    size: int | tuple[int, int] | None = None

    @property
    def options(self) -> list[str]:
        """The options of ``edgead fit`` that say so."""
        size = self.size if self.size is None or isinstance(self.size, int) else "x".join(map(str, self.size))
        return [
            *("--detector", self.detector),
            *(("--align",) if self.align else ()),
            *(() if size is None else ("--size", str(size))),
        ]

    @property
    def label(self) -> str:
        return " ".join(self.options[1:])


def short_list(look: Look, size: tuple[int, int] | None) -> list[Candidate]:
    """Return what is worth a trial for such images, most promising and quickest first.

    Args:
        size: network size that the user asks for; None: the default, and a larger one for fine detail.
    """
    if look.lies_anyhow:
        order = [("padim", True), ("patchcore", True), ("patchcore", False), ("fre", True), ("npad", True)]
    else:
        order = [("patchcore", False), ("padim", False), ("fre", False), ("npad", False)]
    found = [Candidate(name, align, size) for name, align in order]
    if size is None and look.lost_detail > _FINE and min(look.width, look.height) >= _LARGER:
        found.insert(2, Candidate(found[0].detector, found[0].align, _LARGER))
    return found


@dataclass(frozen=True, slots=True)
class Trial:
    """How one candidate judged images that its models had not seen; a model a round, all rounds together.

    Attributes:
        ranking: how its scores tell planted defects from the good images.
        false_alarms: good images that it would reject, with those that it would not inspect.
        escapes: planted defects that would pass.
        real_escapes: real defects that would pass, of those on which the part is found; None without any. Each was
            judged in every round, and of their counts the mean stands here, rounded.
        bytes: of the model's tensors without its backbone.
        seconds: of one round, the mean.
    """

    candidate: Candidate
    ranking: Ranking
    false_alarms: Share
    escapes: Share
    real_escapes: Share | None
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Tried:
    """What the trials gave: ``trials`` in the order of the list, what was ``omitted`` and why, and the rounds."""

    trials: tuple[Trial, ...]
    omitted: dict[str, str]
    rounds: int
    images: int


@dataclass(frozen=True, slots=True)
class Plan:
    """How candidates are tried.

    Attributes:
        path: of the category.
        minutes: after which nothing more is begun, and what has begun is broken off.
        config: what all of them have in common: seed, false-alarm rate, bits, defects at hand.
        clock: seconds that only grow.
    """

    path: Path
    minutes: float
    config: FitConfig
    clock: Callable[[], float] = time.monotonic

    def deadline(self) -> float:
        """Return when the time is over that begins now."""
        return self.clock() + 60 * self.minutes


class _OutOfTime(Exception):  # noqa: N818 - no fault
    """The time is over; what was begun is thrown away."""


def try_all(
    category: Category, survey: Survey, candidates: Sequence[Candidate], plan: Plan, deadline: float, progress: Progress
) -> Tried:
    """Try candidates round by round until the time is over; a round counts where all that are left have finished it.

    Raises:
        DataError: too few images, or not one candidate could be tried.
        EdgeadError: what a fit refuses, where it refuses every candidate.
    """
    if survey.parts < LEAST_PARTS:
        raise DataError(
            f"{survey.parts} good images (copies count once) are too few to try detectors on, which takes "
            f"{LEAST_PARTS}; add images, or begin with: edgead fit {plan.path} -o {category.name}.model"
        )
    chosen = spread(len(category.train), _MOST_IMAGES)
    rounds = assign_folds(
        len(chosen), plan.config.seed, ROUNDS, np.unique(survey.groups[chosen], return_inverse=True)[1]
    )
    left, omitted, done = list(candidates), dict[str, str](), list[dict[Candidate, _Round]]()
    first_error: EdgeadError | None = None
    for number in range(int(rounds.max()) + 1):
        if done and sum(one.seconds for one in done[0].values()) > deadline - plan.clock():
            break
        held_out = [index for index, own in zip(chosen, rounds, strict=True) if own == number]
        fitted = [index for index, own in zip(chosen, rounds, strict=True) if own != number]
        found: dict[Candidate, _Round] = {}
        for candidate in list(left):
            stage = f"{candidate.label}, {number + 1} of {ROUNDS}"
            work = _Work(category, candidate, plan, deadline, partial(_named, progress, stage))
            try:
                found[candidate] = work.judge(fitted, held_out, number)
            except _OutOfTime:
                if done:
                    break
                omitted[candidate.label] = f"{plan.minutes:g} minutes were over"
                left.remove(candidate)
            except EdgeadError as error:
                first_error = first_error or error
                omitted[candidate.label] = str(error)
                left.remove(candidate)
        if any(one not in found for one in left):
            break
        done.append(found)
    if not left and first_error is not None and len(omitted) == len(candidates):
        raise first_error
    if not left or not done:
        raise DataError(f"not one detector could be tried in {plan.minutes:g} minutes; give more --minutes")
    trials = tuple(_together(candidate, [one[candidate] for one in done]) for candidate in left)
    return Tried(trials, omitted, len(done), len(trials[0].ranking.copies))


def _named(progress: Progress, name: str, stage: str, done: int, total: int) -> None:
    progress(f"{name} | {stage}", done, total)


@dataclass(frozen=True, slots=True)
class _Round:
    """What one model said: good images and planted ones as shares of its threshold, and who owns the planted ones."""

    normal: NDArray[np.float64]
    planted: NDArray[np.float64]
    owners: NDArray[np.int64]
    false_alarms: int
    escapes: int
    real: tuple[int, int] | None
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class _Work:
    """One candidate of one round."""

    category: Category
    candidate: Candidate
    plan: Plan
    deadline: float
    progress: Progress

    def judge(self, fitted: Sequence[int], held_out: Sequence[int], number: int) -> _Round:
        """Fit on some of the images, and judge others; raises `_OutOfTime`."""
        self._step("features", 0, 1)
        started = self.plan.clock()
        names = image_names([self.category])
        used = set(fitted)
        config = replace(
            self.plan.config,
            detector=self.candidate.detector,
            align=self.candidate.align,
            size=self.candidate.size,
            exclude=[name for index, name in enumerate(names) if index not in used],
            learn_defects=False,
        )
        with _unsaid():
            model = fit(self.plan.path, config, progress=self._step)
        samples = tuple(self.category.train[index] for index in held_out)
        per_kind = max(1, round(_PROBES * len(samples) / len(KINDS)))
        plan = ProbePlan(per_kind=per_kind, seed=self.plan.config.seed + number, strength=STRENGTH)
        normals = Normals(self.category, samples, None, PHOTOS)
        with model.inspector(self.candidate.label) as inspector:
            outcomes = judge_probes(inspector, normals, plan, partial(self._step, "planted defects"))
        return _round(model, outcomes, self.plan.clock() - started)

    def _step(self, stage: str, done: int, total: int) -> None:
        if self.plan.clock() > self.deadline:
            raise _OutOfTime
        self.progress(stage, done, total)


def _round(model: TrainedModel, outcomes: Sequence[ProbeOutcome], seconds: float) -> _Round:
    good = [one for one in outcomes if one.kind is None]
    # Planted where nothing came of it: no defect.
    painted = [one for one in outcomes if one.kind is not None and not one.skipped]
    if not painted:
        raise DataError("no defects can be planted on these images, which are too uniform to compare detectors on")
    place = {one.image: index for index, one in enumerate(good)}
    middle, threshold = float(np.median(model.card.normal_scores)), model.threshold.value
    unit = max(threshold - middle, 1e-12)

    def in_units(scores: Sequence[ProbeOutcome]) -> NDArray[np.float64]:
        # What is not inspected never passes the line.
        return np.array([math.inf if math.isnan(one.score) else (one.score - middle) / unit for one in scores])

    normal, planted = in_units(good), in_units(painted)
    defects = model.card.defects
    real = None
    if defects is not None:
        own = next(point for point in defects.points if point.own)
        real = own.escapes, defects.images
    assert isinstance(model.module, ScoringModule)
    tensors = [*model.module.head.parameters(), *model.module.head.buffers()]
    return _Round(
        normal=normal,
        planted=planted,
        owners=np.array([place[one.image] for one in painted], np.int64),
        false_alarms=sum(one.caught or math.isnan(one.score) for one in good),
        escapes=sum(not one.caught and not math.isnan(one.score) for one in painted),
        real=real,
        bytes=sum(one.nbytes for one in tensors),
        seconds=seconds,
    )


def _together(candidate: Candidate, rounds: Sequence[_Round]) -> Trial:
    starts = np.cumsum([0, *(len(one.normal) for one in rounds)])
    normal = np.concatenate([one.normal for one in rounds])
    planted = np.concatenate([one.planted for one in rounds])
    owners = np.concatenate([one.owners + start for one, start in zip(rounds, starts, strict=False)])
    real = [one.real for one in rounds if one.real is not None]
    return Trial(
        candidate=candidate,
        ranking=Ranking.of(normal, planted, owners),
        false_alarms=Share(sum(one.false_alarms for one in rounds), len(normal)),
        escapes=Share(sum(one.escapes for one in rounds), len(planted)),
        real_escapes=None if not real else Share(round(float(np.mean([e for e, _ in real]))), real[0][1]),
        bytes=rounds[0].bytes,
        seconds=float(np.mean([one.seconds for one in rounds])),
    )


@contextmanager
def _unsaid() -> Iterator[None]:
    """Keep a fit's warnings back: those of the images are in the look, and the fit to come says them all."""
    log = logging.getLogger("edgead.fit")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before
