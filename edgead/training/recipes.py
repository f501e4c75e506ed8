"""What a training consists of: stages, each with a recipe of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

Batch = Mapping[str, NDArray[Any]]

_DROP = 0.1  # what a drop of the learning rate leaves


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a stage is trained.

    Attributes:
        steps, batch: number of steps and of images in each.
        optimiser: ``sgd`` (with ``momentum``), ``adam`` or ``adamw`` (with ``betas``).
        learning_rate, weight_decay: of the optimiser.
        warm_up: steps over which the learning rate rises linearly to its value.
        schedule: ``cosine``, ``drops`` or ``constant``, after the warm-up.
        period: steps of half a cosine, which goes on swinging after them; None: all that are left.
        floor: share of the learning rate that the cosine ends at.
        drops: shares of the steps at which the rate falls to a tenth.
        clip: largest norm of all gradients together; None: as they are.
        evaluations: how often the network is judged; the best of these states is kept. It is also judged before the
            first step, to show what training is worth. 0 keeps the last.
        mixed: train in bfloat16 where the processor multiplies it; a GPU that does always trains so. Worth it for
            convolutions, of which it halves the time; attention gains nothing.
        patience: judgements without a new best after which the stage ends; None: none ends it.
    """

    steps: int
    batch: int
    optimiser: Literal["sgd", "adam", "adamw"]
    learning_rate: float
    weight_decay: float = 0.0
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    warm_up: int = 0
    schedule: Literal["cosine", "drops", "constant"] = "cosine"
    period: int | None = None
    floor: float = 0.0
    drops: tuple[float, ...] = ()
    clip: float | None = 1.0
    evaluations: int = 0
    patience: int | None = None
    mixed: bool = False

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        if step < self.warm_up:
            return self.learning_rate * (step + 1) / self.warm_up
        if self.schedule == "cosine":
            period = self.period or max(1, self.steps - self.warm_up)
            share = 0.5 * (1.0 + math.cos(math.pi * (step - self.warm_up) / period))
            return self.learning_rate * (self.floor + (1.0 - self.floor) * share)
        if self.schedule == "drops":
            return float(self.learning_rate * _DROP ** sum(step >= share * self.steps for share in self.drops))
        return self.learning_rate

    def judged(self, step: int) -> bool:
        """Whether the network is judged after this step, counted from 0; the last is always among them."""
        if not self.evaluations:
            return False
        return (step + 1) * self.evaluations // self.steps > step * self.evaluations // self.steps


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of training with a recipe of its own.

    Attributes:
        name: for progress and the loss curve.
        recipe: see `Recipe`.
        trained: modules that learn; all others stay as they are, in eval mode.
        batch: makes the arrays of a step from nothing but the generator; runs in threads of its own.
        losses: the weighted terms, scalars, whose sum is minimised.
        helper: a module that only training needs and that is no part of the network.
        start: called before the first step, and not again where a run goes on.
        settle: called before each judgement, in inference mode: sets what is measured rather than learned, such as
            the Gaussians of features that still change.
    """

    name: str
    recipe: Recipe
    trained: Sequence[nn.Module]
    batch: Callable[[np.random.Generator], Batch]
    losses: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
    helper: nn.Module | None = None
    start: Callable[[], None] | None = None
    settle: Callable[[], None] | None = None
