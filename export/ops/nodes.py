"""Nodes of the domain ``edgead`` in an ONNX graph: how torch's exporter writes them, their bodies, and inlining."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx
import onnx.inliner
import onnx.parser
import torch
from onnx import TensorProto

from edgead.export.ops import DOMAIN, PLUGIN_NAMESPACE, PLUGIN_VERSION, VERSION, knn, mahalanobis
from edgead.runtime.errors import ExportError

# Operator -> the text of its body for a node of it.
OPS: Mapping[str, Callable[[onnx.NodeProto], str]] = {
    knn.NAME: lambda node: knn.body(attribute(node, "k"), len(node.output)),
    mahalanobis.NAME: lambda node: mahalanobis.body(len(node.input)),
}


def translations() -> dict[Any, Callable[..., Any]]:
    """Return the table by which torch's exporter writes the torch operators as nodes."""
    plugin = {"plugin_namespace": PLUGIN_NAMESPACE, "plugin_version": PLUGIN_VERSION}

    def knn_score(queries: Any, keys: Any, k: int) -> Any:
        return _operator(knn.NAME, ("queries", "keys"), ("distance",), ("k",))(queries, keys, k=k, **plugin)

    def knn_search(queries: Any, keys: Any, k: int) -> Any:
        return _operator(knn.NAME, ("queries", "keys"), ("distance", "index"), ("k",))(queries, keys, k=k, **plugin)

    def mahalanobis_score(rows: Any, mean: Any, factors: Any, precision: Any = None) -> Any:
        given = [rows, mean, factors] if precision is None else [rows, mean, factors, precision]
        names = ("rows", "mean", "factors", "precision")[: len(given)]
        return _operator(mahalanobis.NAME, names, ("distance",), ())(*given, **plugin)

    return {
        torch.ops.edgead.knn_score.default: knn_score,
        torch.ops.edgead.knn_search.default: knn_search,
        torch.ops.edgead.mahalanobis_score.default: mahalanobis_score,
    }


def _operator(name: str, inputs: Sequence[str], outputs: Sequence[str], integers: Sequence[str]) -> Any:
    """Return what writes a node into the graph that torch's exporter records."""
    from onnxscript.values import Op, Opset

    schema = onnx.defs.OpSchema
    types = ["tensor(float)", "tensor(float16)"]
    kinds = dict.fromkeys(integers, schema.AttrType.INT)
    kinds |= dict.fromkeys(("plugin_namespace", "plugin_version"), schema.AttrType.STRING)
    return Op(
        Opset(DOMAIN, VERSION),
        name,
        schema(
            name,
            DOMAIN,
            VERSION,
            inputs=[schema.FormalParameter(one, f"T{place}") for place, one in enumerate(inputs)],
            outputs=[schema.FormalParameter(one, "tensor(int64)" if one == "index" else types[0]) for one in outputs],
            type_constraints=[(f"T{place}", types, "") for place in range(len(inputs))],
            attributes=[schema.Attribute(one, kind) for one, kind in kinds.items()],
        ),
    )


def scoring_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return the nodes of the domain ``edgead``."""
    return [node for node in model.graph.node if node.domain == DOMAIN]


def attach_bodies(model: onnx.ModelProto) -> None:
    """Put a function of plain operators into the model for each kind of node of the domain ``edgead`` in it.

    Raises:
        ExportError: an unknown operator, or two nodes of one that need different bodies.
    """
    bodies: dict[str, str] = {}
    constant = {tensor.name for tensor in model.graph.initializer} - {value.name for value in model.graph.input}
    for node in scoring_nodes(model):
        if node.op_type not in OPS:
            raise ExportError(f"{node.name}: the domain '{DOMAIN}' has no operator {node.op_type}")
        text = OPS[node.op_type](node)
        if node.op_type == knn.NAME:
            _state_fixed_keys(node, constant)
        if bodies.setdefault(node.op_type, text) != text:
            raise ExportError(
                f"{node.name}: a graph holds one form of {node.op_type}; give its nodes the same k, inputs and outputs"
            )
    del model.functions[:]
    model.functions.extend(onnx.parser.parse_function(text) for text in bodies.values())
    kept = [one for one in model.opset_import if one.domain != DOMAIN]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    if bodies:
        model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, VERSION))


def _state_fixed_keys(node: onnx.NodeProto, constant: set[str]) -> None:
    """Say in a node whether its keys are a constant of the graph."""
    others = [one for one in node.attribute if one.name != knn.FIXED_KEYS]
    del node.attribute[:]
    node.attribute.extend([*others, onnx.helper.make_attribute(knn.FIXED_KEYS, int(node.input[1] in constant))])


def inline_nodes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of plain operators, for runtimes that take no functions; without such nodes it is equal."""
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    if not scoring_nodes(plain):
        return plain
    names = {node.name for node in plain.graph.node}
    inlined: onnx.ModelProto = onnx.inliner.inline_local_functions(plain)
    graph = inlined.graph
    del inlined.functions[:]
    domains = {node.domain for node in graph.node}  # a node without a body stays, and its domain with it
    kept = [one for one in inlined.opset_import if one.domain != DOMAIN or DOMAIN in domains]
    del inlined.opset_import[:]
    inlined.opset_import.extend(kept)
    _store_constants(graph)
    _remove_idle_casts(graph)
    _merge_transposes(graph)
    counts: dict[str, int] = {}
    for node in graph.node:
        if node.name in names:
            continue
        while True:
            number = counts.get(node.op_type, 0)
            counts[node.op_type] = number + 1
            if f"{node.op_type}_{number}" not in names:
                break
        node.name = f"{node.op_type}_{number}"
        names.add(node.name)
    return inlined


def _store_constants(graph: onnx.GraphProto) -> None:
    """Make initialisers, as the exporter does, of the constants that the bodies brought."""
    for node in [node for node in graph.node if node.op_type == "Constant" and node.attribute[0].name == "value"]:
        graph.initializer.append(node.attribute[0].t)
        graph.initializer[-1].name = node.output[0]
        graph.node.remove(node)


def _remove_idle_casts(graph: onnx.GraphProto) -> None:
    """Take away what casts a float32 weight to float32."""
    full = {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
    idle = {
        node.output[0]: node.input[0]
        for node in graph.node
        if node.op_type == "Cast" and node.input[0] in full and attribute(node, "to") == TensorProto.FLOAT
    }
    for node in [node for node in graph.node if node.output[0] in idle]:
        graph.node.remove(node)
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = idle.get(name, name)


def _merge_transposes(graph: onnx.GraphProto) -> None:
    """Make one of two transpositions where nobody else reads what lies between them."""
    users: dict[str, int] = {value.name: 1 for value in graph.output}
    for node in graph.node:
        for name in node.input:
            users[name] = users.get(name, 0) + 1
    makers = {node.output[0]: node for node in graph.node if node.op_type == "Transpose"}
    for node in list(makers.values()):
        first = makers.get(node.input[0])
        if first is None or users[node.input[0]] != 1:
            continue
        before, after = (list(one.attribute[0].ints) for one in (first, node))
        node.attribute[0].ints[:] = [before[axis] for axis in after]
        node.input[0] = first.input[0]
        graph.node.remove(first)
        del makers[first.output[0]]


def attribute(node: onnx.NodeProto, name: str) -> int:
    """Return an integer attribute; raises `ExportError` where there is none."""
    for one in node.attribute:
        if one.name == name:
            return int(one.i)
    raise ExportError(f"{node.name}: {node.op_type} has no attribute '{name}'; export it again")
