"""Rules of reduced precisions: what TensorRT refuses, what it only warns of, and what makes a CPU runtime slow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto

from edgead.export.graph.partition import array, blocks, constants, convolutions, in_block
from edgead.export.graph.saturation import may_saturate

_FLOATS = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16", TensorProto.DOUBLE: "float64"}
# What overflows or loses its small differences in half: sums over many values, squares, quotients.
_WIDE_ONLY = frozenset(
    {"MatMul", "Gemm", "Softmax", "LogSoftmax", "Exp", "Log", "Pow", "Sqrt", "Div", "TopK", "CumSum", "Einsum"}
    | {"LayerNormalization", "InstanceNormalization", "GroupNormalization", "LpNormalization"}
    | {"ReduceSum", "ReduceMean", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp", "ReduceProd"}
)
_QUANTISE, _DEQUANTISE = "QuantizeLinear", "DequantizeLinear"


class Problem(NamedTuple):
    """One broken rule: the node (or part of the model) and what to do."""

    node: str
    message: str

    def __str__(self) -> str:
        return f"{self.node}: {self.message}"


def precision_rules(model: onnx.ModelProto, precision: str) -> Iterator[Problem]:
    """Yield the broken rules of a graph that is meant for ``fp16``, ``int8-trt`` or ``int8-cpu``."""
    yield from _strongly_typed(model)
    if precision == "fp16":
        yield from _half(model)
    else:
        yield from _quantised(model, precision)


def _strongly_typed(model: onnx.ModelProto) -> Iterator[Problem]:
    """Every operator's inputs agree; TensorRT inserts no cast into a strongly typed network."""
    types = _types(model)
    versions = {imported.domain: imported.version for imported in model.opset_import}
    for node in model.graph.node:
        try:
            schema = onnx.defs.get_schema(node.op_type, versions.get(node.domain, 0), node.domain)
        except onnx.defs.SchemaError:
            continue  # another rule names it
        bound: dict[str, int] = {}
        for place, name in enumerate(node.input):
            kind = types.get(name)
            formal = schema.inputs[min(place, len(schema.inputs) - 1)]
            if kind is None or kind not in _FLOATS or (place >= len(schema.inputs) and not _variadic(schema)):
                continue
            first = bound.setdefault(formal.type_str, kind)
            if first != kind:
                yield Problem(
                    node.name, f"{node.op_type} mixes {_FLOATS[first]} and {_FLOATS[kind]}; put a Cast before it"
                )
                break


def _variadic(schema: onnx.defs.OpSchema) -> bool:
    return bool(schema.inputs[-1].option == onnx.defs.OpSchema.FormalParameterOption.Variadic)


def _half(model: onnx.ModelProto) -> Iterator[Problem]:
    types = _types(model)
    known = constants(model.graph)
    between = blocks(model.graph)
    for node in model.graph.node:
        if node.output[0] in between and in_block(node, known):
            continue
        half = any(types.get(name) == TensorProto.FLOAT16 for name in node.input)
        square = node.op_type == "Mul" and node.input[0] == node.input[1]
        if half and (node.op_type in _WIDE_ONLY or square):
            what = "a square" if square else node.op_type
            yield Problem(node.name, f"{what} in half overflows or loses small differences; cast its inputs to float32")
    for name, tensor in known.items():
        if tensor.data_type == TensorProto.FLOAT16 and not np.isfinite(np.asarray(array(tensor), np.float32)).all():
            yield Problem(name, "a weight is NaN or infinite in half; rescale the layer or keep it in float32")
    found = convolutions(model.graph)
    if not any(known[conv.input[1]].data_type == TensorProto.FLOAT16 for conv in found):
        yield Problem("model", "no convolution is in half, so this graph would run in FP32; export it with --fp16")


def _quantised(model: onnx.ModelProto, precision: str) -> Iterator[Problem]:
    graph = model.graph
    known = constants(graph)
    users: dict[str, list[onnx.NodeProto]] = {}
    makers = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    pairs = [node for node in graph.node if node.op_type in (_QUANTISE, _DEQUANTISE)]
    if not pairs:
        yield Problem("model", "no tensor is quantised, so this graph would run in FP32; export it with --int8")
    for node in pairs:
        yield from _scales(node, known)
        if node.op_type == _QUANTISE:
            strangers = [user for user in users.get(node.output[0], []) if user.op_type != _DEQUANTISE]
            if strangers:
                yield Problem(
                    strangers[0].name, f"{strangers[0].op_type} reads an 8-bit tensor; put DequantizeLinear before it"
                )
        else:
            yield from _head(node, users)
        if precision == "int8-trt":
            yield from _trt_pair(node, known, makers)
    for conv in graph.node:
        if conv.op_type != "Conv":
            continue
        quantised = [makers[n].op_type == _DEQUANTISE if n in makers else False for n in conv.input[:2]]
        # On a CPU a layer that is kept in float reads what the integer kernel before it gave.
        if precision == "int8-trt" and quantised[0] != quantised[1]:
            which = "input" if quantised[0] else "weight"
            yield Problem(conv.name, f"only its {which} is quantised, so it runs in float; quantise both or neither")
        elif precision == "int8-cpu" and all(quantised):
            yield from _cpu_convolution(conv, makers, users, known)


