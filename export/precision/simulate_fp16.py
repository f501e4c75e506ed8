"""An FP16 graph executed as a device would: every half tensor rounded to IEEE half, Inf kept, FP32 inside an operator.

CPU runtimes compute an FP16 graph in FP32, so they never overflow and prove little. Here the same graph, with the casts
where they are, is rewritten to FP32 with a rounding to half behind each operator that gives half, and ONNX Runtime
executes that: sums inside an operator stay FP32, as on tensor cores. On the way the largest magnitude of every half
tensor is taken, which says how far the network stays from 65504.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgead.export.graph.partition import array, element_types
from edgead.export.ops.nodes import inline_nodes
from edgead.export.precision.fp16 import HALF_MAX
from edgead.export.precision.simulation import Simulation
from edgead.runtime.backends.common import OUTPUTS
from edgead.runtime.errors import ConfigError

SIMULATED = "simulated-fp16"


class HalfRange(NamedTuple):
    """One half tensor: its largest magnitude before rounding, and how many times that fits into half."""

    tensor: str
    maximum: float

    @property
    def margin(self) -> float:
        """65504 over the maximum; below 1 it overflows."""
        return HALF_MAX / self.maximum if self.maximum > 0 else float("inf")


class SimulatedFp16(Simulation):
    """Runs an FP16 graph as a device with half arithmetic would; keeps the `Backend` and the `Network` protocol.

    Args:
        model: FP16 graph file, its ``weights/`` folder beside it.
        threads: CPU threads; None leaves the choice to the library.
        outputs: what `compute` returns; `run` needs a score and a map.

    Raises:
        ConfigError: nothing in the graph is half.
        BackendError: ONNX Runtime cannot load it, or it is no scoring graph.
    """

    _name, _precision = SIMULATED, "fp16"

    def __init__(self, model: Path, *, threads: int | None = None, outputs: Sequence[str] = OUTPUTS) -> None:
        rewritten, self._tensors = simulate(inline_nodes(onnx.load(str(model))), model.name)
        # An optimiser could take a rounding for a detour and remove it.
        super().__init__(rewritten, model.name, threads, outputs, {}, optimise=False)
        self._maxima = np.zeros(len(self._tensors))

    @property
    def ranges(self) -> list[HalfRange]:
        """Every half tensor in the order of the graph with its maximum over all images so far; NaN counts as Inf."""
        return [HalfRange(name, float(value)) for name, value in zip(self._tensors, self._maxima, strict=True)]

    def _run(self, images: NDArray[np.uint8]) -> Sequence[Any]:
        found = self._fetch([*self._outputs, _MAXIMA], images)
        maxima = found.pop()
        self._maxima = np.maximum(self._maxima, np.where(np.isnan(maxima), np.inf, maxima))
        return found


_MAXIMA = "edgead.half_maxima"


def simulate(model: onnx.ModelProto, label: str) -> tuple[onnx.ModelProto, list[str]]:
    """Return the rewritten graph, whose last output holds the maxima, and the names of its half tensors in order."""
    types = element_types(model)
    half = {name for name, kind in types.items() if kind == TensorProto.FLOAT16}
    graph = model.graph
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            tensor.CopyFrom(numpy_helper.from_array(array(tensor).astype(np.float32), tensor.name))
    ordered: list[onnx.NodeProto] = []
    tensors: list[str] = []
    for node in graph.node:
        ordered.append(node)
        if node.op_type == "Constant":
            if node.output[0] in half:
                values = array(node.attribute[0].t).astype(np.float32)
                node.attribute[0].t.CopyFrom(numpy_helper.from_array(values))
            continue
        if node.op_type == "Cast" and node.output[0] in half:
            node.attribute[0].i = TensorProto.FLOAT  # the rounding below is the cast
        for place, name in enumerate(node.output):
            if name not in half:
                continue
            wide, rounded, size = (f"{name}/{part}" for part in ("wide", "half", "size"))
            node.output[place] = wide
            ordered += [
                helper.make_node("Cast", [wide], [rounded], to=TensorProto.FLOAT16),
                helper.make_node("Cast", [rounded], [name], to=TensorProto.FLOAT),
                helper.make_node("Abs", [wide], [f"{name}/abs"]),
                helper.make_node("ReduceMax", [f"{name}/abs"], [f"{name}/max"], keepdims=0),
                helper.make_node("Reshape", [f"{name}/max", _ONE], [size]),
            ]
            tensors.append(name)
    if not tensors:
        raise ConfigError(f"{label} holds no half tensor, so there is nothing to simulate; give an FP16 graph")
    ordered.append(helper.make_node("Concat", [f"{name}/size" for name in tensors], [_MAXIMA], axis=0))
    graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), _ONE))
    graph.output.append(helper.make_tensor_value_info(_MAXIMA, TensorProto.FLOAT, [len(tensors)]))
    del graph.node[:]
    graph.node.extend(ordered)
    del graph.value_info[:]
    return model, tensors


_ONE = "edgead.one"
