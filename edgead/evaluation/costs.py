"""What mistakes cost, and what 1,000 parts cost at given shares of them; needs no training library."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgead.runtime.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Costs:
    """What mistakes cost, in any unit.

    Attributes:
        escape: of a defective part that passes. false_alarm: of a normal part that is rejected.
        defect_rate: share of all parts that are defective, in (0, 1).
    """

    escape: float
    false_alarm: float
    defect_rate: float = 0.01

    def __post_init__(self) -> None:
        if not (self.escape > 0 and self.false_alarm > 0):
            raise ConfigError(f"costs must be above 0, got {self.escape:g} and {self.false_alarm:g}")
        if not 0.0 < self.defect_rate < 1.0:
            raise ConfigError(f"the rate of defects must lie between 0 and 1, got {self.defect_rate:g}")

    def of(
        self, escapes: NDArray[np.float64] | float, false_alarms: NDArray[np.float64] | float
    ) -> NDArray[np.float64]:
        """Return the cost of 1,000 parts where these shares of defective and of normal parts are judged wrongly."""
        return 1000 * np.asarray(
            self.defect_rate * self.escape * escapes + (1 - self.defect_rate) * self.false_alarm * false_alarms
        )


def parse_costs(escape: float | None, false_alarm: float | None, defect_rate: float) -> Costs | None:
    """Return the costs of the command line, None where there are none; raises `ConfigError` where one is missing."""
    if escape is None and false_alarm is None:
        return None
    if escape is None or false_alarm is None:
        raise ConfigError("give both --cost-escape and --cost-false-alarm; a threshold depends on their ratio only")
    return Costs(escape, false_alarm, defect_rate)
