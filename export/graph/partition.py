"""Which part of a scoring graph is the convolutional network, and which is the scoring head behind it.

Exported graphs carry no marks, so the parts are told apart by what they are made of: the network is what lies between
its convolutions, and what only moves, pools or resizes their last feature maps. Distances, norms, reductions over
patches, routing and smoothing come after it and belong to the head, whatever detector made them. A transformer's blocks
belong to the network too: its matrix products, and what stands between them but normalisations and softmax.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from edgead.runtime.errors import ExportError

CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
# What may stand between the convolutions of a network and keeps its numbers in their range.
_ACTIVATIONS = frozenset({"Clip", "Relu", "LeakyRelu", "PRelu", "Elu", "HardSwish"})
_PASSIVE = frozenset(
    {"AveragePool", "MaxPool", "Concat", "Resize", "Gather", "Slice", "Split", "Pad"}
    | {"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze"}
)
_BETWEEN = (
    CONVOLUTIONS
    | _ACTIVATIONS
    | _PASSIVE
    | {"Add", "Sub", "Mul", "Sigmoid", "HardSigmoid", "Tanh", "GlobalAveragePool", "GlobalMaxPool"}
)
# What may stand in a transformer's block as well; what sums squares or exponentials there stays in FP32.
_IN_BLOCKS = _BETWEEN | {"MatMul", "Gemm", "Erf", "Neg"}
# What may follow the last convolution and still be the network: nothing that squares, divides or sums over patches.
_BEHIND = _ACTIVATIONS | _PASSIVE | {"Add"}
# Inputs that say how, not what; they keep their type in any precision.
PARAMETERS: Mapping[str, Collection[int]] = {"Resize": (1, 2, 3), "Pad": (1, 3)}


def constants(graph: onnx.GraphProto) -> dict[str, TensorProto]:
    """Return every initialiser and the value of every Constant node, by name."""
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            found[node.output[0]] = node.attribute[0].t
    return found


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """Return the element type of every tensor; raises `ExportError` where types do not agree."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except onnx.shape_inference.InferenceError as error:
        raise ExportError(f"the types of the graph do not agree: {' '.join(str(error).split())[:300]}") from error
    graph = inferred.graph
    values = [*graph.value_info, *graph.input, *graph.output]
    types = {value.name: int(value.type.tensor_type.elem_type) for value in values}
    return types | {name: int(tensor.data_type) for name, tensor in constants(graph).items()}


def convolutions(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return the convolutions of the network in order; a map that is smoothed has one channel and is none."""
    known = constants(graph)
    return [
        node
        for node in graph.node
        if node.op_type in CONVOLUTIONS
        and node.input[1] in known
        and max(*known[node.input[1]].dims[:2], _integer(node, "group")) > 1
    ]


def network(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return the nodes of the network in order, blocks included; none where the graph has no convolution."""
    graph = model.graph
    types = element_types(model)
    known = constants(graph)
    kernels = {node.output[0] for node in convolutions(graph)}

    def data(node: onnx.NodeProto) -> list[str]:
        skipped = PARAMETERS.get(node.op_type, ())
        floats = [name for place, name in enumerate(node.input) if name and place not in skipped]
        return [name for name in floats if types.get(name) == TensorProto.FLOAT and name not in known]

    leads: set[str] = set()  # tensors that a later convolution needs
    for node in reversed(graph.node):
        if kernels & set(node.output) or leads & set(node.output):
            leads.update(data(node))
    inside: set[str] = set()
    found = []
    between = blocks(graph)
    for node in graph.node:
        flowing = data(node)
        reached = any(name in inside for name in flowing)
        if node.output[0] in kernels:
            member = True
        elif node.output[0] in between and types.get(node.output[0]) == TensorProto.FLOAT:
            member = in_block(node, known)
        elif not reached or types.get(node.output[0]) != TensorProto.FLOAT:
            member = False
        elif leads & set(node.output):
            member = node.op_type in _BETWEEN and not _square(node)
        else:
            member = node.op_type in _BEHIND and all(name in inside for name in flowing)
        if member:
            inside.update(node.output)
            found.append(node)
    return found


def blocks(graph: onnx.GraphProto) -> set[str]:
    """Return the outputs of nodes between a convolution and the last layer normalisation, which no head has.

    Blocks with another normalisation (root mean squares) are not told from a head, and stay in FP32.
    """
    reached = {node.output[0] for node in convolutions(graph)}
    for node in graph.node:
        if reached.intersection(node.input):
            reached.update(node.output)
    leads: set[str] = set()
    for node in reversed(graph.node):
        if reached.isdisjoint(node.output):
            continue
        if node.op_type == "LayerNormalization" or not leads.isdisjoint(node.output):
            leads.update((*node.output, *node.input))
    return reached & leads


def in_block(node: onnx.NodeProto, known: Collection[str]) -> bool:
    """Whether a node of a transformer's blocks keeps its numbers in their range: no square, and no quotient of two."""
    if node.op_type == "Div":
        return node.input[1] in known
    return str(node.op_type) in _IN_BLOCKS and not _square(node)


def _square(node: onnx.NodeProto) -> bool:
    # A square is a length in the making, and overflows first.
    return bool(node.op_type == "Mul" and node.input[0] == node.input[1])


def array(tensor: TensorProto) -> NDArray[np.generic]:
    """Return a constant's values."""
    values: NDArray[np.generic] = numpy_helper.to_array(tensor)
    return values


def _integer(node: onnx.NodeProto, name: str) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == name), 1)
