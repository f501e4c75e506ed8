"""The convolutional part of an ONNX graph as a torch module, to be folded and exported as any other."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, fx, nn

from edgead.runtime.errors import ConfigError

_ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "Relu": nn.ReLU,
    "Sigmoid": nn.Sigmoid,
    "Tanh": nn.Tanh,
    "HardSwish": nn.Hardswish,
}
_ARITHMETIC: Mapping[str, Callable[..., Any]] = {
    "Add": operator.add,
    "Sub": operator.sub,
    "Mul": operator.mul,
    "Div": operator.truediv,
}


class Constants:
    """The constant tensors of a graph by name."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
                self._tensors[node.output[0]] = node.attribute[0].t

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def get(self, name: str) -> Tensor | None:
        """Return one, or None."""
        return self[name] if name in self._tensors else None

    def __getitem__(self, name: str) -> Tensor:
        """Return one, float16 as float32; raises `KeyError` where there is none."""
        values = np.array(numpy_helper.to_array(self._tensors[name]))
        tensor = torch.from_numpy(values)
        return tensor.float() if tensor.dtype == torch.float16 else tensor


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Return the attributes of a node by name."""
    return {one.name: helper.get_attribute_value(one) for one in node.attribute}


def torch_network(graph: onnx.GraphProto, known: Constants, source: str, taps: Sequence[str]) -> fx.GraphModule:
    """Return the network ``(N, 3, h, w)`` float32 -> taps, one for each name.

    Args:
        graph: its nodes are in order.
        known: the constants of the graph.
        source: the tensor that the network begins with.
        taps: tensors that it gives.

    Raises:
        ConfigError: an operator that convolutional backbones do not have, or not so.
    """
    network = fx.Graph()
    root = nn.Module()
    values: dict[str, fx.Node] = {source: network.placeholder("pixels")}
    for node in _between(graph, source, taps):
        flowing = [name for name in node.input if name and name not in known]
        missing = [name for name in flowing if name not in values]
        if missing or not flowing:
            raise _unknown(node)
        if node.op_type in _ARITHMETIC:
            terms = [values[name] if name in values else _constant(root, network, known[name]) for name in node.input]
            made = network.call_function(_ARITHMETIC[node.op_type], tuple(terms))
        elif node.op_type == "Concat" and attributes(node).get("axis") == 1 and len(flowing) == len(node.input):
            made = network.call_function(torch.cat, ([values[name] for name in node.input], 1))
        elif node.op_type == "Identity":
            values[node.output[0]] = values[node.input[0]]
            continue
        else:
            if flowing != [node.input[0]]:
                raise _unknown(node)
            name = f"layer_{len(list(root.children()))}"
            root.add_module(name, _layer(node, known))
            made = network.call_module(name, (values[node.input[0]],))
        values[node.output[0]] = made
    network.output(tuple(values[name] for name in taps))
    return fx.GraphModule(root, network).eval()


def _between(graph: onnx.GraphProto, source: str, taps: Sequence[str]) -> list[onnx.NodeProto]:
    """Return the nodes that the taps need and the source feeds, in order."""
    needed, found = set(taps), []
    for node in reversed(graph.node):
        if node.op_type != "Constant" and source not in node.output and needed & set(node.output):
            needed.update(node.input)
            found.append(node)
    return found[::-1]


def _layer(node: onnx.NodeProto, known: Constants) -> nn.Module:
    given = attributes(node)
    if given.get("auto_pad", b"NOTSET") not in (b"NOTSET", b""):
        raise _unknown(node)
    if node.op_type in _ACTIVATIONS:
        return _ACTIVATIONS[node.op_type]()
    if node.op_type == "Conv":
        return _convolution(node, given, known)
    if node.op_type == "Clip":
        return _clip(node, known)
    if node.op_type == "LeakyRelu":
        return nn.LeakyReLU(float(given.get("alpha", 0.01)))
    if node.op_type == "HardSigmoid" and abs(float(given.get("alpha", 0.2)) - 1 / 6) < 1e-6:
        return nn.Hardsigmoid()
    if node.op_type == "BatchNormalization":
        return _normalisation(node, given, known)
    if node.op_type in ("MaxPool", "AveragePool"):
        return _pooling(node, given)
    if node.op_type == "GlobalAveragePool" or (node.op_type == "ReduceMean" and _is_global(node, given, known)):
        return nn.AdaptiveAvgPool2d(1)
    raise _unknown(node)


def _convolution(node: onnx.NodeProto, given: Mapping[str, Any], known: Constants) -> nn.Module:
    weight = known[node.input[1]]
    bias = known[node.input[2]] if len(node.input) > 2 and node.input[2] else None
    if weight.dim() != 4:
        raise _unknown(node)
    top, left, bottom, right = given.get("pads", [0, 0, 0, 0])
    even = (top, left) == (bottom, right)
    groups = int(given.get("group", 1))
    conv = nn.Conv2d(
        weight.shape[1] * groups,
        weight.shape[0],
        (weight.shape[2], weight.shape[3]),
        tuple(given.get("strides", [1, 1])),
        (top, left) if even else 0,
        tuple(given.get("dilations", [1, 1])),
        groups,
        bias=bias is not None,
    )
    conv.weight = nn.Parameter(weight.float())
    if bias is not None:
        conv.bias = nn.Parameter(bias.float())
    # torch has no uneven padding; in front of the convolution it is what `edgead.features.backbones` makes of timm's.
    return conv if even else nn.Sequential(nn.ZeroPad2d((left, right, top, bottom)), conv)


def _clip(node: onnx.NodeProto, known: Constants) -> nn.Module:
    bounds = [float(known[name]) if name else None for name in [*node.input[1:], "", ""][:2]]
    low, high = bounds
    if low is None:
        raise _unknown(node)
    return nn.Hardtanh(low, high) if high is not None else nn.ReLU() if low == 0.0 else nn.Threshold(low, low)


def _normalisation(node: onnx.NodeProto, given: Mapping[str, Any], known: Constants) -> nn.Module:
    weight, bias, mean, variance = (known[name].float() for name in node.input[1:5])
    norm = nn.BatchNorm2d(len(weight), eps=float(given.get("epsilon", 1e-5)))
    norm.weight, norm.bias = nn.Parameter(weight), nn.Parameter(bias)
    norm.running_mean, norm.running_var = mean, variance
    return norm


def _is_global(node: onnx.NodeProto, given: Mapping[str, Any], known: Constants) -> bool:
    found = known.get(node.input[1]) if len(node.input) > 1 else None
    axes = given.get("axes", []) if found is None else found.tolist()
    return sorted(axes) in ([2, 3], [-2, -1]) and bool(given.get("keepdims", 1))


def _pooling(node: onnx.NodeProto, given: Mapping[str, Any]) -> nn.Module:
    kernel, strides = tuple(given["kernel_shape"]), tuple(given.get("strides", [1, 1]))
    top, left, bottom, right = given.get("pads", [0, 0, 0, 0])
    ceil = bool(given.get("ceil_mode", 0))
    if (top, left) != (bottom, right) or set(given.get("dilations", [1])) != {1}:
        raise _unknown(node)
    if node.op_type == "MaxPool":
        return nn.MaxPool2d(kernel, strides, (top, left), ceil_mode=ceil)
    included = bool(given.get("count_include_pad", 0))
    return nn.AvgPool2d(kernel, strides, (top, left), ceil_mode=ceil, count_include_pad=included)


def _constant(root: nn.Module, network: fx.Graph, value: Tensor) -> fx.Node:
    name = f"constant_{len(list(root.buffers()))}"
    root.register_buffer(name, value.float())
    return network.get_attr(name)


def _unknown(node: onnx.NodeProto) -> ConfigError:
    return ConfigError(
        f"the network of this ONNX file has {node.op_type} where edgead does not know it; import the checkpoint (.ckpt)"
    )
