"""The nodes of the domain ``edgead``: one result on torch, in float64, on ONNX Runtime and OpenVINO."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from edgead.detectors.heads import LocationGaussians, LowRankWhitening, MahalanobisHead, NearestNeighbourHead
from edgead.export.exportable import Exportable
from edgead.export.exporting import export_bundle, export_graphs
from edgead.export.graph.lint import lint
from edgead.export.graph.tracing import export_onnx
from edgead.export.ops.knn import knn_reference, knn_score_op, knn_search, knn_search_op
from edgead.export.ops.mahalanobis import mahalanobis_reference, mahalanobis_score, mahalanobis_score_op
from edgead.export.ops.nodes import attach_bodies, inline_nodes, scoring_nodes
from edgead.export.options import CPU, TRT
from edgead.export.torch_backend import TorchBackend
from edgead.runtime.backends import open_backend
from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.decision.threshold import calibrate
from edgead.runtime.device.check import check_bundle
from edgead.runtime.errors import BackendError, ExportError
from edgead.runtime.imaging.decode import decode_image
from edgead.runtime.imaging.preprocess import resize

Arrays = dict[str, NDArray[Any]]
PLUGIN = {"plugin_namespace": "edgead", "plugin_version": "1"}
RUNTIMES = ("torch", "onnxruntime", "onnxruntime inlined", "openvino inlined")


def node_model(
    op: str, data: NDArray[Any], constants: Arrays, outputs: list[str], **attributes: Any
) -> onnx.ModelProto:
    """One node, its first input the graph's and the others constants."""
    first = "queries" if op == "KnnScore" else "rows"
    node = helper.make_node(op, [first, *constants], outputs, domain="edgead", name="score", **PLUGIN, **attributes)
    kinds = {"distance": TensorProto.FLOAT, "index": TensorProto.INT64}
    graph = helper.make_graph(
        [node],
        "node",
        [helper.make_tensor_value_info(first, TensorProto.FLOAT, data.shape)],
        [helper.make_tensor_value_info(name, kinds[name], [None] * (3 if op == "KnnScore" else 2)) for name in outputs],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    attach_bodies(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def execute(runtime: str, model: onnx.ModelProto, data: NDArray[Any]) -> list[NDArray[Any]]:
    name = model.graph.input[0].name
    if runtime == "onnxruntime":
        assert len(model.functions) == 1
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        return session.run(None, {name: data})
    plain = inline_nodes(model)
    assert not plain.functions
    assert not scoring_nodes(plain)
    onnx.checker.check_model(plain, full_check=True)
    if runtime == "onnxruntime inlined":
        session = onnxruntime.InferenceSession(plain.SerializeToString(), providers=["CPUExecutionProvider"])
        return session.run(None, {name: data})
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": "1"}
    compiled = openvino.Core().compile_model(openvino.Core().read_model(plain.SerializeToString()), "CPU", settings)
    found = compiled({name: data})
    return [found[value.name] for value in plain.graph.output]


# images, patches, channels, keys, k
KNN = {
    "one of each": (1, 1, 1, 1, 1),
    "ragged": (2, 5, 3, 7, 1),
    "odd sizes": (3, 17, 31, 33, 1),
    "wide": (1, 8, 130, 257, 1),
    "several neighbours": (2, 17, 31, 33, 4),
    "all neighbours": (1, 6, 5, 9, 9),
}


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("kind", ["fp32", "ties", "fp16"])
@pytest.mark.parametrize("case", KNN)
def test_nearest_neighbours_are_the_same_everywhere(case: str, kind: str, runtime: str) -> None:
    images, patches, channels, rows, k = KNN[case]
    rng = np.random.default_rng(rows)
    queries = rng.normal(size=(images, patches, channels)).astype(np.float32)
    bank = rng.normal(size=(rows, channels)).astype(np.float32)
    if kind == "ties":
        # Whole numbers are summed without an error, so that equal distances are equal to the bit.
        queries, bank = np.rint(2 * queries), np.rint(bank)
        bank[rows // 2 :] = bank[: rows - rows // 2]
    halves = -2.0 * bank.astype(np.float64)
    lengths = (bank.astype(np.float64) ** 2).sum(1, keepdims=True)
    keys = np.concatenate([halves, lengths], 1).T.astype(np.float16 if kind == "fp16" else np.float32)
    # The reference computes from differences; what half did to the lengths is the keys' own and must be taken along.
    if kind == "fp16":
        keys[-1] = 0
        squared = (queries.astype(np.float64) ** 2).sum(2)[:, :, None] + queries.astype(np.float64) @ keys[:-1]
        order = np.argsort(squared, axis=2, kind="stable")[:, :, :k]
        distance = np.sqrt(np.maximum(np.take_along_axis(squared, order, 2), 0.0))
        all_distances = np.sqrt(np.maximum(squared, 0.0))
    else:
        distance, order = knn_reference(queries, keys, k)
        all_distances = np.empty((images, patches, rows))
        np.put_along_axis(all_distances, *reversed(knn_reference(queries, keys, rows)), axis=2)
    if runtime == "torch":
        found, index = (part.numpy() for part in knn_search(torch.from_numpy(queries), torch.from_numpy(keys), k))
    else:
        model = node_model("KnnScore", queries, {"keys": keys}, ["distance", "index"], k=k)
        found, index = execute(runtime, model, queries)
    assert found.shape == index.shape == (images, patches, k)
    tolerance = 2e-4 * max(1.0, float(np.abs(queries).max()) * channels**0.5)
    assert np.abs(found - distance).max() < tolerance
    assert (np.diff(found, axis=2) >= -1e-6).all()
    # Each of them once, and each as far away as it is said to be; of equal ones the first.
    assert (np.diff(np.sort(index, axis=2), axis=2) > 0).all()
    assert np.abs(np.take_along_axis(all_distances, index.astype(np.int64), 2) - distance).max() < tolerance
    if kind == "ties" and (k == 1 or not runtime.startswith("openvino")):
        assert np.array_equal(index, order)


# images, locations, channels, rows of a factor
LOCATIONS = {
    "one of each": (1, 1, 1, 1),
    "ragged": (2, 5, 3, 3),
    "odd sizes": (3, 35, 17, 17),
    "few rows": (2, 12, 9, 4),
}


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("kind", ["fp32", "fp16"])
@pytest.mark.parametrize("low_rank", [False, True], ids=["whole", "low rank"])
@pytest.mark.parametrize("case", LOCATIONS)
def test_mahalanobis_distances_are_the_same_everywhere(case: str, low_rank: bool, kind: str, runtime: str) -> None:
    images, locations, channels, rank = LOCATIONS[case]
    rng = np.random.default_rng(channels)
    rows = rng.normal(size=(images, locations, channels)).astype(np.float32)
    factors = rng.normal(size=(locations, rank, channels)) / channels**0.5
    arrays: Arrays = {
        "mean": rng.normal(size=(locations, channels)).astype(np.float32),
        "factors": factors.astype(np.float16 if kind == "fp16" else np.float32),
    }
    if low_rank:
        # Small enough for some squared distances to come out below zero, where the node must give zero.
        arrays["precision"] = rng.uniform(0.1, 3.0, locations).astype(np.float32)
    expected = mahalanobis_reference(rows, **arrays)
    if runtime == "torch":
        found = mahalanobis_score(torch.from_numpy(rows), **{n: torch.from_numpy(a) for n, a in arrays.items()}).numpy()
    else:
        (found,) = execute(runtime, node_model("MahalanobisScore", rows, arrays, ["distance"]), rows)
    assert found.shape == (images, locations)
    assert np.abs(found**2 - expected**2).max() < 1e-4
    assert found.dtype == np.float32


def test_the_torch_operators_keep_to_their_schema() -> None:
    queries, keys = torch.randn(2, 5, 3), torch.randn(4, 7)
    for op in (knn_score_op, knn_search_op):
        torch.library.opcheck(op, (queries, keys, 2), test_utils=("test_schema", "test_faketensor"))
    arguments = (torch.randn(2, 5, 3), torch.randn(5, 3), torch.randn(5, 2, 3), torch.rand(5))
    torch.library.opcheck(mahalanobis_score_op, arguments, test_utils=("test_schema", "test_faketensor"))


def test_the_operators_are_mapped_over_banks_as_a_routed_graph_does() -> None:
    queries, keys = torch.randn(4, 2, 5, 3), torch.randn(4, 4, 7)
    mapped = torch.vmap(lambda one, bank: knn_search(one, bank, 2))(queries, keys)
    for number in range(4):
        distance, index = knn_search(queries[number], keys[number], 2)
        assert torch.allclose(mapped[0][number], distance)
        assert torch.equal(mapped[1][number], index)
    rows, mean, factors = torch.randn(4, 2, 5, 3), torch.randn(4, 5, 3), torch.randn(4, 5, 2, 3)
    found = torch.vmap(lambda *one: mahalanobis_score(*one, None))(rows, mean, factors)
    assert torch.allclose(found[2], mahalanobis_score(rows[2], mean[2], factors[2]))


class Scorer(nn.Module):
    """A small network with a real head behind it."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 4, stride=4)
        self.grow = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        for weight in (*self.stem.parameters(), *self.grow.parameters()):
            weight.data = torch.randn(weight.shape, generator=generator) / weight.shape[0]
        bank = torch.randn(40, 8, generator=generator)
        neighbours = torch.cdist(bank, bank).topk(3, largest=False).indices
        mean, factors = torch.randn(64, 8, generator=generator), torch.randn(64, 8, 8, generator=generator)
        heads = {
            "bank": lambda: NearestNeighbourHead(bank),
            "reweighted": lambda: NearestNeighbourHead(bank, neighbours),
            "gaussians": lambda: MahalanobisHead(mean, factors),
            "low rank": lambda: LocationGaussians(mean, LowRankWhitening(factors[:, :2] / 9, torch.full((64,), 2.0))),
        }
        self.kind = kind
        self.head = heads[kind]()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.grow(torch.relu(self.stem((images.float().permute(0, 3, 1, 2) - 127.0) / 60.0)))
        if isinstance(self.head, LocationGaussians):
            grid, weight = self.head.distances(features.flatten(2).transpose(1, 2), (8, 8)).reshape(-1, 8, 8), None
        else:
            grid, weight = self.head(features)
        score = grid.amax((1, 2))
        return (score if weight is None else score * weight), grid


NODES = {"bank": "KnnScore", "reweighted": "KnnScore", "gaussians": "MahalanobisScore", "low rank": "MahalanobisScore"}


@pytest.mark.parametrize("kind", NODES)
def test_heads_are_exported_as_nodes_that_run_unchanged(kind: str, tmp_path: Path) -> None:
    module = Scorer(kind).eval()
    model = export_onnx(module, 64, 64)
    (node,) = scoring_nodes(model)
    assert node.op_type == NODES[kind]
    texts = {one.name: one.s.decode() for one in node.attribute if one.type == onnx.AttributeProto.STRING}
    assert texts == PLUGIN
    assert [function.name for function in model.functions] == [NODES[kind]]
    assert lint(model) == []
    plain = inline_nodes(model)
    assert {one.domain for one in plain.graph.node} | {one.domain for one in plain.opset_import} == {""}
    assert lint(plain) == []
    names = [one.name for one in plain.graph.node]
    assert len(set(names)) == len(names)
    onnx.save(model, str(tmp_path / "nodes.onnx"))
    onnx.save(plain, str(tmp_path / "plain.onnx"))
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    expected = TorchBackend(module).run(images)
    for runtime, file in (("onnxruntime", "nodes"), ("onnxruntime", "plain"), ("openvino", "plain")):
        found = open_backend(runtime, tmp_path / f"{file}.onnx").run(images)
        assert np.abs(found.map - expected.map).max() < 1e-3
        assert np.abs(found.score - expected.score).max() < 1e-3
    # The same operators are executed, whichever of the two files it was.
    assert optimised(model, tmp_path) == optimised(plain, tmp_path)
    with pytest.raises(BackendError, match="has scoring nodes, which OpenVINO does not read"):
        open_backend("openvino", tmp_path / "nodes.onnx")


def optimised(model: onnx.ModelProto, folder: Path) -> list[str]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return sorted(node.op_type for node in onnx.load(str(folder / "optimised.onnx")).graph.node)


def as_exportable(exportable: Exportable, kind: str) -> Exportable:
    module = Scorer(kind).eval()
    images = [resize(decode_image(data, name), 64, 64) for name, data in exportable.references]
    scores = TorchBackend(module).run(np.stack(images)).score
    normals = (scores - np.ptp(scores)).tolist()
    threshold = calibrate(scores, 0.5)
    calibration = exportable.references
    return replace(
        exportable, module=module, grid=(8, 8), threshold=threshold, normal_scores=normals, calibration=calibration
    )


def graphs_of(path: Path) -> dict[str, onnx.ModelProto]:
    with Bundle.open(path) as bundle:
        precisions = bundle.manifest.precisions
        return {name: onnx.load_from_string(bundle.read(entry.file)) for name, entry in precisions.items()}


def test_what_is_made_for_tensorrt_keeps_its_nodes(exportable: Exportable, tmp_path: Path) -> None:
    model = as_exportable(exportable, "bank")
    precisions = ["fp16", TRT, CPU]
    report = export_bundle(model, tmp_path / "a.edgead", precisions=precisions, max_drop=0.9)
    assert report.passed
    kept = {name: [node.op_type for node in scoring_nodes(graph)] for name, graph in graphs_of(report.path).items()}
    assert kept == {"fp32": [], "fp16": ["KnnScore"], TRT: ["KnnScore"], CPU: []}
    # Proved on OpenVINO all the same, by what is inlined for it.
    assert set(report.parity["model.fp16.onnx"]) == {"simulated-fp16", "onnxruntime", "openvino"}
    for precision in ("fp32", "fp16", CPU):
        assert check_bundle(report.path, backend="onnxruntime", precision=precision).passed
    plain = export_graphs(model, tmp_path / "plain", precisions=["fp16"], plain=True)
    for file in plain.path.glob("*.onnx"):
        assert not scoring_nodes(onnx.load(str(file), load_external_data=False))
    records = (report.parity["model.fp16.onnx"], plain.parity["model.fp16.onnx"])
    assert records[0]["openvino"] == records[1]["openvino"]


def test_lint_wants_a_body_and_the_plugins_name() -> None:
    def damaged() -> onnx.ModelProto:
        data = np.zeros((1, 2, 3), np.float32)
        return node_model("KnnScore", data, {"keys": np.zeros((4, 5), np.float32)}, ["distance"], k=1)

    bare, renamed = damaged(), damaged()
    del bare.functions[:]
    assert any("score: KnnScore has no body" in str(problem) for problem in lint(bare))
    next(one for one in renamed.graph.node[0].attribute if one.name == "plugin_namespace").s = b"other"
    assert any("score: KnnScore names another plugin" in str(problem) for problem in lint(renamed))
    renamed.graph.node.append(renamed.graph.node[0])
    renamed.graph.node[1].attribute[0].i = 2
    with pytest.raises(ExportError, match="a graph holds one form of KnnScore"):
        attach_bodies(renamed)
    renamed.graph.node[0].op_type = "Guess"
    with pytest.raises(ExportError, match="no operator Guess"):
        attach_bodies(renamed)


# The vendor's library ends the process where it is asked for what it lacks, so it gets one of its own.
PARSE = """
import json, sys
import tensorrt_rtx as trt

asked = []

class Creator(trt.IPluginCreatorV3One):
    def __init__(self, name):
        trt.IPluginCreatorV3One.__init__(self)
        self.name, self.plugin_namespace, self.plugin_version = name, "edgead", "1"
        self.field_names = trt.PluginFieldCollection([trt.PluginField("k", b"", trt.PluginFieldType.INT32)])

    def create_plugin(self, name, fields, phase):
        asked.append([self.name, name, {field.name: int(field.data[0]) for field in fields}])
        return None  # nothing that this library could run

logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
creators = [Creator(name) for name in sys.argv[2:]]
for creator in creators:
    assert trt.get_plugin_registry().register_creator(creator, "edgead")
builder = trt.Builder(logger)
network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
parsed = trt.OnnxParser(network, logger).parse(open(sys.argv[1], "rb").read())
size = 0
if parsed:
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    size = builder.build_serialized_network(network, config).nbytes
print(json.dumps({"parsed": parsed, "asked": asked, "bytes": size}), flush=True)
"""


@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize(("name", "fields"), [("KnnScore", {"k": 3}), ("MahalanobisScore", {})])
def test_tensorrt_builds_the_body_and_asks_for_a_plugin_that_is_registered(
    name: str, fields: dict[str, int], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    data = rng.normal(size=(1, 20, 8)).astype(np.float32)
    arrays = {
        "KnnScore": {"keys": rng.normal(size=(9, 40))},
        "MahalanobisScore": {"mean": rng.normal(size=(20, 8)), "factors": rng.normal(size=(20, 8, 8))},
    }[name]
    constants = {key: values.astype(np.float32) for key, values in arrays.items()}
    onnx.save(node_model(name, data, constants, ["distance"], **fields), str(tmp_path / "node.onnx"))

    def parse(*creators: str) -> dict[str, Any]:
        command = [sys.executable, "-c", PARSE, str(tmp_path / "node.onnx"), *creators]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.stdout, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    alone = parse()
    assert alone["parsed"]
    assert alone["bytes"] > 0
    asked = parse(name, "Another")
    assert asked["asked"] == [[name, "score", fields]]
    assert not asked["parsed"]


@pytest.mark.parametrize("fixed", [True, False])
def test_a_node_says_whether_its_keys_are_a_constant(fixed: bool) -> None:
    random = np.random.default_rng(0)
    data = random.standard_normal((1, 5, 4)).astype(np.float32)
    keys = random.standard_normal((5, 7)).astype(np.float32)
    model = node_model("KnnScore", data, {"keys": keys}, ["distance"], k=1)
    if not fixed:
        del model.graph.initializer[:]
        model.graph.input.append(helper.make_tensor_value_info("keys", TensorProto.FLOAT, keys.shape))
    for _ in range(2):  # again after a change of the graph, and still said once
        attach_bodies(model)
        (node,) = scoring_nodes(model)
        assert [one.i for one in node.attribute if one.name == "fixed_keys"] == [int(fixed)]
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    given = {"queries": data} if fixed else {"queries": data, "keys": keys}
    padded = np.pad(data[0], ((0, 0), (0, 1)), constant_values=1.0)
    squared = np.square(data[0]).sum(1) + (padded @ keys).min(1)
    np.testing.assert_allclose(session.run(None, given)[0][0, :, 0], np.sqrt(np.maximum(squared, 0)), rtol=1e-5)
