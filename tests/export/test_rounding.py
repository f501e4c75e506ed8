"""Weights in INT8: better than rounding them one by one, where it matters, and never wrong where it does not."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgead.export.graph.lint import lint
from edgead.export.graph.saturation import (
    PAIR_LIMIT,
    clip_pairs,
    in_kernel_order,
    largest_pair,
    may_saturate,
)
from edgead.export.options import CPU, TRT
from edgead.export.precision.activation_ranges import activation_ranges
from edgead.export.precision.gptq import Rounded, layer_inputs, round_to_nearest, round_weights
from edgead.export.precision.qdq import DIALECTS, quantisable, quantise, savings, watched_tensors
from edgead.runtime.errors import ConfigError

SIDE = 32


def graph(mean: float = 127.5) -> onnx.ModelProto:
    """A stem, a depthwise filter that takes differences of large values, and a mixing layer."""
    rng = np.random.default_rng(0)
    stem = rng.uniform(0.0, 0.01, (16, 3, 3, 3)).astype(np.float32)
    differences = rng.normal(size=(16, 1, 3, 3))
    differences -= differences.mean((2, 3), keepdims=True)
    constants = {
        "mean": np.full((1, 3, 1, 1), mean, np.float32),
        "stem": stem,
        "stem_bias": np.full(16, 3.0, np.float32),
        "depth": (20 * differences).astype(np.float32),
        "mix": rng.normal(size=(8, 16, 1, 1)).astype(np.float32),
        "low": np.float32(0.0),
        "high": np.float32(6.0),
        "one": np.array([1]),
        "axes": np.array([1, 2]),
    }
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["pixels"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Sub", ["planes", "mean"], ["centred"], name="centre"),
        helper.make_node("Conv", ["centred", "stem", "stem_bias"], ["a"], name="stem", pads=[1] * 4),
        helper.make_node("Clip", ["a", "low", "high"], ["b"]),
        helper.make_node("Conv", ["b", "depth"], ["c"], name="depth", pads=[1] * 4, group=16),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Conv", ["d", "mix"], ["e"], name="mix"),
        helper.make_node("ReduceMax", ["e", "one"], ["map"], keepdims=0),
        helper.make_node("ReduceMax", ["map", "axes"], ["score"], keepdims=0),
    ]
    shapes = {"score": ["batch"], "map": ["batch", SIDE, SIDE]}
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()],
        [numpy_helper.from_array(np.asarray(values), name) for name, values in constants.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def photos(seed: int, count: int = 8) -> NDArray[np.uint8]:
    """Smooth images: neighbours are alike, as on images, so that differences of them are small."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(60, 200, (count, 4, 4, 3)).repeat(SIDE // 4, 1).repeat(SIDE // 4, 2)
    return np.clip(coarse + rng.normal(0, 4, coarse.shape), 0, 255).astype(np.uint8)


