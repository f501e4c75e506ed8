"""The plugin for TensorRT, without TensorRT and without a GPU: built by nvcc, and with the simulator in its place."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgead.export.kernels.toolkit import build_plugin
from edgead.runtime.backends.gpu_driver import cuda_driver
from tests.cuda import toolchain, wheels


@pytest.fixture(scope="module")
def headers() -> Path:
    return wheels.tensorrt_headers()


@pytest.fixture(scope="module")
def plugin(headers: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `edgead build-plugin` makes; two GPUs, so that the list is one."""
    toolchain.nvcc()
    path = tmp_path_factory.mktemp("plugin") / "libedgead_plugin.so"
    assert build_plugin(path, compute_capabilities=["8.7"], tensorrt_include=headers) == [87]
    return path


def run_harness(headers: Path, library: Path, kind: str) -> subprocess.CompletedProcess[str]:
    program = toolchain.plugin_harness(headers)
    return subprocess.run([program, library, kind], capture_output=True, text=True, errors="replace", timeout=300)


@pytest.mark.skipif(cuda_driver().problem is None, reason="with a GPU a call does not fail")
def test_the_library_lives_through_what_tensorrt_does(headers: Path, plugin: Path) -> None:
    done = run_harness(headers, plugin, "gpu")
    assert (done.returncode, done.stdout) == (0, "0 failures\n"), done.stdout + done.stderr


def test_the_library_needs_no_tensorrt_and_shows_two_names(plugin: Path) -> None:
    symbols = subprocess.run(["nm", "-D", plugin], capture_output=True, text=True, check=True).stdout
    assert "nvinfer" not in symbols
    defined = {line.split()[-1] for line in symbols.splitlines() if " T " in line}
    assert defined == {"getCreators", "setLoggerFinder"}


def test_calls_give_the_numbers_of_the_nodes(headers: Path) -> None:
    """The real source's launches and scratch memory; the kernels run on the CPU, under the address sanitizer."""
    done = run_harness(headers, toolchain.plugin_library(headers), "simulator")
    assert (done.returncode, done.stdout) == (0, "0 failures\n"), done.stdout + done.stderr


