"""Which detector to take: chosen on good images and planted defects, said in three sentences and one command."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgead.budget import STRENGTH
from edgead.data import Category, open_category
from edgead.detectors import default_size
from edgead.evaluation.operating_point import defects_at_hand
from edgead.fitting import FitConfig
from edgead.metrics.shares import Share
from edgead.recommending.looking import Look, look_at
from edgead.recommending.trying import Candidate, Plan, Trial, Tried, short_list, try_all
from edgead.runtime.errors import ConfigError
from edgead.runtime.imaging.decode import ALL_BITS
from edgead.runtime.progress import Progress, silent

SCHEMA = "edgead.recommend/1"
_CHOSEN_BY = "good images and defects planted on them; no test image was opened, and real defects chose nothing"


@dataclass(frozen=True, slots=True)
class Recommendation:
    """What to take, and what that rests on.

    Attributes:
        chosen: index of the trial. equal: labels of the others that planted defects cannot tell from the best one.
        why: three sentences. command: arguments of the `edgead fit` to come.
    """

    name: str
    look: Look
    tried: Tried
    chosen: int
    equal: tuple[str, ...]
    why: tuple[str, str, str]
    command: tuple[str, ...]
    seed: int
    seconds: float

    @property
    def trial(self) -> Trial:
        return self.tried.trials[self.chosen]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, schema ``edgead.recommend/1``."""
        return {
            "schema": SCHEMA,
            "category": self.name,
            "look": self.look.to_dict(),
            "chosen_by": _CHOSEN_BY,
            "chosen": self.trial.candidate.label,
            "equal": list(self.equal),
            "why": list(self.why),
            "command": shlex.join(self.command),
            "rounds": self.tried.rounds,
            "images": self.tried.images,
            "strength": STRENGTH,
            "seed": self.seed,
            "trials": {one.candidate.label: _trial_dict(one) for one in self.tried.trials},
            "omitted": self.tried.omitted,
            "seconds": round(self.seconds, 3),
        }


def recommend(
    path: str | Path,
    *,
    minutes: float = 5.0,
    config: FitConfig | None = None,
    announce: Callable[[Sequence[Candidate], Look], None] | None = None,
    progress: Progress = silent,
    clock: Callable[[], float] | None = None,
) -> Recommendation:
    """Look at a category's good images, try a short list of closed-form detectors, and choose one.

    Args:
        path: category folder, folder of good images or CSV list; no test image is opened.
        minutes: after which it comes back with what it has, but for what cannot be broken off, such as one batch.
        config: size, seed, false-alarm rate, bits and defects at hand; the rest of it is not for here.
        announce: called before the trials with what will be tried, in order, and with the look.
        progress: called with ``(stage, done, total)``.
        clock: seconds that only grow; None: the process's.

    Raises:
        ConfigError: ``minutes`` that are none, or what `FitConfig` refuses.
        DataError: an unreadable image, or too few of them, or too little time for a single detector.
    """
    if not (math.isfinite(minutes) and minutes > 0):
        raise ConfigError(f"--minutes must be a number above 0, got {minutes}")
    config = config or FitConfig()
    config.check(1)
    size = default_size("patchcore") if config.size is None else config.network_size()
    path = Path(path).expanduser()
    plan = Plan(path, minutes, config) if clock is None else Plan(path, minutes, config, clock)
    started = plan.clock()
    deadline = plan.deadline()
    category = open_category(path, train_only=True)
    category = category.with_bits(ALL_BITS if config.bits is None else config.bits)
    defects_at_hand(category, config.defects)  # refuses a folder without any, before the work
    look, survey = look_at(category, size, progress)
    candidates = short_list(look, None if config.size is None else size)
    if announce is not None:
        announce(candidates, look)
    tried = try_all(category, survey, candidates, plan, deadline, progress)
    chosen, equal = choose(tried.trials)
    return Recommendation(
        name=category.name,
        look=look,
        tried=tried,
        chosen=chosen,
        equal=equal,
        why=_explain(tried, chosen, equal),
        command=fit_command(path, category, tried.trials[chosen].candidate, config),
        seed=config.seed,
        seconds=plan.clock() - started,
    )


