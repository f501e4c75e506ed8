"""Rules that an exported graph must keep, each with the node's name and the fix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx
from onnx import numpy_helper

from edgead.export.graph.lint_precision import Problem, precision_rules
from edgead.export.graph.tracing import BATCH_AXIS, IR_VERSION, OPSET, OUTPUTS
from edgead.export.ops import DOMAIN, PLUGIN_NAMESPACE, PLUGIN_VERSION
from edgead.export.ops.nodes import inline_nodes, scoring_nodes
from edgead.runtime.errors import LintError

# Operators with data-dependent shapes or control flow: TensorRT refuses them or falls off its fast path.
_FORBIDDEN = frozenset(
    {"If", "Loop", "Scan", "NonZero", "Unique", "Compress", "NonMaxSuppression", "SequenceConstruct"}
)
_FOLDABLE = frozenset({"BatchNormalization", "Dropout", "Identity"})


def lint(model: onnx.ModelProto, outputs: Sequence[str] = OUTPUTS, precision: str = "fp32") -> list[Problem]:
    """Return every broken rule of a graph that has these outputs; an empty list means that it may ship.

    Args:
        precision: what the graph is meant to be: ``fp32``, ``fp16``, ``int8-trt`` or ``int8-cpu``.
    """
    plain = inline_nodes(model)
    return [
        *_scoring_rules(model),
        *_model_rules(plain, outputs),
        *_input_rules(plain.graph),
        *_node_rules(plain.graph),
        *_weight_rules(plain.graph),
        *(precision_rules(plain, precision) if precision != "fp32" else ()),
    ]


def require_clean(model: onnx.ModelProto, outputs: Sequence[str] = OUTPUTS, precision: str = "fp32") -> None:
    """Raise `LintError` naming the first broken rule and how many more there are."""
    problems = lint(model, outputs, precision)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise LintError(f"the exported graph breaks a rule: {problems[0]}{more}")


def _scoring_rules(model: onnx.ModelProto) -> Iterator[Problem]:
    """A scoring node has a body for runtimes without a plugin, and says where the plugin is to be found."""
    bodies = {function.name for function in model.functions if function.domain == DOMAIN}
    wanted = {"plugin_namespace": PLUGIN_NAMESPACE, "plugin_version": PLUGIN_VERSION}
    for node in scoring_nodes(model):
        if node.op_type not in bodies:
            yield Problem(node.name, f"{node.op_type} has no body of plain operators; export it again")
        found = {one.name: one.s.decode() for one in node.attribute if one.name in wanted}
        if found != wanted:
            yield Problem(node.name, f"{node.op_type} names another plugin than TensorRT would look for: {wanted}")


def _model_rules(model: onnx.ModelProto, outputs: Sequence[str]) -> Iterator[Problem]:
    if model.ir_version > IR_VERSION:
        yield Problem(
            "model", f"IR version {model.ir_version} is too new for ONNX Runtime on JetPack; write {IR_VERSION}"
        )
    for imported in model.opset_import:
        if imported.domain in ("", "ai.onnx") and imported.version != OPSET:
            yield Problem("model", f"opset {imported.version}; export with opset {OPSET}")
    graph = model.graph
    if [value.name for value in graph.input] != ["images"] or [v.name for v in graph.output] != list(outputs):
        wanted = " and ".join(f"'{name}'" for name in outputs)
        yield Problem("model", f"the graph must map 'images' to {wanted}")
    for value in graph.input:
        dims = value.type.tensor_type.shape.dim
        if value.type.tensor_type.elem_type != onnx.TensorProto.UINT8 or len(dims) != 4:
            yield Problem(
                value.name, "the input must be (N, h, w, 3) uint8, so that one byte a channel crosses the bus"
            )
        if any(dim.dim_param and dim.dim_param != BATCH_AXIS for dim in dims):
            yield Problem(value.name, f"only the batch axis may be dynamic, named '{BATCH_AXIS}'")
    for value in graph.output:
        if value.type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
            yield Problem(value.name, "outputs must be float32")


def _input_rules(graph: onnx.GraphProto) -> Iterator[Problem]:
    """Cast, then Transpose; and no mean folded into a convolution that pads with zeros."""
    first = next((node for node in graph.node if "images" in node.input), None)
    second = next((node for node in graph.node if first is not None and first.output[0] in node.input), None)
    kinds = [node.op_type for node in (first, second) if node is not None]
    if first is None or second is None or kinds != ["Cast", "Transpose"]:
        yield Problem(
            first.name if first is not None else "images",
            "the graph must start with Cast, Transpose (TensorRT refuses a uint8 Transpose), "
            f"it starts with {', '.join(kinds) or 'nothing'}",
        )
        return
    for node in graph.node:
        if node.op_type == "Conv" and second.output[0] in node.input and any(_ints(node, "pads")):
            yield Problem(
                node.name,
                "the input mean was folded into a convolution that pads with zeros, which corrupts the border; "
                "subtract the mean before it",
            )


def _node_rules(graph: onnx.GraphProto) -> Iterator[Problem]:
    for node in graph.node:
        if node.op_type in _FORBIDDEN:
            yield Problem(
                node.name, f"{node.op_type} has data-dependent shape or control flow; rewrite the module without it"
            )
        if node.op_type in _FOLDABLE:
            yield Problem(node.name, f"{node.op_type} does nothing at inference; fold it before the export")
        if node.domain not in ("", "ai.onnx"):
            yield Problem(node.name, f"{node.op_type} is of domain '{node.domain}', which runtimes do not know")
        if node.op_type == "Resize":
            mode = next(
                (a.s.decode() for a in node.attribute if a.name == "coordinate_transformation_mode"), "half_pixel"
            )
            if mode not in ("half_pixel", "pytorch_half_pixel"):
                yield Problem(node.name, f"Resize uses '{mode}'; use align_corners=False")
        if node.op_type == "Cast" and any(a.name == "to" and a.i == onnx.TensorProto.DOUBLE for a in node.attribute):
            yield Problem(node.name, "float64 has no fast path on any target; keep the module in float32")


def _weight_rules(graph: onnx.GraphProto) -> Iterator[Problem]:
    for tensor in graph.initializer:
        if tensor.data_type == onnx.TensorProto.DOUBLE:
            yield Problem(tensor.name, "a float64 weight; store it as float32")
        if tensor.data_type == onnx.TensorProto.FLOAT and not np.isfinite(numpy_helper.to_array(tensor)).all():
            yield Problem(tensor.name, "a weight is NaN or infinite; fit again")


def _ints(node: onnx.NodeProto, name: str) -> list[int]:
    return next((list(attribute.ints) for attribute in node.attribute if attribute.name == name), [])