# A piece of a file that occurs once, what takes its place, and what must be said of it.
FAULTS = {
    "too little scratch memory": (
        "knn_node.cuh",
        "const size_t filling = wanted + 2 * static_cast<size_t>(multiprocessors) * Scan::kTileQueries;",
        "const size_t filling = wanted;",
        "heap-buffer-overflow",
    ),
    "keys not halved": ("knn_node.cuh", "-0.5f * to_float", "-1.0f * to_float", "line "),
    "an exception crosses the boundary": (
        "plugin/common.h",
        "  } catch (const std::exception& error) {",
        "  } catch (const std::bad_alloc& error) {",
        "an unknown exception",
    ),
    "a bank that may change is kept": ("plugin/knn_plugin.h", "parameters_.fixed_keys == 1 ?", "true ?", "line "),
    "a bank is made in every call": ("plugin/kept_bank.h", "keys == keys_ &&", "false &&", "line "),
    "a bank of other keys is taken": ("plugin/kept_bank.h", "keys == keys_ &&", "true &&", "line "),
    "a bank is made while something records": (
        "plugin/kept_bank.h",
        "if (recording(stream)) return nullptr;",
        "",
        "an allocation ends the recording",
    ),
    "a bank is never freed": ("plugin/kept_bank.h", "~KeptBank() { release(); }", "", "leaked in 2 allocation"),
    "the old bank is not freed": (
        "plugin/kept_bank.h",
        "    release();\n    if (cudaMalloc",
        "    if (cudaMalloc",
        "leaked in 1 allocation",
    ),
    "memory that is short is not noticed": (
        "plugin/kept_bank.h",
        "if (cudaMalloc(&memory_, sizes.bank_bytes()) != cudaSuccess) {",
        "cudaMalloc(&memory_, sizes.bank_bytes());\n    if (false) {",
        "store to null pointer",
    ),
    "too little memory for a bank": (
        "knn_node.cuh",
        "return counting.used();",
        "return counting.used() / 2;",
        "overflow",
    ),
    "precision forgotten": ("plugin/mahalanobis_plugin.h", "parameters_.inputs == 4 ?", "false ?", "line "),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_the_harness_finds_faults(fault: str, headers: Path, tmp_path: Path) -> None:
    file, old, new, said = FAULTS[fault]
    kernels = tmp_path / "kernels"
    shutil.copytree(toolchain.KERNELS, kernels, ignore=shutil.ignore_patterns("__pycache__"))
    text = (kernels / file).read_text()
    assert text.count(old) == 1
    (kernels / file).write_text(text.replace(old, new))
    done = run_harness(headers, toolchain.plugin_library(headers, kernels=kernels), "simulator")
    assert done.returncode != 0
    assert said in done.stdout + done.stderr


# TensorRT-RTX has a parser and a registry, and no plugins: it asks the creator, takes what it makes, and then the
# process ends. So it gets one of its own, and what was said until then is what counts.
PARSE = """
import sys
import tensorrt_rtx as trt
logger = trt.Logger(trt.Logger.VERBOSE)
registry = trt.get_plugin_registry()
assert registry.load_library(sys.argv[2]) is not None
ours = [c for c in registry.all_creators if c.plugin_namespace == "edgead"]
names = sorted((c.name, c.plugin_version, c.plugin_namespace) for c in ours)
print("creators", names, flush=True)
builder = trt.Builder(logger)
network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
parser = trt.OnnxParser(network, logger)
print("parsed", parser.parse(open(sys.argv[1], "rb").read()), flush=True)
print([parser.get_error(i).desc() for i in range(parser.num_errors)], flush=True)
"""


def node_model(op: str, k: int) -> bytes:
    """A graph of one scoring node with its body of plain operators, written without this project's exporter."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    plugin = {"plugin_namespace": "edgead", "plugin_version": "1"}
    shapes = {"KnnScore": {"keys": (9, 40)}, "MahalanobisScore": {"mean": (20, 8), "factors": (20, 8, 8)}}[op]
    attributes = {"k": k} if op == "KnnScore" else {}
    first = "queries" if op == "KnnScore" else "rows"
    node = helper.make_node(op, [first, *shapes], ["distance"], domain="edgead", name="score", **plugin, **attributes)
    body = helper.make_function(
        "edgead",
        op,
        [first, *shapes],
        ["distance"],
        [helper.make_node("Identity", [first], ["distance"])],
        [helper.make_opsetid("", 18)],
        attributes=[*attributes, *plugin],
    )
    graph = helper.make_graph(
        [node],
        "node",
        [helper.make_tensor_value_info(first, TensorProto.FLOAT, [1, 20, 8])],
        [helper.make_tensor_value_info("distance", TensorProto.FLOAT, [None] * (3 if op == "KnnScore" else 2))],
        [numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in shapes.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("edgead", 1)]
    made: bytes = helper.make_model(graph, opset_imports=opsets, functions=[body], ir_version=10).SerializeToString()
    assert onnx.load_from_string(made).functions
    return made


def parse(op: str, k: int, plugin: Path, folder: Path) -> str:
    (folder / "node.onnx").write_bytes(node_model(op, k))
    command = [sys.executable, "-c", PARSE, str(folder / "node.onnx"), str(plugin)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", timeout=300)
    said = done.stdout + done.stderr
    assert "creators [('KnnScore', '1', 'edgead'), ('MahalanobisScore', '1', 'edgead')]" in said, said
    assert f"Searching for plugin: {op}, plugin_version: 1, plugin_namespace: edgead" in said, said
    return said


@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize(("op", "k"), [("KnnScore", 3), ("MahalanobisScore", 0)])
def test_a_real_parser_asks_our_creator_for_the_node(op: str, k: int, plugin: Path, tmp_path: Path) -> None:
    assert f"Successfully created plugin: {op}" in parse(op, k, plugin, tmp_path)


@pytest.mark.usefixtures("rtx")
def test_a_real_parser_is_told_what_the_plugin_cannot_do(plugin: Path, tmp_path: Path) -> None:
    said = parse("KnnScore", 17, plugin, tmp_path)
    assert "edgead::KnnScore: k is 17, and the plugin finds 1 to 16 neighbours; build without the plugin" in said
    assert "parsed False" in said