def choose(trials: Sequence[Trial]) -> tuple[int, tuple[str, ...]]:
    """Return the trial to take, and the labels of the others that are as good as far as planted defects can tell.

    The largest AUROC of planted defects against good images wins. What lies behind by no more than one standard error
    of the difference counts as equal. Of equals the one whose own threshold makes fewest mistakes is taken; and where
    those differ by no more than a standard error either, what needs no --align, and then the smallest model.
    """
    best = max(range(len(trials)), key=lambda index: trials[index].ranking.auroc)
    top = trials[best].ranking
    equal = [
        index
        for index, one in enumerate(trials)
        if index == best or top.auroc - one.ranking.auroc <= top.error(one.ranking)
    ]
    fewest = min((_mistakes(trials[index]) for index in equal), key=lambda one: one[0])
    alike = [index for index in equal if _mistakes(trials[index])[0] <= sum(fewest)]
    chosen = min(alike, key=lambda index: (trials[index].candidate.align, trials[index].bytes))
    return chosen, tuple(trials[index].candidate.label for index in equal if index != chosen)


def _mistakes(trial: Trial) -> tuple[float, float]:
    """Return the mean of the shares of escapes and of false alarms, and its standard error."""
    shares = [(one.value or 0.0, max(one.n, 1)) for one in (trial.escapes, trial.false_alarms)]
    return sum(p for p, _ in shares) / 2, math.sqrt(sum(p * (1 - p) / n for p, n in shares)) / 2


def fit_command(path: Path, category: Category, candidate: Candidate, config: FitConfig) -> tuple[str, ...]:
    """Return the command that fits what was chosen on all images, word by word."""

    def plain(name: Path) -> str:
        return f"./{name}" if str(name).startswith("-") else str(name)

    words = ["edgead", "fit", plain(path), *candidate.options]
    default = FitConfig()
    if config.seed != default.seed:
        words += ["--seed", str(config.seed)]
    if config.false_alarm_rate != default.false_alarm_rate:
        words += ["--false-alarm-rate", f"{config.false_alarm_rate:g}"]
    if config.bits is not None:
        words += ["--bits", str(config.bits)]
    if config.defects is not None:
        words += ["--defects", plain(Path(config.defects))]
    return (*words, "-o", plain(Path(f"{category.name}.model")))


def _explain(tried: Tried, chosen: int, equal: Sequence[str]) -> tuple[str, str, str]:
    taken = tried.trials[chosen]
    others = [one for one in tried.trials if one is not taken]
    what = f"Take {taken.candidate.label}: it told planted defects from good parts with an AUROC of {_auroc(taken)}"
    if not others:
        what += "; nothing else was tried"
    elif equal:
        what += f", and {', '.join(equal)} cannot be told from it by that; of such the one with the fewest mistakes is "
        what += "taken, and where these are as many, the one without --align and the smallest"
    else:
        runner = max(others, key=lambda one: one.ranking.auroc)
        what += f", ahead of {runner.candidate.label} with {_auroc(runner)} by more than the standard error"
    found = (
        f"Of {taken.false_alarms.n} good parts that its models had not seen it rejects {taken.false_alarms.count} "
        f"({_interval(taken.false_alarms)}), and of {taken.escapes.n} planted defects {taken.escapes.count} pass "
        f"({_interval(taken.escapes)})"
    )
    real = taken.real_escapes
    if real is not None and real.n:
        found += f", of {real.n} real ones {real.count} ({_interval(real)})"
    seen = "no real defect was there to check it" if real is None else "the real ones chose nothing"
    sure = (
        f"The choice rests on {tried.images} good images and defects planted on them alone, {seen}, and planted "
        "defects are no real ones: "
    )
    if 2 * taken.escapes.count > taken.escapes.n:
        sure += "most planted ones pass, so that it is not proven fit for the line; show more normal images and real "
        sure += "defects (--defects DIR), or take a higher --false-alarm-rate, before you rely on it"
    else:
        sure += "look at the first defects of the line before you rely on it"
    return f"{what}.", f"{found}.", f"{sure}."


def _auroc(trial: Trial) -> str:
    return f"{trial.ranking.auroc:.3f} ± {trial.ranking.error():.3f}"


def _interval(share: Share) -> str:
    return f"95 % interval {share.interval}"


def _share_dict(share: Share) -> dict[str, Any]:
    return {"count": share.count, "n": share.n, **share.to_dict()}


def _trial_dict(trial: Trial) -> dict[str, Any]:
    return {
        "options": trial.candidate.options,
        "auroc": trial.ranking.auroc,
        "standard_error": trial.ranking.error(),
        "false_alarms": _share_dict(trial.false_alarms),
        "planted_escapes": _share_dict(trial.escapes),
        "real_escapes": None if trial.real_escapes is None else _share_dict(trial.real_escapes),
        "model_bytes": trial.bytes,
        "seconds_a_round": round(trial.seconds, 3),
    }
