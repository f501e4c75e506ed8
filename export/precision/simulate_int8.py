"""An INT8 graph executed in exact integer arithmetic, the same on every processor.

What a runtime makes of a graph depends on the processor: sums of byte products may saturate at 16 bits (see
`edgead.export.graph.saturation`), and nobody uses a CPU's kernels for a graph that is meant for TensorRT. So
precisions are judged here by the arithmetic that the graph stands for: each quantised convolution is rewritten to a
product of whole numbers with sums in 32 bits, and a multiplication by the scales behind it. ONNX Runtime executes that
in float32, where every sum of whole numbers below 2^24 is exact in whatever order it is taken; a layer whose sums could
become larger is taken apart into several that stay below, and these are added up as integers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgead.export.graph.partition import array, constants
from edgead.export.ops.nodes import inline_nodes
from edgead.export.precision.simulation import Simulation
from edgead.runtime.backends.common import OUTPUTS
from edgead.runtime.errors import ConfigError

SIMULATED_INT8 = "simulated-int8"
_EXACT = 1 << 24  # whole numbers up to here are exact in float32


class SimulatedInt8(Simulation):
    """Runs an INT8 graph with exact integer sums; keeps the `Backend` and the `Network` protocol.

    Args:
        model: INT8 graph file of either dialect, its ``weights/`` folder beside it.
        threads: CPU threads; None leaves the choice to the library.
        outputs: what `compute` returns; `run` needs a score and a map.

    Raises:
        ConfigError: no convolution in the graph is quantised.
        BackendError: ONNX Runtime cannot load it, or it is no scoring graph.
    """

    _name, _precision = SIMULATED_INT8, "int8"

    def __init__(self, model: Path, *, threads: int | None = None, outputs: Sequence[str] = OUTPUTS) -> None:
        rewritten = simulate_int8(inline_nodes(onnx.load(str(model))), model.name)
        # Q/DQ pairs are executed as they stand; merging them would bring the processor's own kernels back.
        settings = {"session.disable_quant_qdq": "1"}
        super().__init__(rewritten, model.name, threads, outputs, settings)


def simulate_int8(model: onnx.ModelProto, label: str) -> onnx.ModelProto:
    """Rewrite every convolution between Q/DQ pairs to exact whole numbers; returns the graph, changed in place.

    Raises:
        ConfigError: there is none.
    """
    graph = model.graph
    known = constants(graph)
    makers = {name: node for node in graph.node for name in node.output}
    ordered: list[onnx.NodeProto] = []
    writer = _Writer(graph)
    for node in graph.node:
        found = _quantised(node, makers, known) if node.op_type == "Conv" else None
        ordered += [node] if found is None else writer.rewrite(node, *found)
    if not writer.rewritten:
        raise ConfigError(f"{label} holds no quantised convolution, so nothing to simulate; give an INT8 graph")
    del graph.node[:]
    graph.node.extend(ordered)
    del graph.value_info[:]
    return model


def _quantised(
    node: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto], known: Mapping[str, TensorProto]
) -> tuple[onnx.NodeProto, NDArray[np.int8], NDArray[np.float32]] | None:
    """Return what dequantises the input, the whole weights and their scales; None where not both are quantised."""
    source, weights = makers.get(node.input[0]), makers.get(node.input[1])
    if source is None or weights is None or {source.op_type, weights.op_type} != {"DequantizeLinear"}:
        return None
    scales = np.asarray(array(known[weights.input[1]]), np.float32)
    if weights.input[0] in known:
        return source, np.asarray(array(known[weights.input[0]]), np.int8), scales
    # The dialect for TensorRT stores float weights in front of a pair; they are multiples of the scales.
    stored = array(known[makers[weights.input[0]].input[0]])
    whole = np.rint(np.asarray(stored, np.float64) / scales.reshape(-1, *[1] * (stored.ndim - 1)))
    return source, np.clip(whole, -128, 127).astype(np.int8), scales


class _Writer:
    """Makes the nodes that stand in for a quantised convolution."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._known = constants(graph)
        self._makers = {name: node for node in graph.node for name in node.output}
        self.rewritten = 0
        self._constant("edgead.unit", np.array(1.0, np.float32))

    def rewrite(
        self, node: onnx.NodeProto, source: onnx.NodeProto, whole: NDArray[np.int8], scales: NDArray[np.float32]
    ) -> list[onnx.NodeProto]:
        self.rewritten += 1
        name = node.output[0]
        made = [
            # With a scale of 1 it gives the whole number, less the zero point.
            helper.make_node("DequantizeLinear", [source.input[0], "edgead.unit", source.input[2]], [f"{name}/whole"])
        ]
        parts = _parts(whole)
        for index, part in enumerate(parts):
            weight = self._constant(f"{name}/weight{index}", part.astype(np.float32))
            conv = onnx.NodeProto()
            conv.CopyFrom(node)
            conv.name = f"{node.name}/{index}"
            del conv.input[:], conv.output[:]
            conv.input.extend([f"{name}/whole", weight])
            conv.output.append(f"{name}/float{index}")
            made += [conv, helper.make_node("Cast", conv.output, [f"{name}/sum{index}"], to=TensorProto.INT32)]
        terms = [f"{name}/sum{index}" for index in range(len(parts))]
        step = np.asarray(array(self._known[source.input[1]]), np.float32) * scales
        bias = self._bias(node)
        if bias is not None and np.issubdtype(bias.dtype, np.integer):
            terms.append(self._constant(f"{name}/bias", bias.reshape(_channels(whole))))
        while len(terms) > 1:
            made.append(helper.make_node("Add", terms[:2], [f"{name}/terms{len(terms)}"]))
            terms = [f"{name}/terms{len(terms)}", *terms[2:]]
        scale = self._constant(f"{name}/scale", np.broadcast_to(step, len(whole)).reshape(_channels(whole)).copy())
        last = name if bias is None or np.issubdtype(bias.dtype, np.integer) else f"{name}/scaled"
        made += [
            helper.make_node("Cast", terms, [f"{name}/total"], to=TensorProto.FLOAT),
            helper.make_node("Mul", [f"{name}/total", scale], [last]),
        ]
        if last != name:
            assert bias is not None
            added = self._constant(f"{name}/bias", np.asarray(bias, np.float32).reshape(_channels(whole)))
            made.append(helper.make_node("Add", [last, added], [name]))
        return made

    def _bias(self, node: onnx.NodeProto) -> NDArray[np.generic] | None:
        """Return whole numbers in steps of input times weight, or floats; None where there is no bias."""
        if len(node.input) < 3 or not node.input[2]:
            return None
        maker = self._makers.get(node.input[2])
        return array(self._known[node.input[2] if maker is None else maker.input[0]])

    def _constant(self, name: str, values: NDArray[Any]) -> str:
        self._graph.initializer.append(numpy_helper.from_array(values, name))
        return name


def _channels(whole: NDArray[np.int8]) -> tuple[int, ...]:
    return (1, len(whole), *[1] * (whole.ndim - 2))


def _parts(whole: NDArray[np.int8]) -> list[NDArray[np.int8]]:
    """Return weights that sum up to these, each such that no sum of products reaches 2^24 (inputs are below 256)."""
    magnitudes = np.abs(whole.astype(np.int64)).reshape(len(whole), -1)
    share = np.cumsum(255 * magnitudes, axis=1) // (_EXACT - 255 * 128)
    flat = whole.reshape(len(whole), -1)
    return [np.where(share == index, flat, 0).reshape(whole.shape) for index in range(int(share.max(initial=0)) + 1)]