def run(model: onnx.ModelProto, images: NDArray[np.uint8], tensor: str = "map") -> NDArray[np.float32]:
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    if tensor != "map":
        watched.graph.output.append(helper.make_tensor_value_info(tensor, TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: NDArray[np.float32] = session.run([tensor], {"images": images})[0]
    return found


def rounded_graph(weights: dict[str, Rounded]) -> onnx.ModelProto:
    """The float graph with rounded weights, and what is left of their errors in the biases."""
    model = graph()
    for node in model.graph.node:
        if node.op_type != "Conv" or node.name not in weights:
            continue
        one = weights[node.name]
        bias = one.correction + (3.0 if node.name == "stem" else 0.0)
        model.graph.initializer.append(numpy_helper.from_array(bias.astype(np.float32), f"{node.name}_moved"))
        model.graph.initializer.append(numpy_helper.from_array(one.values, f"{node.name}_rounded"))
        node.input[1:] = [f"{node.name}_rounded", f"{node.name}_moved"]
    return model


def test_rounding_that_knows_the_inputs_moves_layers_less() -> None:
    model = graph()
    aware = round_weights(model, layer_inputs(model, photos(0)))
    assert set(aware) == set(quantisable(model)) == {"stem", "depth", "mix"}
    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nearest = {name: round_to_nearest(known[name]) for name in aware}
    images = photos(1)
    # Each layer on its own, by the tensor that it gives.
    for name, tensor, gain in (("stem", "a", 0.7), ("depth", "c", 0.7), ("mix", "e", 0.9)):
        expected = run(model, images, tensor)
        first, second = (
            float(np.square(run(rounded_graph({name: weights[name]}), images, tensor) - expected).mean() ** 0.5)
            for weights in (nearest, aware)
        )
        assert second < gain * first, name
    free = round_weights(model, layer_inputs(model, photos(0)), saturation_free=True)
    for dialect, weights in ((TRT, aware), (CPU, free)):
        ranges = activation_ranges(model, watched_tensors(model), photos(0))["min-max"]
        assert lint(quantise(model, ranges, dialect, (), weights), precision=dialect) == []


def loud() -> onnx.ModelProto:
    """The graph with a mixing layer whose weights are all alike: every pair of neighbours is as large as can be."""
    model = graph()
    weights = next(tensor for tensor in model.graph.initializer if tensor.name == "mix")
    weights.CopyFrom(numpy_helper.from_array(np.full((8, 16, 1, 1), 0.5, np.float32), "mix"))
    return model


@pytest.mark.parametrize("make", [graph, loud])
def test_neighbouring_weights_of_the_graph_for_cpus_cannot_saturate_sixteen_bits(make) -> None:
    model = make()
    inputs = layer_inputs(model, photos(0))
    plain, free = round_weights(model, inputs), round_weights(model, inputs, saturation_free=True)
    assert any(may_saturate(one.whole) for one in plain.values())
    for name, one in free.items():
        # As vpmaddubsw adds up, with each pairing that a runtime may choose, and the activations that sum up most.
        ordered = in_kernel_order(one.whole).astype(np.int64)
        for sign in (1, -1):
            part = 255 * np.maximum(sign * ordered, 0)
            assert (part[:, 1:] + part[:, :-1]).max(initial=0) <= 32767, name
        # It uses the range that it may.
        assert largest_pair(one.whole).max() >= PAIR_LIMIT - 1 or np.abs(one.whole).max() == 127
    ranges = activation_ranges(model, watched_tensors(model), photos(0))["min-max"]
    assert lint(quantise(model, ranges, CPU), precision=CPU) == []
    problems = lint(quantise(model, ranges, CPU, (), plain), precision=CPU)
    assert "saturate on processors without VNNI" in str(problems[0])


def test_the_second_of_a_pair_is_cut() -> None:
    whole = np.array([[100, 50, -90, -90, 127, -127]], np.float64).reshape(1, 6, 1, 1)
    assert may_saturate(whole)
    cut = clip_pairs(whole)
    assert in_kernel_order(cut).tolist() == [[100, 28, -90, -38, 127, -127]]
    assert not may_saturate(cut)


def test_the_integers_stand_for_the_weights_that_were_given() -> None:
    model = graph()
    for name, one in round_weights(model, layer_inputs(model, photos(0))).items():
        weights = next(numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name == name)
        assert one.whole.dtype == np.int8
        assert one.whole.shape == weights.shape
        assert one.whole.min() >= -127
        # Errors are traded between the weights of a filter, by a few steps at most.
        steps = np.abs(one.values - weights).reshape(len(weights), -1).max(1) / one.scales
        assert steps.max() < 8
    with pytest.raises(ConfigError, match="--calibration DIR"):
        layer_inputs(model, photos(0)[:0])


def test_a_dead_channel_and_an_input_that_never_varies_do_no_harm() -> None:
    model = graph()
    weights = next(tensor for tensor in model.graph.initializer if tensor.name == "depth")
    values = numpy_helper.to_array(weights).copy()
    values[3] = 0.0
    weights.CopyFrom(numpy_helper.from_array(values, "depth"))
    grey = np.full((2, SIDE, SIDE, 3), 128, np.uint8)
    found = round_weights(model, layer_inputs(model, grey))
    for one in found.values():
        assert np.isfinite(one.scales).all()
        assert np.isfinite(one.correction).all()
    assert not found["depth"].values[3].any()
    assert (round_to_nearest(values).scales > 0).all()


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_first_convolution_reads_the_pixels_without_a_loss(dialect: str) -> None:
    # About a mean of 127.5 eight bits would be half a step off in every pixel.
    model = graph()
    ranges = activation_ranges(model, watched_tensors(model), photos(0))["min-max"]
    weights = round_weights(model, layer_inputs(model, photos(0)))
    quantised = quantise(model, ranges, dialect, ["depth", "mix"], weights)
    sub = next(node for node in quantised.graph.node if node.op_type == "Sub")
    images = photos(1)
    whole = run(quantised, images, sub.output[0])
    name = "stem_input_DQ" if dialect == TRT else "centred_u8_DQ"
    reader = next(node for node in quantised.graph.node if node.name == name)
    assert np.array_equal(run(quantised, images, reader.output[0]), whole)
    assert np.array_equal(whole + 0.5, run(model, images, "centred"))
    # What was not subtracted has gone into the bias: the layer's output is that of its rounded weights.
    stem = next(node for node in quantised.graph.node if node.name == "stem")
    float_graph = rounded_graph({"stem": weights["stem"]})
    inner = (slice(None), slice(None), slice(1, -1), slice(1, -1))
    assert np.abs(run(quantised, images, stem.output[0])[inner] - run(float_graph, images, "a")[inner]).max() < 1e-3


def test_another_mean_is_left_alone() -> None:
    model = graph(mean=100.25)
    ranges = activation_ranges(model, watched_tensors(model), photos(0))["min-max"]
    quantised = quantise(model, ranges, CPU)
    assert next(node for node in quantised.graph.node if node.op_type == "Sub").input[1] == "mean"


def test_what_int8_saves_is_least_where_few_channels_are_summed() -> None:
    saved = savings(graph())
    assert saved["mix"] / (8 * 16) > saved["depth"] / (16 * 9) * 0.5
    assert set(saved) == {"stem", "depth", "mix"}
