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


def choose_int8(
    models: Models,
    ranges: Mapping[str, Mapping[str, Ranges]],
    dialect: str,
    judges: Judges,
    opener: Opener,
    max_drop: float,
    progress: Progress,
    rounded: Mapping[str, Rounded] | None = None,
    before: Int8Choice | None = None,
) -> tuple[Int8Choice, dict[str, onnx.ModelProto]]:
    """Choose the ranges with the least score error, and keep layers in FP32 until it fits.

    Layers are kept in two orders: by their score error for the time that INT8 saves in them, see `savings`, and by
    their score error alone. Of the choices that fit, the one that gives up least time is taken.

    Args:
        models: FP32 graph files of one model, which share the names of their convolutions.
        ranges: file -> method -> ranges.
        dialect: see `edgead.export.precision.qdq`.
        judges: images that set no range.
        opener: runs a set of graph files.
        max_drop: score error allowed, see `Judges.drop`.
        progress: called with ``(stage, done, total)``.
        rounded: weights of the convolutions in INT8, see `edgead.export.precision.gptq`.
        before: an earlier choice of the same that was not strict enough for other images, see `Int8Choice.stricter`.
            What it found out about ranges and layers is used again.

    Returns:
        The choice and its graph files. Where no choice is good enough, the best one.
    """
    layers = quantisable(next(iter(models.values())))
    saved = savings(next(iter(models.values())))
    tried: dict[tuple[str, ...], tuple[float, str]] = {}

    def build(method: str, kept: Sequence[str]) -> dict[str, onnx.ModelProto]:
        return {file: quantise(model, ranges[file][method], dialect, kept, rounded) for file, model in models.items()}

    def error(method: str, kept: Sequence[str], judges: Judges = judges) -> float:
        backend = opener(build(method, kept))
        try:
            return judges.drop(backend)
        finally:
            backend.close()

    def ranked(method: str) -> dict[str, float]:
        found: dict[str, float] = {}
        size = math.ceil(len(layers) / _MOST_GROUPS)
        groups = [layers[start : start + size] for start in range(0, len(layers), size)]
        few = judges.few()
        for done, group in enumerate(groups):
            progress(f"{dialect}: sensitivity", done, len(groups))
            found |= dict.fromkeys(group, error(method, [name for name in layers if name not in group], few))
        progress(f"{dialect}: sensitivity", len(groups), len(groups))
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    drops = {} if before is None else dict(before.drops)
    for done, method in enumerate(() if drops else METHODS):
        progress(f"{dialect}: ranges", done, len(METHODS))
        drops[method] = error(method, ())
    progress(f"{dialect}: ranges", len(METHODS), len(METHODS))
    method = min(METHODS, key=lambda name: drops[name])
    aim = _AIM * max_drop if before is None else before.aim
    tried[()] = drops[method], method
    sensitivity: dict[str, float] = {}
    if drops[method] > aim and len(layers) > 1:
        sensitivity = dict(before.sensitivity) if before is not None and before.sensitivity else ranked(method)

        def judged(some: Sequence[str]) -> float:
            kept = tuple(name for name in layers if name in some)
            if kept not in tried:
                progress(f"{dialect}: layers kept in fp32", len(kept), len(layers))
                # The layer that is kept may be the one that made a method the best.
                tried[kept] = min((error(name, kept), name) for name in METHODS)
            return tried[kept][0]

        # Cheap layers first loses least time, unless the costly ones are what matters.
        _keep_until(sorted(sensitivity, key=lambda name: -sensitivity[name] / max(saved[name], 1.0)), judged, aim)
        _keep_until(list(sensitivity), judged, aim)
    allowed = max_drop if before is None else aim
    fitting = [kept for kept, (value, _) in tried.items() if value <= aim] or [
        kept for kept, (value, _) in tried.items() if value <= allowed
    ]
    lost = {kept: sum(saved[name] for name in kept) for kept in tried}
    kept = min(fitting, key=lambda one: lost[one]) if fitting else min(tried, key=lambda one: tried[one])
    drop, method = tried[kept]
    choice = Int8Choice(dialect, method, drops, sensitivity, kept, len(layers), drop, drop <= max_drop, aim)
    return choice, build(method, kept)


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