def _scales(node: onnx.NodeProto, known: Mapping[str, TensorProto]) -> Iterator[Problem]:
    if node.input[1] not in known or (len(node.input) > 2 and node.input[2] and node.input[2] not in known):
        yield Problem(node.name, "its scale or zero point is computed at run time; make it a constant")
        return
    scale = np.asarray(array(known[node.input[1]]), np.float64)
    if not np.isfinite(scale).all() or not (scale > 0).all():
        yield Problem(node.name, "a scale is not a positive finite number; calibrate again")


def _trt_pair(
    node: onnx.NodeProto, known: Mapping[str, TensorProto], makers: Mapping[str, onnx.NodeProto]
) -> Iterator[Problem]:
    zero = known.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    if zero is None or zero.data_type == TensorProto.UINT8:
        yield Problem(
            node.name,
            "quantises to uint8; TensorRT only warns, takes it for int8 and saturates above 127: use int8 with zero "
            "point 0 (the int8-trt dialect)",
        )
        return
    if zero.data_type == TensorProto.INT32:
        yield Problem(node.name, "dequantises int32, which TensorRT refuses; keep the bias in float32")
        return
    if zero.data_type != TensorProto.INT8:
        yield Problem(node.name, "is of a type that TensorRT does not take here; use int8")
    if array(zero).any():
        yield Problem(node.name, "has a zero point other than 0, which TensorRT refuses; quantise symmetrically")
    source = makers.get(node.input[0])
    weight = node.input[0] in known or (source is not None and source.input[0] in known)
    if node.input[1] in known and array(known[node.input[1]]).size > 1:
        axis = next((int(attribute.i) for attribute in node.attribute if attribute.name == "axis"), 1)
        if not weight:
            yield Problem(node.name, "has a scale a channel on an activation, which TensorRT refuses; use one scale")
        elif axis != 0:
            yield Problem(node.name, f"has a scale along axis {axis}; the output channels of a Conv are axis 0")


def _head(node: onnx.NodeProto, users: Mapping[str, list[onnx.NodeProto]]) -> Iterator[Problem]:
    for user in users.get(node.output[0], []):
        if user.op_type in ("MatMul", "Gemm"):
            yield Problem(
                user.name, f"{user.op_type} of the scoring head is quantised, which changes maps; leave it in float32"
            )


def _cpu_convolution(
    conv: onnx.NodeProto,
    makers: Mapping[str, onnx.NodeProto],
    users: Mapping[str, list[onnx.NodeProto]],
    known: Mapping[str, TensorProto],
) -> Iterator[Problem]:
    """What ONNX Runtime needs to make one integer kernel of it (the extended pattern of QLinearConv)."""
    source = makers[conv.input[0]]
    if known[source.input[2]].data_type != TensorProto.UINT8:
        yield Problem(conv.name, "its input is signed, which ONNX Runtime runs slowly on x86; use uint8 (int8-cpu)")
    stored = known.get(makers[conv.input[1]].input[0])
    if stored is not None and may_saturate(array(stored)):
        yield Problem(
            conv.name,
            "neighbouring weights are so large that sums in 16 bits saturate on processors without VNNI; round them "
            "with saturation_free",
        )
    if len(conv.input) > 2 and conv.input[2] in known:
        yield Problem(conv.name, "its bias is float, so ONNX Runtime runs it in float; store it as int32")
    following = users.get(conv.output[0], [])
    if len(following) == 1 and following[0].op_type in ("Clip", "Relu"):
        following = users.get(following[0].output[0], [])
    if [node.op_type for node in following] != [_QUANTISE]:
        yield Problem(conv.name, "its output is not quantised, so ONNX Runtime runs it in float; quantise it")


def _types(model: onnx.ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = [*graph.value_info, *graph.input, *graph.output]
    types = {value.name: int(value.type.tensor_type.elem_type) for value in values}
    return types | {name: int(tensor.data_type) for name, tensor in constants(graph).items()}
