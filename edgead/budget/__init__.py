"""Settings that keep within a budget of bytes or milliseconds, chosen by measurement on this machine."""

from edgead.budget.choosing import Budget, BudgetLimits, Material, check_budget, choose, pick
from edgead.budget.trials import STRENGTH
from edgead.runtime.decision.paired_auroc import Ranking

__all__ = ["STRENGTH", "Budget", "BudgetLimits", "Material", "Ranking", "check_budget", "choose", "pick"]
