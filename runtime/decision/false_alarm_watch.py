"""Whether the promised false-alarm rate still holds, tested after every part that is known to be good.

A test that may be looked at after each part needs more than a confidence interval, which is right at one look only.
This one bets against the promise (an e-process; Ramdas, Grünwald, Vovk and Shafer, *Game-theoretic statistics and safe
anytime-valid inference*, 2023): it starts with a capital of 1, of which shares are staked on higher rates, beginning at
every part. While each part's chance of a false alarm, given those before it, is at most the promised rate, no such bet
gains on average, so the capital reaches 1 / risk with a probability of at most ``risk`` *over the whole run* (Ville
1939). Bets that begin later find a change that comes after a long time of good work (as the Shiryaev-Roberts detector
does; the shares staked at part t are 1 / (t (t + 1)), which sum to 1).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from edgead.runtime.errors import ConfigError

DEFAULT_RISK = 0.05
# Odds of the rates that are bet on, as multiples of the promised one's: a change smaller than the first is found late.
_ODDS = (1.5, 2.0, 3.0, 5.0, 8.0, 16.0, 32.0, 64.0)
# The capital is kept below this, far above what any risk asks for, so that nothing overflows.
_MOST = 1e250


@dataclass(frozen=True, slots=True)
class PromiseState:
    """What parts known to be good say of the promised false-alarm rate.

    Attributes:
        category: of a routed model, else None.
        rate: share of good parts that may be rejected; risk: chance of a wrong warning in the whole run.
        parts: known good parts so far; false_alarms: how many of them were rejected.
        evidence: the capital of the bets against the promise; 1 / evidence bounds the p-value.
        broken_at: number of the part at which the evidence first reached 1 / risk; None: the promise stands.
    """

    category: str | None
    rate: float
    risk: float
    parts: int
    false_alarms: int
    evidence: float
    broken_at: int | None

    @property
    def broken(self) -> bool:
        """Whether the evidence has reached 1 / risk at any part."""
        return self.broken_at is not None

    def explain(self) -> str:
        """Return one sentence for a person."""
        if not self.parts:
            return "no part known to be good was judged by the promised threshold yet: nothing is tested"
        where = "" if self.category is None else f"{self.category}: "
        seen = f"{where}{self.false_alarms} of {self.parts} parts known to be good were rejected"
        if self.broken:
            return (
                f"{seen}: the promised false-alarm rate of {self.rate:.2%} no longer holds (found at part "
                f"{self.broken_at}; such a warning is wrong in at most {self.risk:.1%} of all runs); "
                "look at camera, light and material; then 'edgead calibrate', or teach or fit with new images"
            )
        return f"{seen}: nothing speaks against the promised false-alarm rate of {self.rate:.2%}"

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "broken": self.broken, "text": self.explain()}


class FalseAlarmWatch:
    """Tests after every part known to be good whether false alarms keep to a promised rate.

    Args:
        rate: the share of good parts that may be rejected, in (0, 1).
        risk: the chance of a wrong warning in the whole run, in (0, 1).
        category: what the parts are, of a routed model.

    Raises:
        ConfigError: a rate or risk outside (0, 1).

    Example:
        >>> watch = FalseAlarmWatch(0.01)
        >>> for _ in range(6):
        ...     watch.observe(rejected=True)
        >>> watch.state.broken
        True
    """

    def __init__(self, rate: float, *, risk: float = DEFAULT_RISK, category: str | None = None) -> None:
        for name, value in (("rate", rate), ("risk", risk)):
            if not 0.0 < value < 1.0:
                raise ConfigError(f"the {name} of a watch over false alarms must lie between 0 and 1, got {value}")
        self._rate, self._risk, self._category = rate, risk, category
        odds = rate / (1.0 - rate)
        bets = [odds * factor / (1.0 + odds * factor) for factor in _ODDS]
        # What a stake is multiplied by, with a rejected part and with one that is not.
        self._gains = [bet / rate for bet in bets]
        self._losses = [(1.0 - bet) / (1.0 - rate) for bet in bets]
        self._stakes = [0.0] * len(bets)
        self._parts = self._rejected = 0
        self._broken_at: int | None = None

    def observe(self, *, rejected: bool) -> None:
        """Take the decision on one part known to be good.

        Parts must be chosen without regard to their decision: all parts of a time in which all are good, or a sample
        that was drawn before anyone saw the decision. Rejects that somebody looked at, alone, are no such sample.
        """
        self._parts += 1
        self._rejected += rejected
        factors = self._gains if rejected else self._losses
        fresh = 1.0 / (self._parts * (self._parts + 1) * len(self._stakes))
        self._stakes = [
            min((stake + fresh) * factor, _MOST) for stake, factor in zip(self._stakes, factors, strict=True)
        ]
        if self._broken_at is None and self._evidence() >= 1.0 / self._risk:
            self._broken_at = self._parts

    @property
    def state(self) -> PromiseState:
        """What the parts so far say."""
        return PromiseState(
            self._category, self._rate, self._risk, self._parts, self._rejected, self._evidence(), self._broken_at
        )

    def _evidence(self) -> float:
        # What no bet has been made with yet.
        kept = 1.0 / (self._parts + 1)
        return math.fsum([kept, *self._stakes])
