"""Each lint rule catches a graph that breaks it, and names the node."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgead.export.graph.lint import lint, require_clean
from edgead.export.graph.tracing import export_onnx
from edgead.runtime.errors import LintError


@pytest.fixture
def model(exportable) -> onnx.ModelProto:
    return export_onnx(exportable.module, 64, 64)


def broken(model: onnx.ModelProto, text: str) -> bool:
    with pytest.raises(LintError):
        require_clean(model)
    return any(text in str(problem) for problem in lint(model))


def test_the_exported_graph_is_clean(model):
    assert lint(model) == []


def test_ir_version(model):
    model.ir_version = 11
    assert broken(model, "IR version 11")


def test_opset(model):
    model.opset_import[0].version = 17
    assert broken(model, "opset 17")


def test_transpose_before_cast(model):
    cast, transpose = model.graph.node[0], model.graph.node[1]
    after = transpose.output[0]
    transpose.input[0], transpose.output[0] = "images", "turned"
    cast.input[0], cast.output[0] = "turned", after
    assert broken(model, "must start with Cast, Transpose")


def test_mean_folded_past_zero_padding(model):
    transpose = model.graph.node[1]
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    conv.input[0] = transpose.output[0]
    assert broken(model, f"{conv.name}: the input mean was folded")


def test_control_flow(model):
    model.graph.node.append(helper.make_node("NonZero", ["map"], ["where"], name="culprit"))
    assert broken(model, "culprit: NonZero")


def test_leftover_batch_normalisation(model):
    model.graph.node.append(helper.make_node("Identity", ["map"], ["again"], name="idle"))
    assert broken(model, "idle: Identity does nothing")


def test_foreign_domain(model):
    model.graph.node.append(helper.make_node("Magic", ["map"], ["again"], name="foreign", domain="com.example"))
    assert broken(model, "foreign: Magic is of domain")


def test_align_corners(model):
    node = helper.make_node("Resize", ["map"], ["big"], name="stretch", coordinate_transformation_mode="align_corners")
    model.graph.node.append(node)
    assert broken(model, "stretch: Resize uses 'align_corners'")


def test_double_precision_and_infinite_weights(model):
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(2), "wide"))
    model.graph.initializer.append(numpy_helper.from_array(np.array([np.inf], np.float32), "endless"))
    model.graph.node.append(helper.make_node("Cast", ["map"], ["long"], name="widen", to=TensorProto.DOUBLE))
    assert broken(model, "wide: a float64 weight")
    assert broken(model, "endless: a weight is NaN or infinite")
    assert broken(model, "widen: float64")
