"""The Pareto front of accuracy, milliseconds and megabytes, and the one of it that a budget takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from edgead.runtime.decision.paired_auroc import Ranking
from edgead.runtime.device.tuning.report import Candidate

# Medians of one combination, taken again, differ by a few per cent; a smaller gain buys no memory.
SAME_SPEED = 1.05
_DRIFT_DIGITS = 3  # what `edgead check` calls the same score in FP32, as a share of the score margin


def mark(candidates: Sequence[Candidate], budget_ms: float | None, budget_mb: float | None) -> tuple[Candidate, ...]:
    """Return the candidates with ``fits`` and ``front`` filled in."""
    figures = {index: _Figures.of(one) for index, one in enumerate(candidates) if one.usable}
    marked = []
    for index, one in enumerate(candidates):
        fits = one.usable and excess(one, budget_ms, budget_mb) <= 1.0
        front = index in figures and not any(other.beats(figures[index]) for other in figures.values())
        marked.append(replace(one, fits=fits, front=front))
    return tuple(marked)


def pick(candidates: Sequence[Candidate], keep: int | None = None) -> int | None:
    """Return the index of the candidate to use, None where none fits.

    Of those on the front that keep within the budgets the one with the largest AUROC says which bundle: speed that
    nobody asked for costs no accuracy. Of the combinations of that bundle, which is one model all the time, those that
    lie behind by no more than one standard error of the difference count as equal. Of equals the fastest, and of those
    within 5 % of it the one that takes least memory.

    Args:
        candidates: from `mark`.
        keep: a bundle that stays where it fits and is as accurate as the best one within that error.
    """
    fitting = [index for index, one in enumerate(candidates) if one.fits and one.front]
    if not fitting:
        return None
    best = max(fitting, key=lambda index: (candidates[index].judgement.auroc or 0.0, -_ms(candidates[index])))
    own = [index for index in fitting if candidates[index].bundle == candidates[best].bundle]
    equal = [index for index in own if _equal(candidates[best], candidates[index])]
    if keep is not None:
        stays = [index for index, one in enumerate(candidates) if one.fits and one.bundle == keep]
        equal = [index for index in stays if _equal(candidates[best], candidates[index])] or equal
    fastest = min(_ms(candidates[index]) for index in equal)
    near = [index for index in equal if _ms(candidates[index]) <= SAME_SPEED * fastest]
    return min(near, key=lambda index: (candidates[index].peak_mb or 0.0, _ms(candidates[index])))


def complain(candidates: Sequence[Candidate], budget_ms: float | None, budget_mb: float | None, fix: str) -> str:
    """Return one line for a user whose budgets nothing keeps within; ``fix`` says what to change."""
    usable = [one for one in candidates if one.usable]
    if not usable:
        first = next((one.judgement.excluded for one in candidates if one.judgement.excluded), "nothing was measured")
        return f"no combination decides here as the model was validated ({first}); run: edgead check"
    nearest = min(usable, key=lambda one: excess(one, budget_ms, budget_mb))
    limits = ((budget_ms, "ms"), (budget_mb, "MB"))
    wanted = " and ".join(f"{value:g} {unit}" for value, unit in limits if value is not None)
    memory = "" if nearest.peak_mb is None else f" and {nearest.peak_mb:.0f} MB"
    return (
        f"nothing keeps within {wanted} here: the nearest, {nearest.setup.name}, takes {_ms(nearest):.2f} ms{memory}; "
        f"raise the budget, or {fix}"
    )


def excess(candidate: Candidate, budget_ms: float | None, budget_mb: float | None) -> float:
    """Return the larger of its shares of the budgets; above 1 it does not fit."""
    return max(_ms(candidate) / (budget_ms or math.inf), (candidate.peak_mb or 0.0) / (budget_mb or math.inf))


def _ms(candidate: Candidate) -> float:
    return math.inf if candidate.latency is None else candidate.latency.p50


class _Figures(NamedTuple):
    """What the front compares, the less the better: accuracy (AUROC, then drift), ms, MB."""

    accuracy: tuple[float, float]
    ms: float
    mb: int

    @classmethod
    def of(cls, candidate: Candidate) -> _Figures:
        judged = candidate.judgement
        accuracy = -(judged.auroc or 0.0), round(judged.drift, _DRIFT_DIGITS)
        return cls(accuracy, round(_ms(candidate), 2), round(candidate.peak_mb or 0.0))

    def beats(self, other: _Figures) -> bool:
        return self != other and self.accuracy <= other.accuracy and self.ms <= other.ms and self.mb <= other.mb


def _equal(best: Candidate, other: Candidate) -> bool:
    ranks: tuple[Ranking | None, Ranking | None] = best.judgement.ranking, other.judgement.ranking
    if ranks[0] is None or ranks[1] is None:
        return True
    return ranks[0].auroc - ranks[1].auroc <= ranks[0].error(ranks[1])
