"""Which ranges, and which layers in INT8: judged by what they do to the score on images that set no range."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from numpy.typing import NDArray

from edgead.export.precision.activation_ranges import METHODS, Ranges
from edgead.export.precision.gptq import Rounded
from edgead.export.precision.qdq import quantisable, quantise, savings
from edgead.runtime.backends import Backend
from edgead.runtime.progress import Progress

# The search aims lower than is asked, since it judges other and fewer images than the gate does.
_AIM = 0.5
_MARGIN = 0.9  # a little lower than other images' error asks for
_RANKING = 6  # images that the layers are ranked by; the choice itself is judged by all
_MOST_GROUPS = 40  # a sensitivity each; more layers are judged in runs of neighbours

Models = Mapping[str, onnx.ModelProto]
Opener = Callable[[Models], Backend]


@dataclass(frozen=True, slots=True)
class Judges:
    """Images with the FP32 model's scores and categories, and the scale that score errors are measured in."""

    images: NDArray[np.uint8]
    scores: Sequence[float]
    categories: Sequence[str | None]
    scale: float

    def few(self) -> Judges:
        """Return every n-th of them by score, from the highest down, enough to rank layers by.

        Ranges come from good images, so it is the most anomalous one that shows which layer clips.
        """
        step = -(-len(self.images) // _RANKING)
        chosen = np.argsort(self.scores, kind="stable")[::-1][::step]
        return Judges(
            self.images[chosen],
            [self.scores[index] for index in chosen],
            [self.categories[index] for index in chosen],
            self.scale,
        )

    def drop(self, backend: Backend) -> float:
        """Return the 99th percentile of the score error over the scale; infinite where no score or another category."""
        errors = []
        for image, score, category in zip(self.images, self.scores, self.categories, strict=True):
            found = backend.run(image[None])
            same = found.category is None or found.category[0] == category
            errors.append(abs(float(found.score[0]) - score) if same else math.inf)
        worst = np.array([error if math.isfinite(error) else np.inf for error in errors])
        return float(np.inf if np.isinf(worst).any() else np.quantile(worst, 0.99) / max(self.scale, 1e-12))


@dataclass(frozen=True, slots=True)
class Int8Choice:
    """What was chosen for one dialect, and why.

    Attributes:
        drops: method -> score error with every convolution in INT8.
        sensitivity: layer -> score error with that layer alone in INT8, largest first; empty where not needed.
        kept: layers that stay in FP32; layers: how many convolutions there are.
        drop: score error of the choice; reached: whether it is within what was allowed, with something left in INT8.
        aim: score error that the search was to reach on its own images.
    """

    dialect: str
    method: str
    drops: Mapping[str, float]
    sensitivity: Mapping[str, float]
    kept: tuple[str, ...]
    layers: int
    drop: float
    reached: bool
    aim: float

    def may_go_on(self, attempt: int) -> bool:
        """Whether a lower aim can keep more layers: after a first choice, and as long as aims are reached."""
        return self.reached and (attempt == 0 or self.drop <= self.aim)

    def stricter(self, share: float) -> Int8Choice:
        """Return what `choose_int8` goes on from where other images allow this share of the error that they show."""
        return replace(self, aim=_MARGIN * share * self.drop)


@dataclass(frozen=True, slots=True)
class Quantisable:
    """What a choice of ranges and layers makes INT8 graphs of.

    Attributes:
        models: FP32 graph files of one model, which share the names of their convolutions.
        ranges: file -> method -> ranges.
        dialect: see `edgead.export.precision.qdq`.
        rounded: weights of the convolutions in INT8, see `edgead.export.precision.gptq`.
    """

    models: Models
    ranges: Mapping[str, Mapping[str, Ranges]]
    dialect: str
    rounded: Mapping[str, Rounded] | None = None

    def build(self, method: str, kept: Sequence[str]) -> dict[str, onnx.ModelProto]:
        """Return the graph files with ranges of a method, and the layers ``kept`` in FP32."""
        return {
            file: quantise(model, self.ranges[file][method], self.dialect, kept, self.rounded)
            for file, model in self.models.items()
        }


def choose_int8(
    graphs: Quantisable,
    judges: Judges,
    opener: Opener,
    max_drop: float,
    progress: Progress,
    before: Int8Choice | None = None,
) -> tuple[Int8Choice, dict[str, onnx.ModelProto]]:
    """Choose the ranges with the least score error, and keep layers in FP32 until it fits.

    Layers are kept in two orders: by their score error for the time that INT8 saves in them, see `savings`, and by
    their score error alone. Of the choices that fit, the one that gives up least time is taken.

    Args:
        graphs: what is quantised, and with what.
        judges: images that set no range.
        opener: runs a set of graph files.
        max_drop: score error allowed, see `Judges.drop`.
        progress: called with ``(stage, done, total)``.
        before: an earlier choice of the same that was not strict enough for other images, see `Int8Choice.stricter`.
            What it found out about ranges and layers is used again.

    Returns:
        The choice and its graph files. Where no choice is good enough, the best one.
    """
    search = _Search(graphs, judges, opener, progress)
    drops = search.compare_ranges({} if before is None else before.drops)
    method = min(METHODS, key=lambda name: drops[name])
    aim = _AIM * max_drop if before is None else before.aim
    search.tried[()] = drops[method], method
    sensitivity: dict[str, float] = {}
    if drops[method] > aim and len(search.layers) > 1:
        known = {} if before is None else before.sensitivity
        sensitivity = dict(known) if known else search.rank_layers(method)
        search.keep_layers(sensitivity, aim)
    kept = search.best(aim, max_drop if before is None else aim)
    drop, method = search.tried[kept]
    layers = len(search.layers)
    choice = Int8Choice(graphs.dialect, method, drops, sensitivity, kept, layers, drop, drop <= max_drop, aim)
    return choice, graphs.build(method, kept)


class _Search:
    """What was tried for one dialect: ``tried`` holds the layers kept -> least score error, and the method with it."""

    def __init__(self, graphs: Quantisable, judges: Judges, opener: Opener, progress: Progress) -> None:
        self._graphs, self._judges, self._opener, self._progress = graphs, judges, opener, progress
        model = next(iter(graphs.models.values()))
        self.layers = quantisable(model)
        self._saved = savings(model)
        self.tried: dict[tuple[str, ...], tuple[float, str]] = {}

    def compare_ranges(self, known: Mapping[str, float]) -> dict[str, float]:
        """Return the score error of each method with every layer in INT8, measured where it is not ``known``."""
        drops = dict(known)
        for done, method in enumerate(() if drops else METHODS):
            self._tell("ranges", done, len(METHODS))
            drops[method] = self._error(method, (), self._judges)
        self._tell("ranges", len(METHODS), len(METHODS))
        return drops

    def rank_layers(self, method: str) -> dict[str, float]:
        """Return the score error of each layer alone in INT8, or of its group, largest first."""
        layers = self.layers
        found: dict[str, float] = {}
        size = math.ceil(len(layers) / _MOST_GROUPS)
        groups = [layers[start : start + size] for start in range(0, len(layers), size)]
        few = self._judges.few()
        for done, group in enumerate(groups):
            self._tell("sensitivity", done, len(groups))
            found |= dict.fromkeys(group, self._error(method, [name for name in layers if name not in group], few))
        self._tell("sensitivity", len(groups), len(groups))
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def keep_layers(self, sensitivity: Mapping[str, float], aim: float) -> None:
        """Try what must be kept for the aim, in both orders."""
        # Cheap layers first loses least time, unless the costly ones are what matters.
        cheap_first = sorted(sensitivity, key=lambda name: -sensitivity[name] / max(self._saved[name], 1.0))
        for order in (cheap_first, list(sensitivity)):
            _keep_until(order, self._least_error, aim)

    def best(self, aim: float, allowed: float) -> tuple[str, ...]:
        """Return the layers to keep: of what fits that which loses least time, else what has the least error."""
        tried = self.tried
        fitting = [kept for kept, (value, _) in tried.items() if value <= aim] or [
            kept for kept, (value, _) in tried.items() if value <= allowed
        ]
        lost = {kept: sum(self._saved[name] for name in kept) for kept in tried}
        return min(fitting, key=lambda one: lost[one]) if fitting else min(tried, key=lambda one: tried[one])

    def _least_error(self, some: Sequence[str]) -> float:
        kept = tuple(name for name in self.layers if name in some)
        if kept not in self.tried:
            self._tell("layers kept in fp32", len(kept), len(self.layers))
            # The layer that is kept may be the one that made a method the best.
            self.tried[kept] = min((self._error(name, kept, self._judges), name) for name in METHODS)
        return self.tried[kept][0]

    def _error(self, method: str, kept: Sequence[str], judges: Judges) -> float:
        backend = self._opener(self._graphs.build(method, kept))
        try:
            return judges.drop(backend)
        finally:
            backend.close()

    def _tell(self, stage: str, done: int, total: int) -> None:
        self._progress(f"{self._graphs.dialect}: {stage}", done, total)


def _keep_until(order: Sequence[str], error: Callable[[Sequence[str]], float], aim: float) -> None:
    """Keep 1, 2, 4, ... of the most sensitive layers until the error fits, then as few as will do; one stays INT8."""
    count, last = 1, 0
    most = len(order) - 1
    while error(order[:count]) > aim:
        if count == most:
            return
        last, count = count, min(2 * count, most)
    while count - last > 1:
        middle = (count + last) // 2
        if error(order[:middle]) > aim:
            last = middle
        else:
            count = middle
