"""FP16 and INT8: what the graphs are made of, what they must keep to, and that planted damage never passes."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch import Tensor, nn

from edgead.export.exportable import Exportable
from edgead.export.exporting import export_bundle, export_graphs
from edgead.export.graph.lint import lint
from edgead.export.graph.partition import constants, network
from edgead.export.graph.tracing import export_onnx
from edgead.export.options import CPU, PRECISIONS, TRT
from edgead.export.parity import gate as proving_module
from edgead.export.parity import promise as promise_module
from edgead.export.precision import variants as precisions_module
from edgead.export.precision.activation_ranges import METHODS, activation_ranges
from edgead.export.precision.fp16 import convert_fp16, half_convolutions
from edgead.export.precision.layer_search import Judges, Quantisable, choose_int8
from edgead.export.precision.qdq import DIALECTS, quantisable, quantise, watched_tensors
from edgead.export.precision.simulate_fp16 import SIMULATED, SimulatedFp16
from edgead.export.precision.simulate_int8 import SIMULATED_INT8, SimulatedInt8, _parts, simulate_int8
from edgead.export.precision.threshold_transfer import move_threshold
from edgead.export.torch_backend import TorchBackend
from edgead.runtime.backends import open_backend
from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.decision.threshold import calibrate
from edgead.runtime.device.bench import bench
from edgead.runtime.device.check import check_bundle
from edgead.runtime.errors import ConfigError, ExportError, ParityError
from edgead.runtime.imaging.decode import decode_image
from edgead.runtime.imaging.preprocess import resize
from edgead.runtime.inspection.inspector import Inspector

SIZE = 64


class SmallNetwork(nn.Module):
    """A residual network with its mean inside, a bank it measures distances to, and smoothing: a detector in small."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.stem.weight.data /= 16.0
        self.grow = nn.Conv2d(8, 24, 1)
        self.depth = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.back = nn.Conv2d(24, 8, 1)
        self.last = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        # Planted damage: what comes out of the network is the same, and on the way it is this much larger.
        self.back.weight.data *= scale
        self.back.bias.data *= scale
        self.scale = scale
        self.bank = nn.Parameter(torch.randn(12, 200), requires_grad=False)
        self.kernel = nn.Parameter(torch.full((1, 1, 3, 3), 1 / 9), requires_grad=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        stem = torch.clamp(self.stem(images.to(torch.float32).permute(0, 3, 1, 2) - 127.0), 0.0, 6.0)
        inner = self.back(torch.relu(self.depth(torch.relu(self.grow(stem)))))
        tap = nn.functional.avg_pool2d(self.last(inner + self.scale * stem) / self.scale, 2)
        rows = tap.flatten(2).transpose(1, 2)
        squared = (rows * rows).sum(2) + (-2 * rows @ self.bank + (self.bank * self.bank).sum(0)).amin(2)
        grid = nn.functional.conv2d(squared.clamp(min=0).sqrt().reshape(-1, 1, 8, 8), self.kernel, padding=1)[:, 0]
        return grid.amax((1, 2)), grid


def make(exportable: Exportable, scale: float = 1.0) -> Exportable:
    module = SmallNetwork(scale).eval()
    images = pictures(exportable)
    scores = TorchBackend(module).run(images).score
    return replace(
        exportable,
        module=module,
        grid=(8, 8),
        threshold=calibrate(scores, 0.5),
        # As of a real model, whose threshold lies a way above its median.
        normal_scores=(scores - np.ptp(scores)).tolist(),
        calibration=exportable.references,
    )


def pictures(exportable: Exportable) -> np.ndarray:
    return np.stack([resize(decode_image(data, name), SIZE, SIZE) for name, data in exportable.references])


@pytest.fixture
def small(exportable: Exportable) -> Exportable:
    return make(exportable)


_graphs: dict[float, bytes] = {}


@pytest.fixture(autouse=True)
def _trace_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tracing of torch takes seconds, and the same module always gives the same graph."""
    monkeypatch.setattr("edgead.export.precision.graph_files.export_onnx", traced)


def traced(module: nn.Module, height: int, width: int, outputs: tuple[str, ...] = ("score", "map")) -> onnx.ModelProto:
    assert isinstance(module, SmallNetwork)
    if module.scale not in _graphs:
        _graphs[module.scale] = export_onnx(module, height, width, outputs).SerializeToString()
    return onnx.load_from_string(_graphs[module.scale])


@pytest.fixture
def graph() -> onnx.ModelProto:
    return traced(SmallNetwork().eval(), SIZE, SIZE)


@pytest.fixture
def images(exportable: Exportable) -> np.ndarray:
    return pictures(exportable)


def run(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["map"], {"images": images})[0]


def types(model: onnx.ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    return {value.name: value.type.tensor_type.elem_type for value in [*graph.value_info, *graph.output]}


# FP16


def test_the_network_is_told_from_the_head(graph):
    kinds = [node.op_type for node in network(graph)]
    assert kinds.count("Conv") == 5  # the sixth one smooths
    assert "AveragePool" in kinds
    assert not {"MatMul", "ReduceSum", "ReduceMin", "Sqrt", "Cast", "Sub"} & set(kinds)


def test_fp16_puts_the_network_in_half_and_nothing_else(graph, images):
    half = convert_fp16(graph)
    assert half_convolutions(half) == (5, 5)
    assert lint(half, precision="fp16") == []
    kinds = types(half)
    for node in half.graph.node:
        if node.op_type in ("MatMul", "ReduceSum", "ReduceMin", "Sqrt", "ReduceMax"):
            assert kinds[node.output[0]] == TensorProto.FLOAT, node.name
    assert half.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8
    assert [kinds[value.name] for value in half.graph.output] == [TensorProto.FLOAT] * 2
    expected = run(graph, images)
    difference = np.abs(run(half, images) - expected).max()
    assert 0 < difference < 5e-3 * np.ptp(expected)


def pointwise(weight: float) -> onnx.ModelProto:
    """A graph that gives ``weight`` times the red channel, for arithmetic that can be done by hand."""
    kernel = np.zeros((1, 3, 1, 1), np.float32)
    kernel[0, 0] = weight
    nodes = [
        helper.make_node("Cast", ["images"], ["cast"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["cast"], ["turned"], name="turn", perm=[0, 3, 1, 2]),
        helper.make_node("Mul", ["turned", "seventh"], ["x"], name="seven"),
        helper.make_node("Conv", ["x", "kernel"], ["y"], name="conv"),
        helper.make_node("Squeeze", ["y", "one"], ["map"], name="squeeze"),
        helper.make_node("ReduceMax", ["map", "axes"], ["score"], name="max", keepdims=0),
    ]
    constants = {"seventh": np.float32(1 / 7), "kernel": kernel, "one": np.array([1]), "axes": np.array([1, 2])}
    shapes = {"score": ["batch"], "map": ["batch", 4, 4]}
    built = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 4, 4, 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()],
        [numpy_helper.from_array(np.asarray(values), name) for name, values in constants.items()],
    )
    return helper.make_model(built, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_the_simulation_rounds_every_half_tensor_as_ieee_does(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
    onnx.save(convert_fp16(pointwise(1 / 3)), str(tmp_path / "a.onnx"))
    simulated = SimulatedFp16(tmp_path / "a.onnx")
    x = (images[..., 0].astype(np.float32) * np.float32(1 / 7)).astype(np.float16).astype(np.float32)
    expected = (x * np.float32(np.float16(1 / 3))).astype(np.float16).astype(np.float32)
    assert np.array_equal(simulated.run(images).map, expected)
    assert {one.tensor: one.maximum for one in simulated.ranges}["x_fp16"] == pytest.approx(images.max() / 7, rel=0.2)


def test_the_simulation_keeps_infinity_and_names_the_tensor(tmp_path):
    images = np.full((1, 4, 4, 3), 255, np.uint8)
    onnx.save(convert_fp16(pointwise(60000.0)), str(tmp_path / "a.onnx"))
    simulated = SimulatedFp16(tmp_path / "a.onnx")
    assert np.isinf(simulated.run(images).score).all()
    (worst,) = [one for one in simulated.ranges if one.tensor.startswith("y")]
    assert worst.maximum == pytest.approx(255 / 7 * 60000, rel=1e-2)
    assert worst.margin < 1


def test_fp16_has_nothing_to_convert_or_too_large_a_weight(graph):
    single = pointwise(1.0)
    kept = [node for node in single.graph.node if node.op_type != "Conv"]
    del single.graph.node[:]
    single.graph.node.extend(kept)
    next(node for node in single.graph.node if node.op_type == "Squeeze").input[0] = "first"
    single.graph.node.insert(3, helper.make_node("Slice", ["x", "one0", "one", "one"], ["first"], name="cut"))
    single.graph.initializer.append(numpy_helper.from_array(np.array([0]), "one0"))
    with pytest.raises(ParityError, match="no convolutional network"):
        convert_fp16(single)
    with pytest.raises(ParityError, match=r"conv: a weight of 7e\+04 does not fit into half"):
        convert_fp16(pointwise(7e4))
    with pytest.raises(ExportError, match="in half already"):
        convert_fp16(convert_fp16(graph))


# INT8


@pytest.fixture
def ranges(graph, images):
    return activation_ranges(graph, watched_tensors(graph), images)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_int8_quantises_the_convolutions_and_nothing_else(graph, images, ranges, dialect, tmp_path):
    expected = run(graph, images)
    for method in METHODS:
        quantised = quantise(graph, ranges[method], dialect)
        assert lint(quantised, precision=dialect) == []
        onnx.save(quantised, str(tmp_path / "q.onnx"))
        difference = np.abs(SimulatedInt8(tmp_path / "q.onnx").run(images).map - expected).max()
        assert 0 < difference < 0.2 * np.ptp(expected), method
    makers = {name: node for node in quantised.graph.node for name in node.output}
    for node in quantised.graph.node:
        if node.op_type in ("MatMul", "Sqrt", "AveragePool"):
            assert all(makers[n].op_type != "DequantizeLinear" for n in node.input if n in makers) or dialect == CPU
        if node.op_type == "MatMul":
            assert not any(name in makers and makers[name].op_type == "DequantizeLinear" for name in node.input)
    if dialect == CPU:
        first, second = (
            open_backend(name, tmp_path / "q.onnx").run(images).map for name in ("onnxruntime", "openvino")
        )
        assert np.abs(first - second).max() < 0.1 * np.ptp(expected)


def integer_convolution(x: np.ndarray, whole: np.ndarray, node: onnx.NodeProto) -> np.ndarray:
    """Convolve whole numbers ``x (C, h, w)`` in 64 bits, as slowly and plainly as can be."""
    settings = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    top, left, bottom, right = settings.get("pads", [0] * 4)
    (down, across), group = settings.get("strides", [1, 1]), settings.get("group", 1)
    padded = np.pad(x.astype(np.int64), ((0, 0), (top, bottom), (left, right)))
    outputs, channels, height, width = whole.shape
    rows, columns = (padded.shape[1] - height) // down + 1, (padded.shape[2] - width) // across + 1
    sums = np.zeros((outputs, rows, columns), np.int64)
    for out in range(outputs):
        first = out // (outputs // group) * channels
        for channel, i, j in np.ndindex(channels, height, width):
            seen = padded[first + channel, i : i + rows * down : down, j : j + columns * across : across]
            sums[out] += whole[out, channel, i, j].astype(np.int64) * seen
    return sums


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_simulation_of_int8_is_exact(graph, images, ranges, dialect, tmp_path):
    # Each convolution of the simulated graph against whole numbers in 64 bits, from the very 8-bit input that it had.
    quantised = quantise(graph, ranges["min-max"], dialect)
    known = constants(quantised.graph)
    makers = {name: node for node in quantised.graph.node for name in node.output}
    convs = [node for node in quantised.graph.node if node.op_type == "Conv" and node.input[1] in makers]
    rewritten = simulate_int8(onnx.load_from_string(quantised.SerializeToString()), "a")
    wanted = []
    for node in convs:
        wanted += [makers[node.input[0]].input[0], f"{node.output[0]}/total"]
    byte = TensorProto.UINT8 if dialect == CPU else TensorProto.INT8
    for name in wanted:
        kind = TensorProto.FLOAT if name.endswith("/total") else byte
        rewritten.graph.output.append(helper.make_tensor_value_info(name, kind, None))
    session = onnxruntime.InferenceSession(rewritten.SerializeToString(), providers=["CPUExecutionProvider"])
    found = dict(zip(wanted, session.run(wanted, {"images": images[:1]}), strict=True))
    for node in convs:
        source, weights = makers[node.input[0]], makers[node.input[1]]
        scales = numpy_helper.to_array(known[weights.input[1]]).reshape(-1, 1, 1, 1)
        if weights.input[0] in known:
            whole = numpy_helper.to_array(known[weights.input[0]])
        else:
            whole = np.rint(numpy_helper.to_array(known[makers[weights.input[0]].input[0]]) / scales).astype(np.int64)
        x = found[source.input[0]][0].astype(np.int64) - int(numpy_helper.to_array(known[source.input[2]]))
        expected = integer_convolution(x, whole, node)
        if dialect == CPU:
            bias = numpy_helper.to_array(known[makers[node.input[2]].input[0]]).astype(np.int64)
            expected += bias.reshape(-1, 1, 1)
        assert np.array_equal(found[f"{node.output[0]}/total"][0], expected.astype(np.float32)), node.name
    onnx.save(quantised, str(tmp_path / "q.onnx"))
    simulated = SimulatedInt8(tmp_path / "q.onnx").run(images)
    assert np.abs(simulated.map - run(graph, images)).max() < 0.2 * np.ptp(simulated.map)


def test_the_simulation_of_int8_takes_large_sums_apart():
    whole = np.full((2, 1200, 1, 1), 127, np.int8)
    whole[1] = -3
    parts = _parts(whole)
    assert len(parts) == 3
    assert np.array_equal(np.sum(parts, 0, dtype=np.int64), whole)
    assert all((255 * np.abs(part.astype(np.int64)).sum((1, 2, 3)) < 1 << 24).all() for part in parts)
    with pytest.raises(ConfigError, match="nothing to simulate"):
        simulate_int8(pointwise(1.0), "model.onnx")


def test_every_convolution_of_the_cpu_dialect_becomes_one_integer_kernel(graph, ranges, tmp_path):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    quantised = quantise(graph, ranges["min-max"], CPU).SerializeToString()
    onnxruntime.InferenceSession(quantised, options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(str(tmp_path / "optimised.onnx")).graph.node]
    assert kinds.count("QLinearConv") == 5
    assert sum(kind.endswith("Conv") for kind in kinds) == 6


def test_layers_can_stay_in_float(graph, ranges):
    layers = quantisable(graph)
    for dialect in DIALECTS:
        kept = quantise(graph, ranges["min-max"], dialect, layers[:2])
        assert lint(kept, precision=dialect) == []
        floats = [node for node in kept.graph.node if node.op_type == "Conv" and node.input[1] in constants(kept.graph)]
        assert {node.name for node in floats} == {*layers[:2], "Conv_5"}
        with pytest.raises(ParityError, match="no convolution to quantise"):
            quantise(graph, ranges["min-max"], dialect, layers)


def test_ranges_are_cached_by_content(graph, images, tmp_path):
    tensors = watched_tensors(graph)
    first = activation_ranges(graph, tensors, images, cache=tmp_path)
    low, high = first["min-max"]["images" if "images" in tensors else tensors[0]]
    assert low <= 0 <= high
    for method in METHODS:
        for name, (low, high) in first[method].items():
            assert first["min-max"][name][0] <= low <= 0 <= high <= first["min-max"][name][1]
    files = sorted(tmp_path.iterdir())
    assert len(files) == len(METHODS)
    content = json.loads(files[1].read_text())
    content["ranges"][tensors[0]] = [-1.5, 2.5]
    files[1].write_text(json.dumps(content))
    method = files[1].stem[65:]
    assert activation_ranges(graph, tensors, images, cache=tmp_path)[method][tensors[0]] == (-1.5, 2.5)
    files[1].write_text("{")
    assert activation_ranges(graph, tensors, images, cache=tmp_path) == first
    activation_ranges(graph, tensors, images[:2], cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2 * len(METHODS)
    with pytest.raises(ConfigError, match="--calibration"):
        activation_ranges(graph, tensors, images[:0])


def test_the_layer_that_costs_most_is_found_and_kept(graph, images, ranges, tmp_path):
    layers = quantisable(graph)
    clipped = dict(ranges["min-max"])
    culprit = next(node for node in graph.graph.node if node.name == layers[4]).input[0]
    clipped[culprit] = tuple(0.2 * value for value in clipped[culprit])

    def opener(models):
        onnx.save(models["m"], str(tmp_path / "m.onnx"))
        return SimulatedInt8(tmp_path / "m.onnx")

    onnx.save(graph, str(tmp_path / "full.onnx"))
    reference = open_backend("onnxruntime", tmp_path / "full.onnx").run(images).score
    judges = Judges(images, reference.tolist(), [None] * len(images), scale=float(np.ptp(reference)) * 4)
    tried = Quantisable({"m": graph}, {"m": dict.fromkeys(METHODS, clipped)}, TRT)
    honest = judges.drop(opener({"m": quantise(graph, ranges["min-max"], TRT)}))
    choice, models = choose_int8(tried, judges, opener, 2 * honest, lambda *_: None)
    assert choice.reached
    assert next(iter(choice.sensitivity)) == layers[4]
    assert layers[4] in choice.kept
    assert choice.drop == judges.drop(opener(models)) <= 2 * honest < min(choice.drops.values())
    hopeless, _ = choose_int8(tried, judges, opener, 1e-9, lambda *_: None)
    assert not hopeless.reached


# Thresholds


def test_a_threshold_moves_with_its_scores():
    scores = np.linspace(1.0, 3.0, 20)
    threshold = calibrate(scores, 0.1)
    assert move_threshold(threshold, scores, scores) == threshold
    assert move_threshold(threshold, scores, 1.1 * scores + 0.2).value == pytest.approx(1.1 * threshold.value + 0.2)
    odd = 1.1 * scores + 0.2
    odd[[3, 12]] = [9.0, np.nan]
    moved = move_threshold(threshold, scores, odd)
    assert moved.value == pytest.approx(1.1 * threshold.value + 0.2, rel=0.01)
    assert replace(moved, value=threshold.value) == threshold
    assert move_threshold(threshold, [], []) == threshold


# Lint


def pair(model: onnx.ModelProto, kind: str = "_input_DQ") -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name.endswith(kind))


def constant(model: onnx.ModelProto, name: str, values: np.ndarray) -> None:
    constants(model.graph)[name].CopyFrom(numpy_helper.from_array(values, name))


def unsigned(model):
    constant(model, pair(model).input[2], np.array(0, np.uint8))


def shifted(model):
    constant(model, pair(model).input[2], np.array(3, np.int8))


def a_scale_a_channel(model):
    constant(model, pair(model).input[1], np.ones(3, np.float32))


def nothing_behind(model):
    node = pair(model)
    user = next(other for other in model.graph.node if node.output[0] in other.input)
    user.input[0] = node.input[0]


def endless_scale(model):
    constant(model, pair(model).input[1], np.array(np.inf, np.float32))


def half_a_convolution(model):
    node = next(node for node in model.graph.node if node.name == "Conv_1")
    node.input[0] = next(n for n in model.graph.node if n.name == "Conv_1_input_Q").input[0]


def quantised_head(model):
    node = next(node for node in model.graph.node if node.op_type == "MatMul")
    made = [
        helper.make_node(kind, [source, "Conv_0_input_scale", "Conv_0_input_zero"], [target], name=target)
        for kind, source, target in (("QuantizeLinear", node.input[0], "hq"), ("DequantizeLinear", "hq", "hd"))
    ]
    position = list(model.graph.node).index(node)
    node.input[0] = "hd"
    for new in reversed(made):
        model.graph.node.insert(position, new)


DAMAGE = {
    unsigned: "quantises to uint8; TensorRT only warns",
    shifted: "has a zero point other than 0",
    a_scale_a_channel: "has a scale a channel on an activation",
    nothing_behind: "Conv reads an 8-bit tensor",
    endless_scale: "a scale is not a positive finite number",
    half_a_convolution: "Conv_1: only its weight is quantised",
    quantised_head: "MatMul of the scoring head is quantised",
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_lint_knows_what_tensorrt_refuses_or_only_warns_of(graph, ranges, damage):
    model = quantise(graph, ranges["min-max"], TRT)
    damage(model)
    assert any(DAMAGE[damage] in str(problem) for problem in lint(model, precision=TRT))


def test_each_dialect_is_refused_in_the_place_of_the_other(graph, ranges):
    problems = [str(problem) for problem in lint(quantise(graph, ranges["min-max"], CPU), precision=TRT)]
    assert any("uint8" in problem for problem in problems)
    assert any("dequantises int32, which TensorRT refuses" in problem for problem in problems)
    problems = [str(problem) for problem in lint(quantise(graph, ranges["min-max"], TRT), precision=CPU)]
    assert any("its input is signed" in problem for problem in problems)
    assert any("its bias is float" in problem for problem in problems)
    assert any("its output is not quantised" in problem for problem in problems)
    for precision in PRECISIONS[1:]:
        assert any("would run in FP32" in str(problem) for problem in lint(graph, precision=precision))


def test_lint_names_mixed_types_and_a_distance_in_half(graph):
    half = convert_fp16(graph)
    cast = next(node for node in half.graph.node if node.op_type == "Cast" and node.output[0].endswith("_fp32"))
    for node in half.graph.node:
        for place, name in enumerate(node.input):
            if name == cast.output[0]:
                node.input[place] = cast.input[0]
    problems = [str(problem) for problem in lint(half, precision="fp16")]
    assert any("mixes float" in problem for problem in problems)
    assert any("in half overflows or loses small differences" in problem for problem in problems)


# Bundles


def test_a_bundle_in_every_precision(small, tmp_path):
    report = export_bundle(small, tmp_path / "small.edgead", precisions=PRECISIONS, max_drop=0.2)
    assert report.passed
    assert list(report.parity) == [f"model.{precision}.onnx" for precision in PRECISIONS]
    assert report.parity["model.fp32.onnx"]["onnxruntime"].flips == 0
    simulated = report.parity["model.fp16.onnx"][SIMULATED]
    assert simulated.flips == 0
    assert simulated.half_margin is not None
    assert simulated.half_margin > 100
    assert report.parity["model.fp16.onnx"]["onnxruntime"].note == "weights rounded only"
    judges = {TRT: (SIMULATED_INT8,), CPU: (SIMULATED_INT8, "onnxruntime", "openvino")}
    for precision, runtimes in judges.items():
        records = report.parity[f"model.{precision}.onnx"]
        assert set(records) == set(runtimes)
        for runtime in runtimes:
            drop = records[runtime].drop
            assert drop is not None
            assert 0 < drop <= 0.2
    note = report.parity[f"model.{TRT}.onnx"][SIMULATED_INT8].note
    assert note is not None
    assert note.startswith("exact integer sums, simulated")
    with Bundle.open(tmp_path / "small.edgead") as bundle:
        manifest = bundle.manifest
        assert not any("calibration" in name for name in manifest.members)
        assert manifest.precisions["fp32"].threshold is None
        for precision in PRECISIONS[1:]:
            section = manifest.precisions[precision].threshold
            assert section is not None
            assert section.value != manifest.threshold.value
            assert section.value == pytest.approx(manifest.threshold.value, abs=0.2 * small.scale)
            assert section.model_copy(update={"value": manifest.threshold.value}) == manifest.threshold
        assert [manifest.precisions[name].saturation_free for name in PRECISIONS] == [False, False, False, True]
        for precision in ("fp16", CPU):
            with Inspector.open(bundle.path, backend="onnxruntime", precision=precision) as inspector:
                assert inspector.threshold == manifest.precisions[precision].threshold.value
    for precision in ("fp32", "fp16", CPU):
        assert check_bundle(tmp_path / "small.edgead", backend="onnxruntime", precision=precision).passed
    rows = bench(tmp_path / "small.edgead", backends=["onnxruntime", "openvino"], frames=1, frame_size=(64, 64)).rows
    both = [(name, precision) for name in ("onnxruntime", "openvino") for precision in ("fp32", CPU)]
    assert [(row.backend.name, row.precision) for row in rows] == both
    assert [row.backend.precision for row in rows] == ["fp32", "int8"] * 2


def test_plain_graphs_for_those_who_build_by_hand(small, tmp_path):
    report = export_graphs(small, tmp_path / "graphs", precisions=["fp16"])
    assert sorted(path.name for path in (tmp_path / "graphs").glob("*.onnx")) == ["model.fp16.onnx", "model.fp32.onnx"]
    assert report.size > 0
    open_backend("onnxruntime", tmp_path / "graphs" / "model.fp16.onnx").close()
    with pytest.raises(ConfigError, match="not empty"):
        export_graphs(small, tmp_path / "graphs", precisions=["fp16"])


def refused(model: Exportable, tmp_path: Path, **arguments) -> ParityError:
    out = tmp_path / "small.edgead"
    out.write_bytes(b"the bundle of yesterday")
    with pytest.raises(ParityError, match="nothing was written") as caught:
        export_bundle(model, out, **arguments)
    assert out.read_bytes() == b"the bundle of yesterday"
    assert caught.value.report is not None
    assert caught.value.report["passed"] is False
    return caught.value


def test_planted_overflow_is_refused(exportable, tmp_path):
    # Harmless in FP32, where a power of two changes no digit.
    error = refused(make(exportable, 2.0**15), tmp_path, precisions=["fp16"])
    assert f"{SIMULATED} in fp16" in str(error)
    assert "overflows half (65504)" in str(error)
    assert error.report is not None
    assert error.report["failed"][0] == ["model.fp16.onnx", SIMULATED]
    report = export_bundle(make(exportable, 2.0**15), tmp_path / "b.edgead", precisions=["fp16"], allow_drift=True)
    assert report.parity["model.fp16.onnx"][SIMULATED].drift_allowed
    assert not report.passed


def test_fp16_spares_the_first_convolutions_where_rounding_moves_scores_too_far(small, tmp_path, monkeypatch):
    out = tmp_path / "small.edgead"
    whole = export_bundle(small, out, precisions=["fp16"]).parity["model.fp16.onnx"][SIMULATED]
    assert "first" not in (whole.note or "")
    for module in (promise_module, proving_module):
        monkeypatch.setattr(module, "FP16_DROP", 0.999 * whole.drop)
    report = export_bundle(small, out, precisions=["fp16"])
    spared = report.parity["model.fp16.onnx"][SIMULATED]
    assert spared.drop < whole.drop
    assert spared.note == "half arithmetic, simulated, first 2 of 5 convolutions in fp32"
    assert report.precisions["fp16"]["fp16"] == {"layers": 5, "leading_in_fp32": 2}
    with Bundle.open(out) as bundle, bundle.model_files("fp16") as file:
        half = onnx.load(file)
        assert half_convolutions(half) == (3, 5)
    for module in (promise_module, proving_module):
        monkeypatch.setattr(module, "FP16_DROP", 1e-9)
    assert "with first 2 of 5 convolutions in fp32" in str(refused(small, tmp_path, precisions=["fp16"]))


def swapped(model: onnx.ModelProto, leading: int) -> onnx.ModelProto:
    half = convert_fp16(model, leading)
    stem = next(node for node in half.graph.node if node.op_type == "Conv")
    weight = constants(half.graph)[stem.input[1]]
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight)[:, ::-1].copy(), weight.name))
    return half


def test_swapped_channels_in_one_precision_are_refused(small, tmp_path, monkeypatch):
    monkeypatch.setattr(precisions_module, "convert_fp16", swapped)
    assert f"{SIMULATED} in fp16" in str(refused(small, tmp_path, precisions=["fp16"]))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_clipped_calibration_is_refused(small, tmp_path, monkeypatch, dialect):
    def clipped(graphs, *rest):
        choice, _ = choose_int8(graphs, *rest)
        models, ranges = graphs.models, graphs.ranges
        small_ranges = {name: (0.1 * low, 0.1 * high) for name, (low, high) in ranges[FP32_FILE][choice.method].items()}
        return choice, {FP32_FILE: quantise(models[FP32_FILE], small_ranges, dialect)}

    FP32_FILE = "model.fp32.onnx"  # noqa: N806
    monkeypatch.setattr(precisions_module, "choose_int8", clipped)
    error = refused(small, tmp_path, precisions=[dialect], max_drop=0.2)
    assert f"in {dialect} moves scores by" in str(error)


def test_what_no_layer_can_mend_is_refused_with_its_table(small, tmp_path):
    error = refused(small, tmp_path, precisions=[CPU], max_drop=1e-7)
    assert error.report is not None
    made = error.report["precisions"][CPU]["int8"]
    assert len(made["sensitivity"]) == made["layers"] == 5
    report = export_bundle(small, tmp_path / "b.edgead", precisions=[CPU], max_drop=1e-7, allow_drift=True)
    assert not report.passed
    assert report.parity[f"model.{CPU}.onnx"]["onnxruntime"].drift_allowed


def test_layers_stay_in_float_until_the_images_at_hand_agree(small, tmp_path, monkeypatch):
    # Ranges and layers are chosen by dim images; bright ones, which clip, are what they are judged by.
    folder = tmp_path / "bright"
    folder.mkdir()
    for name, data in small.references:
        (folder / name).write_bytes(data)
    dim = [(name, dimmed(data, name)) for name, data in small.references]
    arguments = {"precisions": [CPU], "images": [folder], "max_drop": 0.02}
    model = replace(small, references=dim, calibration=dim)
    report = export_bundle(model, tmp_path / "a.edgead", **arguments)
    assert report.passed
    assert all(record.drop <= 0.02 for record in report.parity[f"model.{CPU}.onnx"].values())
    monkeypatch.setattr("edgead.export.parity.gate._STRICTER", 0)
    once = refused(model, tmp_path, **arguments)
    assert once.report is not None
    assert len(report.precisions[CPU]["int8"]["kept"]) > len(once.report["precisions"][CPU]["int8"]["kept"])


def dimmed(data: bytes, name: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray((decode_image(data, name) * 0.4).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_wrong_arguments(small, tmp_path):
    with pytest.raises(ConfigError, match="unknown precision 'int9-cpu'"):
        export_bundle(small, tmp_path / "a.edgead", precisions=["int9-cpu"])
    with pytest.raises(ConfigError, match="--max-drop must be above 0"):
        export_bundle(small, tmp_path / "a.edgead", precisions=[CPU], max_drop=0.0)
    with pytest.raises(ConfigError, match="--calibration DIR"):
        export_bundle(replace(small, calibration=()), tmp_path / "a.edgead", precisions=[CPU])


def test_onnx_runtime_quantises_no_layer_that_was_kept(tmp_path):
    # Its optimiser would: float weights between two 8-bit tensors.
    model = pointwise(1.0)
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    shapes = {"conv_a": (8, 3, 1, 1), "conv_b": (8, 8, 1, 1), "conv": (1, 8, 1, 1)}
    rng = np.random.default_rng(0)
    for name, shape in shapes.items():
        model.graph.initializer.append(numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), f"{name}_w"))
    first = helper.make_node("Conv", ["x", "conv_a_w"], ["a"], name="conv_a")
    second = helper.make_node("Conv", ["a", "conv_b_w"], ["b"], name="conv_b")
    conv.input[:] = ["b", "conv_w"]
    place = list(model.graph.node).index(conv)
    model.graph.node.insert(place, second)
    model.graph.node.insert(place, first)
    images = rng.integers(0, 256, (4, 4, 4, 3), dtype=np.uint8)
    ranges = activation_ranges(model, watched_tensors(model), images)["min-max"]
    kept = quantise(model, ranges, CPU, ["conv_b"])
    onnx.save(kept, str(tmp_path / "kept.onnx"))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    plain = onnxruntime.InferenceSession(kept.SerializeToString(), options, providers=["CPUExecutionProvider"])
    expected = plain.run(["map"], {"images": images})[0]
    found = open_backend("onnxruntime", tmp_path / "kept.onnx").run(images).map
    assert np.abs(found - expected).mean() < 0.2 * np.abs(run(kept, images) - expected).mean()
