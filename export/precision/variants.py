"""The graph files of one model in each precision, with the thresholds that belong to them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgead.export.exportable import Exportable
from edgead.export.graph.lint import require_clean
from edgead.export.graph.partition import convolutions
from edgead.export.options import CPU, FP16, FP32, TRT
from edgead.export.precision.activation_ranges import activation_ranges
from edgead.export.precision.fp16 import convert_fp16
from edgead.export.precision.gptq import Rounded, layer_inputs, round_weights
from edgead.export.precision.layer_search import Int8Choice, Judges, Quantisable, choose_int8
from edgead.export.precision.qdq import DIALECTS, watched_tensors
from edgead.export.precision.simulate_fp16 import SIMULATED, SimulatedFp16
from edgead.export.precision.simulate_int8 import SIMULATED_INT8, SimulatedInt8
from edgead.export.precision.simulation import Simulation
from edgead.export.precision.threshold_transfer import move_threshold
from edgead.runtime.backends import Backend
from edgead.runtime.backends.routed_backend import (
    FUSED_OUTPUTS,
    ROUTER_OUTPUTS,
    FusedBackend,
    RoutedBackend,
    open_model,
)
from edgead.runtime.bundle.layout import head_file
from edgead.runtime.bundle.manifest import Manifest
from edgead.runtime.bundle.manifest_schema import PrecisionSection, ThresholdSection
from edgead.runtime.decision.threshold import Threshold
from edgead.runtime.decision.verdict import Verdict
from edgead.runtime.progress import Progress

# The backends each graph file is made for; a name that is not registered yet waits for its issue.
RUNTIMES: Mapping[str, tuple[str, ...]] = {
    FP16: ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda"),
    TRT: ("tensorrt", "tensorrt-rtx"),
    CPU: ("onnxruntime", "openvino"),
}
_SIMULATIONS: Mapping[str, Callable[..., Simulation]] = {SIMULATED: SimulatedFp16, SIMULATED_INT8: SimulatedInt8}
_FIRST_LEADING = 4
_LEAST_UNSEEN = 3  # images that a line can be laid through
_HELD_OUT = 4  # every fourth calibration image sets no range and judges those that were set


@dataclass(frozen=True, slots=True)
class GraphFiles:
    """All graph files of one precision: file name -> model, the first one being the main one (or the router).

    Attributes:
        precision: key of the manifest's precisions.
        outputs: file name -> names of its outputs.
        section: its entry in the manifest.
        choice: how INT8 was made; None otherwise.
        leading: of FP16, how many convolutions at the beginning compute in FP32 all the same.
        traced: of FP32, the same graphs with the nodes of the domain ``edgead`` that TensorRT has plugins for.
    """

    precision: str
    models: Mapping[str, onnx.ModelProto]
    outputs: Mapping[str, Sequence[str]]
    section: PrecisionSection
    choice: Int8Choice | None = None
    leading: int = 0
    traced: Mapping[str, onnx.ModelProto] = field(default_factory=dict)

    @property
    def main(self) -> str:
        return self.section.file

    @property
    def layers(self) -> int:
        """How many convolutions the network of the main file has."""
        return len(convolutions(self.models[self.main].graph))

    def more_leading(self) -> int:
        """Return how many convolutions at the beginning to leave in FP32 next: twice as many, at most half of all."""
        return min(2 * self.leading or _FIRST_LEADING, self.layers // 2)

    def describe(self) -> dict[str, Any]:
        """Return what the report says of this precision, ready for JSON."""
        found: dict[str, Any] = {"file": self.main, "runtimes": list(self.section.runtimes)}
        if self.section.threshold is not None:
            found["threshold"] = self.section.threshold.value
        if self.section.categories:
            found["thresholds"] = {name: one.value for name, one in self.section.categories.items()}
        if self.leading:
            found["fp16"] = {"layers": self.layers, "leading_in_fp32": self.leading}
        if self.choice is not None:
            choice = self.choice
            found["int8"] = {
                "method": choice.method,
                "drop": choice.drop if np.isfinite(choice.drop) else None,
                "drops": {name: value if np.isfinite(value) else None for name, value in choice.drops.items()},
                "layers": choice.layers,
                "kept": list(choice.kept),
                "sensitivity": {n: v if np.isfinite(v) else None for n, v in choice.sensitivity.items()},
            }
        return found


@dataclass(frozen=True, slots=True)
class Samples:
    """Images at network size that ranges and thresholds are made from, with the trained model's verdicts.

    Attributes:
        good: ``(N, h, w, 3)`` uint8, normals only; others: references and parts with planted defects.
        verdicts: of the good images and then of the others.
        floor: the least score of a normal that its model had not seen. A training image scores lower, at a distance
            nearly zero, where rounding has another effect than at the threshold.
    """

    good: NDArray[np.uint8]
    others: NDArray[np.uint8]
    verdicts: Sequence[Verdict]
    floor: float

    @property
    def images(self) -> NDArray[np.uint8]:
        return np.concatenate([self.good, self.others])

    @property
    def unseen(self) -> list[int]:
        """Indices into `images` of those that score like parts which the model has not seen.

        Where the models of a small pool, each without a fold of it, were so much worse that hardly any image reaches
        their least score, the upper half of all images.
        """
        scored = [index for index, verdict in enumerate(self.verdicts) if math.isfinite(verdict.score)]
        found = [index for index in scored if self.verdicts[index].score >= self.floor]
        if len(found) >= _LEAST_UNSEEN:
            return found
        highest = sorted(scored, key=lambda index: -self.verdicts[index].score)
        return sorted(highest[: max(_LEAST_UNSEEN, len(scored) // 2)])

    @property
    def ranging(self) -> list[int]:
        """Indices of the good images that set ranges."""
        few = len(self.good) < _HELD_OUT
        return [index for index in range(len(self.good)) if few or index % _HELD_OUT != _HELD_OUT - 1]

    @property
    def judging(self) -> list[int]:
        """Indices into `images` of those that set none and get a score, as far as there are any."""
        spared = set(range(len(self.verdicts))) - set(self.ranging)
        return sorted(index for index in spared if math.isfinite(self.verdicts[index].score)) or self.ranging


def round_network(full: GraphFiles, samples: Samples) -> dict[str, Mapping[str, Rounded]]:
    """Return dialect -> INT8 weights, of all files: a router and its heads share one network."""
    model = full.models[full.main]
    inputs = layer_inputs(model, samples.images[samples.ranging])
    return {name: round_weights(model, inputs, saturation_free=name == CPU) for name in DIALECTS}


@dataclass(frozen=True, slots=True)
class PrecisionMaker:
    """Makes the graph files of reduced precisions from those of FP32, linted, with their thresholds.

    Attributes:
        full: graph files in FP32.
        max_drop: see `edgead.export.precision.layer_search.choose_int8`; so is ``progress``.
        rounded: by dialect, see `edgead.export.precision.layer_search.Quantisable`.
        cache: folder that keeps calibrated ranges; None keeps none.
        plain: leave no scoring nodes in what is made for TensorRT; what OpenVINO reads has none.
    """

    model: Exportable
    manifest: Manifest
    full: GraphFiles
    samples: Samples
    max_drop: float
    cache: Path | None
    plain: bool
    rounded: Mapping[str, Mapping[str, Rounded]]
    progress: Progress

    def make(self, precision: str, before: Int8Choice | None = None, leading: int = 0) -> GraphFiles:
        """Make one of `PRECISIONS` but fp32.

        Args:
            before: an INT8 choice that moved the scores of other images too far.
            leading: of FP16, see `GraphFiles`.
        """
        source = self.full.models if self.plain or precision == CPU else self.full.traced
        choice = None
        if precision == FP16:
            self.progress("fp16", 0, 1)
            models = {_named(file, FP16): convert_fp16(one, leading) for file, one in source.items()}
        else:
            choice, made = self._choose(precision, source, before)
            models = {_named(file, precision): one for file, one in made.items()}
        outputs = {_named(file, precision): names for file, names in self.full.outputs.items()}
        for file, one in models.items():
            require_clean(one, outputs[file], precision)
        allowed = None if precision == FP16 else self.max_drop
        section = PrecisionSection(
            file=next(iter(models)),
            runtimes=RUNTIMES[precision],
            max_drop=allowed,
            saturation_free=precision == CPU,  # as the lint has just found
        )
        section = _with_thresholds(section, self.model, self._pairs(precision, models))
        return GraphFiles(precision, models, outputs, section, choice, leading)

    def _choose(
        self, precision: str, source: Mapping[str, onnx.ModelProto], before: Int8Choice | None
    ) -> tuple[Int8Choice, dict[str, onnx.ModelProto]]:
        samples = self.samples
        ranges = {
            file: activation_ranges(one, watched_tensors(one), _images_for(file, samples), cache=self.cache)
            for file, one in self.full.models.items()
        }
        judging = samples.judging
        judges = Judges(
            samples.images[judging],
            [samples.verdicts[index].score for index in judging],
            [samples.verdicts[index].category for index in judging],
            self.model.scale,
        )
        with TemporaryDirectory(prefix="edgead-int8-") as folder:
            opener = partial(_open_candidate, Path(folder), precision, self.manifest)
            graphs = Quantisable(source, ranges, precision, self.rounded[precision])
            return choose_int8(graphs, judges, opener, self.max_drop, self.progress, before)

    def _pairs(self, precision: str, models: Mapping[str, onnx.ModelProto]) -> list[tuple[Verdict, float]]:
        """Return the model's verdicts and the reduced graph's scores of images like unseen parts."""
        samples = self.samples
        with TemporaryDirectory(prefix="edgead-threshold-") as folder:
            main = save(models, Path(folder))
            backend = open_graphs(simulation_of(precision), self.manifest, main, precision)
            try:
                return [
                    (samples.verdicts[index], float(backend.run(samples.images[index][None]).score[0]))
                    for index in samples.unseen
                ]
            finally:
                backend.close()


def open_graphs(name: str, manifest: Manifest, main: Path, precision: str) -> Backend:
    """Open the graph files of a precision with a registered backend, or simulated (see `simulation_of`)."""
    if name not in _SIMULATIONS:
        return open_model(name, manifest, main, precision)
    simulated = _SIMULATIONS[name]
    if manifest.graph == "single":
        return simulated(main)
    minimum = manifest.minimum_similarity()
    heads = {category: main.with_name(head_file(category, precision)) for category in minimum}
    if not any(file.is_file() for file in heads.values()):
        return FusedBackend(simulated(main, outputs=FUSED_OUTPUTS), minimum)
    router = simulated(main, outputs=ROUTER_OUTPUTS)
    with ExitStack() as stack:
        stack.callback(router.close)
        opened = {category: simulated(file) for category, file in heads.items()}
        stack.pop_all()
    return RoutedBackend(router, opened, minimum)


def simulation_of(precision: str) -> str:
    """Return the name of the arithmetic that judges a reduced precision, the same on every processor."""
    return SIMULATED if precision == FP16 else SIMULATED_INT8


def save(models: Mapping[str, onnx.ModelProto], folder: Path) -> Path:
    """Write graph files as they are, weights inside; returns the path of the main one."""
    for file, model in models.items():
        onnx.save(model, str(folder / file))
    return folder / next(iter(models))


def _open_candidate(folder: Path, precision: str, manifest: Manifest, models: Mapping[str, onnx.ModelProto]) -> Backend:
    main = save({_named(file, precision): model for file, model in models.items()}, folder)
    return open_graphs(SIMULATED_INT8, manifest, main, precision)


def _named(file: str, precision: str) -> str:
    return f"{file.removesuffix('.fp32.onnx')}.{precision}.onnx"


def _images_for(file: str, samples: Samples) -> NDArray[np.uint8]:
    """Return the images that set the ranges of a graph file: a head sees parts of its own category only."""
    chosen = samples.ranging
    own = [i for i in chosen if file == head_file(samples.verdicts[i].category or "", FP32)]
    return samples.good[own or chosen]


def _with_thresholds(
    section: PrecisionSection, model: Exportable, pairs: Sequence[tuple[Verdict, float]]
) -> PrecisionSection:
    def moved(threshold: Threshold, pairs: Sequence[tuple[Verdict, float]]) -> ThresholdSection:
        found = move_threshold(threshold, [verdict.score for verdict, _ in pairs], [score for _, score in pairs])
        return ThresholdSection.from_threshold(found)

    own = {} if model.routing is None else model.routing.thresholds
    categories = {
        name: moved(threshold, [pair for pair in pairs if pair[0].category == name] or pairs)
        for name, threshold in own.items()
    }
    return section.model_copy(update={"threshold": moved(model.threshold, pairs), "categories": categories})
