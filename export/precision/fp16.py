"""FP16 as a graph transform: the convolutional network in half, the scoring head in FP32, a Cast at each crossing.

The network is strongly typed: TensorRT takes every precision from the graph, needs no flag and cannot fall back to FP32
in silence. Distances, norms, reductions and smoothing stay in FP32, where they neither overflow nor lose the small
differences that scores are made of. Input (uint8) and outputs (float32) are those of the FP32 graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgead.export.graph.partition import (
    CONVOLUTIONS,
    PARAMETERS,
    array,
    constants,
    convolutions,
    element_types,
    network,
)
from edgead.runtime.errors import ExportError, ParityError

HALF_MAX = 65504.0


def convert_fp16(model: onnx.ModelProto, leading: int = 0) -> onnx.ModelProto:
    """Return a copy of an exported FP32 graph whose convolutional network computes in half.

    Args:
        model: exported FP32 graph.
        leading: so many convolutions at the beginning stay in FP32; what they round is what all later ones amplify.

    Raises:
        ParityError: there is no convolutional network to convert, so the graph would stay FP32, or a weight does not
            fit into half.
        ExportError: the graph is in half already.
    """
    converted = onnx.ModelProto()
    converted.CopyFrom(model)
    graph = converted.graph
    types = element_types(converted)
    if TensorProto.FLOAT16 in types.values():
        raise ExportError("the graph is in half already; convert the FP32 graph")
    nodes = _behind(network(converted), leading)
    if not nodes:
        raise ParityError("--fp16 finds no convolutional network in this graph, so it would stay FP32; omit it")
    converter = _Converter(graph, types, nodes)
    ordered = [made for node in graph.node for made in converter.convert(node)]
    del graph.node[:]
    graph.node.extend(ordered)
    del graph.value_info[:]
    _drop_unused_weights(graph)
    return finish(converted)


class _Converter:
    """Turns the nodes of a network to half, and gives the others what they read in FP32.

    Args:
        graph: gets the weights in half.
        types: of its tensors.
        nodes: the network.
    """

    def __init__(self, graph: onnx.GraphProto, types: Mapping[str, int], nodes: Sequence[onnx.NodeProto]) -> None:
        self._graph, self._types = graph, types
        self._inside = {node.output[0] for node in nodes}
        self._outputs = {value.name for value in graph.output}
        self._half = {name for node in nodes for name in node.output if types.get(name) == TensorProto.FLOAT}
        read_outside = {name for node in graph.node if node.output[0] not in self._inside for name in node.input}
        self._crossing = self._half & (read_outside | self._outputs)
        self._known = constants(graph)
        self._weights: dict[str, str] = {}
        self._lowered: dict[str, str] = {}

    def convert(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        """Yield the node, changed in place, with the casts before and behind it."""
        if node.output[0] not in self._inside:
            for place, name in enumerate(node.input):
                if name in self._half:
                    node.input[place] = _full(name, self._outputs)
            yield node
            return
        yield from self._convert_inputs(node)
        yield node
        for place, name in enumerate(node.output):
            if name not in self._half:
                continue
            node.output[place] = _narrow(name, self._outputs)
            if name in self._crossing:
                yield _cast(node.output[place], _full(name, self._outputs), TensorProto.FLOAT)

    def _convert_inputs(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        skipped = PARAMETERS.get(node.op_type, ())
        for place, name in enumerate(node.input):
            if self._types.get(name) != TensorProto.FLOAT or place in skipped:
                continue
            if name in self._known:
                if name not in self._weights:
                    self._weights[name] = _half_weight(self._graph, self._known[name], node)
                node.input[place] = self._weights[name]
            elif name in self._half:
                node.input[place] = _narrow(name, self._outputs)
            else:
                if name not in self._lowered:
                    self._lowered[name] = f"{name}_fp16"
                    yield _cast(name, self._lowered[name], TensorProto.FLOAT16)
                node.input[place] = self._lowered[name]


def _behind(nodes: Sequence[onnx.NodeProto], leading: int) -> Sequence[onnx.NodeProto]:
    """Return the nodes of a network from its convolution number ``leading`` on, counted from 0."""
    if not leading:
        return nodes
    places = [place for place, node in enumerate(nodes) if node.op_type in CONVOLUTIONS]
    return nodes[places[leading] :] if leading < len(places) else []


def finish(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with the types of all its tensors noted, checked; raises `ExportError` where it is not valid."""
    try:
        typed = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
        onnx.checker.check_model(typed, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the converted graph is not valid ONNX: {' '.join(str(error).split())[:300]}") from error
    return typed


def half_convolutions(model: onnx.ModelProto) -> tuple[int, int]:
    """Return how many convolutions of the network compute in half, and how many there are."""
    known = constants(model.graph)
    found = convolutions(model.graph)
    return sum(known[node.input[1]].data_type == TensorProto.FLOAT16 for node in found), len(found)


def _narrow(name: str, outputs: set[str]) -> str:
    # A graph output keeps its name and its type, so the half tensor behind it takes another one.
    return f"{name}_fp16" if name in outputs else name


def _full(name: str, outputs: set[str]) -> str:
    return name if name in outputs else f"{name}_fp32"


def _cast(source: str, target: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"Cast_{target}", to=to)


def _half_weight(graph: onnx.GraphProto, tensor: TensorProto, node: onnx.NodeProto) -> str:
    values = array(tensor)
    if np.abs(values).max(initial=0.0) > HALF_MAX:
        raise ParityError(
            f"{node.name}: a weight of {np.abs(values).max():.4g} does not fit into half (at most {HALF_MAX:.0f}); "
            "rescale the layer, or export without --fp16"
        )
    name = f"{tensor.name or node.input[1]}_fp16"
    graph.initializer.append(numpy_helper.from_array(values.astype(np.float16), name))
    return name


def _drop_unused_weights(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)
