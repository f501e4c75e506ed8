"""INT8 as explicit Q/DQ pairs around convolutions, in a legal dialect and a fast one; the head is never touched.

``int8-trt`` is what TensorRT takes: signed with zero point 0, a pair of its own before each convolution, weights a
channel, biases in float. ``int8-cpu`` is what ONNX Runtime and OpenVINO run fast: unsigned activations with a zero
point, stored INT8 weights, INT32 biases, and a pair behind each convolution, so that the whole of it becomes one
integer kernel. Its weights are such that no processor's sums saturate, see `edgead.export.graph.saturation`. One in the
place of the other is refused (TensorRT) or slow (CPU).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from edgead.export.graph.partition import array, constants, convolutions, network
from edgead.export.options import CPU, TRT
from edgead.export.precision.activation_ranges import Ranges
from edgead.export.precision.fp16 import finish
from edgead.export.precision.gptq import Rounded, round_to_nearest
from edgead.runtime.errors import ExportError, ParityError

DIALECTS = (TRT, CPU)
_FEW_CHANNELS = 8
_CONVERSION = 30.0  # multiplications in 8 bits that take as long as converting one number
_ACTIVATIONS = frozenset({"Clip", "Relu"})


def quantisable(model: onnx.ModelProto) -> list[str]:
    """Return the names of the convolutions that can be quantised, in order."""
    return [node.name for node in convolutions(model.graph) if node.op_type == "Conv"]


def savings(model: onnx.ModelProto) -> dict[str, float]:
    """Return about how much time INT8 saves in each of the `quantisable` convolutions, in an arbitrary unit.

    It is the number of multiplications, and a small part of it where integer kernels gain little: few channels are
    summed in a depthwise convolution and in one that reads the image. A layer that is kept must also be converted to
    and from, which takes as long as some multiplications for each of its outputs. (From ONNX Runtime's profile on
    AVX-512.)
    """
    known = constants(model.graph)
    typed = onnx.shape_inference.infer_shapes(model).graph
    shapes = {value.name: value.type.tensor_type.shape.dim for value in [*typed.value_info, *typed.output]}
    found = {}
    for node in convolutions(model.graph):
        if node.op_type != "Conv":
            continue
        weights = list(known[node.input[1]].dims)
        positions = np.prod([dim.dim_value or 1 for dim in shapes.get(node.output[0], ())][2:], dtype=float)
        share = 1.0 if weights[1] >= _FEW_CHANNELS else 0.1
        multiplications = float(positions * np.prod(weights, dtype=float))
        found[node.name] = share * multiplications + _CONVERSION * positions * weights[0]
    return found


def watched_tensors(model: onnx.ModelProto) -> list[str]:
    """Return the tensors whose ranges either dialect needs: what convolutions and their additions read and give."""
    layout = _Layout.of(model, ())
    names = [node.input[0] for node in layout.convs]
    names += [layout.behind[node.name] for node in layout.convs]
    return list(dict.fromkeys(names))


def quantise(
    model: onnx.ModelProto,
    ranges: Ranges,
    dialect: str,
    keep: Collection[str] = (),
    rounded: Mapping[str, Rounded] | None = None,
) -> onnx.ModelProto:
    """Return a copy of an FP32 graph with Q/DQ pairs.

    Args:
        model: exported FP32 graph.
        ranges: of `watched_tensors`.
        dialect: ``int8-trt`` or ``int8-cpu``.
        keep: names of convolutions that stay in float.
        rounded: weights of `edgead.export.precision.gptq.round_weights`, for ``int8-cpu`` those that are free of
            saturation; those that are missing are rounded one by one.

    Raises:
        ParityError: there is nothing to quantise, so the graph would stay FP32.
        ExportError: an output of the graph is an output of a convolution.
    """
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    layout = _Layout.of(copied, keep)
    if not layout.convs:
        raise ParityError("--int8 finds no convolution to quantise in this graph; omit it")
    weights = _weights(copied.graph, layout, rounded or {}, saturation_free=dialect == CPU)
    ranges = _take_pixels_whole(copied.graph, layout, weights, ranges)
    writer = _Writer(copied.graph)
    if dialect == TRT:
        _write_trt(layout, weights, ranges, writer)
    else:
        _write_cpu(copied.graph, layout, weights, ranges, writer)
    writer.place()
    del copied.graph.value_info[:]
    return finish(copied)


@dataclass(slots=True)
class _Layout:
    """The convolutions to quantise, and for each the tensor behind its activation (or its own output)."""

    convs: list[onnx.NodeProto]
    behind: dict[str, str]
    inner: set[str]  # outputs of the network's nodes

    @classmethod
    def of(cls, model: onnx.ModelProto, keep: Collection[str]) -> _Layout:
        users: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                users.setdefault(name, []).append(node)
        convs = [n for n in convolutions(model.graph) if n.op_type == "Conv" and n.name not in keep]
        behind = {}
        for conv in convs:
            following = users.get(conv.output[0], [])
            single = len(following) == 1 and following[0].op_type in _ACTIVATIONS
            behind[conv.name] = following[0].output[0] if single else conv.output[0]
        return cls(convs, behind, {name for node in network(model) for name in node.output})


@dataclass(slots=True)
class _Writer:
    """Collects new nodes and constants, and puts each node behind the one that gives its input."""

    graph: onnx.GraphProto
    after: dict[str, list[onnx.NodeProto]] = field(default_factory=dict)  # tensor -> what follows it
    first: list[onnx.NodeProto] = field(default_factory=list)

    def constant(self, name: str, values: NDArray[np.generic]) -> str:
        if all(tensor.name != name for tensor in self.graph.initializer):
            self.graph.initializer.append(numpy_helper.from_array(values, name))
        return name

    def pair(self, source: str, stem: str, scale: float, zero: np.generic) -> str:
        """Quantise and dequantise a tensor; returns the name of the result."""
        scale_name = self.constant(f"{stem}_scale", np.array(scale, np.float32))
        zero_name = self.constant(f"{stem}_zero", np.array(zero))
        steps = [scale_name, zero_name]
        self.after.setdefault(source, []).extend(
            [
                helper.make_node("QuantizeLinear", [source, *steps], [f"{stem}_q"], name=f"{stem}_Q"),
                helper.make_node("DequantizeLinear", [f"{stem}_q", *steps], [f"{stem}_dq"], name=f"{stem}_DQ"),
            ]
        )
        return f"{stem}_dq"

    def place(self) -> None:
        ordered = list(self.first)
        for value in self.graph.input:
            ordered += self.after.get(value.name, [])
        for node in self.graph.node:
            ordered.append(node)
            for name in node.output:
                ordered += self.after.get(name, [])
        del self.graph.node[:]
        self.graph.node.extend(ordered)
        used = {name for node in ordered for name in node.input}
        for tensor in [tensor for tensor in self.graph.initializer if tensor.name not in used]:
            self.graph.initializer.remove(tensor)


@dataclass(slots=True)
class _Weights:
    """Weights of a convolution in INT8 with the bias that belongs to them, ``(O,)``; None where there is none."""

    rounded: Rounded
    bias: NDArray[np.float64] | None


def _weights(
    graph: onnx.GraphProto, layout: _Layout, rounded: Mapping[str, Rounded], *, saturation_free: bool
) -> dict[str, _Weights]:
    known = constants(graph)
    found = {}
    for conv in layout.convs:
        one = rounded.get(conv.name)
        if one is None:
            values = np.asarray(array(known[conv.input[1]]), np.float32)
            one = round_to_nearest(values, saturation_free=saturation_free)
        bias = np.asarray(array(known[conv.input[2]]), np.float64) if len(conv.input) > 2 and conv.input[2] else None
        if one.correction.any():
            bias = one.correction if bias is None else bias + one.correction
        found[conv.name] = _Weights(one, bias)
    return found


def _take_pixels_whole(
    graph: onnx.GraphProto, layout: _Layout, weights: Mapping[str, _Weights], ranges: Ranges
) -> Ranges:
    """Let the first convolution read the image's own integers, where a mean is subtracted before it.

    About a mean of 127.5, 8 bits are half a step off in every pixel. So the nearest whole number is subtracted, and the
    rest of the mean, which is now in every pixel, is taken out of the bias.
    """
    convs = {conv.name: conv for conv in layout.convs}
    known = constants(graph)
    makers = {name: node for node in graph.node for name in node.output}
    for sub in [node for node in graph.node if node.op_type == "Sub" and node.input[1] in known]:
        steps = [makers.get(sub.input[0])]
        steps.append(makers.get(steps[0].input[0]) if steps[0] is not None else None)
        kinds = [step.op_type for step in steps if step is not None]
        readers = [node for node in graph.node if sub.output[0] in node.input]
        mean = np.asarray(array(known[sub.input[1]]), np.float64)
        whole = np.rint(mean)
        if kinds != ["Transpose", "Cast"] or np.ptp(whole) or not 0 <= whole.flat[0] <= 255:
            continue
        # The integers must fit into either dialect's 8 bits: signed ones reach from -128 to 127.
        if whole.flat[0] != 128 or not readers or any(node.name not in convs for node in readers):
            continue
        if mean.size not in (1, 3):
            continue
        for node in readers:
            values = weights[node.name].rounded.values.astype(np.float64)
            taken = (whole - mean).reshape(1, -1, 1, 1) * values
            bias = weights[node.name].bias
            weights[node.name].bias = taken.sum((1, 2, 3)) + (0.0 if bias is None else bias)
        name = f"{sub.name}_whole"
        graph.initializer.append(numpy_helper.from_array(whole.astype(np.float32), name))
        sub.input[1] = name
        return {**ranges, sub.output[0]: (-128.0, 127.0)}
    return ranges


def _write_trt(layout: _Layout, weights: Mapping[str, _Weights], ranges: Ranges, writer: _Writer) -> None:
    for conv in layout.convs:
        source = conv.input[0]
        # Of the two bounds -128 is one step farther away.
        largest = max(-ranges[source][0] * 127.0 / 128.0, ranges[source][1])
        scale = largest / 127.0 if largest > 0 else 1.0
        conv.input[0] = writer.pair(source, f"{conv.name}_input", scale, np.int8(0))
        own = weights[conv.name]
        stem = f"{conv.name}_weight"
        stored = writer.constant(f"{stem}_rounded", own.rounded.values)
        steps = [
            writer.constant(f"{stem}_scale", own.rounded.scales),
            writer.constant(f"{stem}_zero", np.zeros(len(own.rounded.scales), np.int8)),
        ]
        writer.first += [
            helper.make_node("QuantizeLinear", [stored, *steps], [f"{stem}_q"], name=f"{stem}_Q", axis=0),
            helper.make_node("DequantizeLinear", [f"{stem}_q", *steps], [f"{stem}_dq"], name=f"{stem}_DQ", axis=0),
        ]
        conv.input[1] = f"{stem}_dq"
        if own.bias is not None:
            del conv.input[2:]
            conv.input.append(writer.constant(f"{conv.name}_bias_rounded", own.bias.astype(np.float32)))


def _write_cpu(
    graph: onnx.GraphProto, layout: _Layout, weights: Mapping[str, _Weights], ranges: Ranges, writer: _Writer
) -> None:
    fused = set(layout.behind.values())
    # In the order of the graph: a set's order would be another one in each process, and so the bytes of the graph.
    quantised = dict.fromkeys([*(conv.input[0] for conv in layout.convs), *layout.behind.values()])
    scales: dict[str, float] = {}
    results: dict[str, str] = {}
    for name in quantised:
        low, high = ranges[name]
        scales[name], zero = _unsigned(low, high)
        results[name] = writer.pair(name, f"{name}_u8", scales[name], np.uint8(zero))
    names = {conv.name for conv in layout.convs}
    outputs = {value.name for value in graph.output}
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name not in quantised:
                continue
            # A tap of an addition stays float: the head gets what the network computed. What one integer kernel
            # gives exists in 8 bits only.
            if node.name in names or name in fused or (node.op_type == "Add" and node.output[0] in layout.inner):
                node.input[place] = results[name]
    if quantised.keys() & outputs:
        raise ExportError("a convolution gives an output of the graph itself; --int8 cannot quantise that")
    for conv in layout.convs:
        source = conv.input[0].removesuffix("_u8_dq")
        _store_weights(conv, weights[conv.name], scales[source], writer)


def _store_weights(conv: onnx.NodeProto, own: _Weights, source: float, writer: _Writer) -> None:
    rounded, bias = own.rounded, own.bias
    if bias is not None:
        # A channel of tiny weights and a large bias would overflow INT32; a coarser weight scale costs it nothing.
        least = np.abs(bias) / (source * (2.0**31 - 1024))
        if (least > rounded.scales).any():
            rounded = round_to_nearest(rounded.values, least, saturation_free=True)
    scales, whole = rounded.scales, rounded.whole
    stem = f"{conv.name}_weight"
    steps = [writer.constant(f"{stem}_scale", scales), writer.constant(f"{stem}_zero", np.zeros(len(scales), np.int8))]
    stored = writer.constant(f"{stem}_q", whole)
    writer.first.append(
        helper.make_node("DequantizeLinear", [stored, *steps], [f"{stem}_dq"], name=f"{stem}_DQ", axis=0)
    )
    conv.input[1] = f"{stem}_dq"
    if bias is None:
        return
    product = (np.float32(source) * scales).astype(np.float32)
    stem = f"{conv.name}_bias"
    steps = [
        writer.constant(f"{stem}_scale", product),
        writer.constant(f"{stem}_zero", np.zeros(len(scales), np.int32)),
    ]
    stored = writer.constant(f"{stem}_q", np.rint(bias / product).astype(np.int32))
    writer.first.append(
        helper.make_node("DequantizeLinear", [stored, *steps], [f"{stem}_dq"], name=f"{stem}_DQ", axis=0)
    )
    del conv.input[2:]
    conv.input.append(f"{stem}_dq")


def _unsigned(low: float, high: float) -> tuple[float, int]:
    """Return scale and zero point of 8 unsigned bits for ``low <= 0 <= high``."""
    if high <= low:
        return 1.0, 0
    scale = np.float32((high - low) / 255.0)
    # Rounded up, the range would pass the bound of a Clip by a hair, and the Clip could not be merged.
    if float(scale) * 255.0 > high - low:
        scale = np.nextafter(scale, np.float32(0.0))
    return float(scale), int(np.clip(np.rint(-low / float(scale)), 0, 255))
