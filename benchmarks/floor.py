"""The least time that a bundle's graph can take on this CPU, and how much of it a backend reaches.

    python -m benchmarks.floor BUNDLE… [--threads 1,2] [--rounds 100] [--json FILE]

First the machine's ceilings, each the best that ONNX Runtime, OpenVINO or torch was seen to reach: large matrix
products in FP32 and INT8, dense and depthwise convolutions, reading memory. Then, from the exported graph itself, the
multiplications and additions of each kind and the bytes of weights that a frame needs. The floor of a node is the
larger of its arithmetic at the ceiling of its kind and its weights at the memory's rate; a graph's floor is the sum.
Whatever a perfect program could fuse away (activations, resizes, sums, minima) counts nothing, and a node in INT8
counts as the faster of INT8 and FP32. So no backend can go below the floor except where weights stay in the cache,
which is why both terms are shown, and with native code (rows ``…-native``), which needs less arithmetic, or fewer
weights, than the graph has.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from edgead.runtime.backends import Backend, available, open_backend
from edgead.runtime.backends.common import openvino_core
from edgead.runtime.backends.engine_cache import CACHE_VARIABLE
from edgead.runtime.bundle.bundle import Bundle
from edgead.runtime.errors import DataError
from edgead.runtime.files import atomic_write
from edgead.runtime.imaging.decode import decode_image
from edgead.runtime.imaging.preprocess import resize
from edgead.runtime.machine import describe_machine

BACKENDS = ("onnxruntime", "openvino")
_ROUNDS = 12


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What this machine does at best: 10^9 operations (a multiplication and an addition are two) or bytes a second."""

    threads: int
    gemm: float
    gemm_int8: float
    convolution: float
    depthwise: float
    read_gb: float


@dataclass(frozen=True, slots=True)
class Work:
    """What one frame needs of one graph: 10^9 operations by kind, 10^6 bytes of weights, and the floor in ms."""

    operations: Mapping[str, float]
    weights_mb: float
    arithmetic_ms: float
    weights_ms: float
    floor_ms: float


def measure_ceilings(threads: int) -> Ceilings:
    """Measure the machine with this many threads; some seconds."""
    random = np.random.default_rng(0)

    def floats(*shape: int) -> np.ndarray:
        return random.normal(size=shape).astype(np.float32)

    left, right = floats(1536, 1536), floats(1536, 1536)
    torch.set_num_threads(threads)
    a, b = torch.from_numpy(left), torch.from_numpy(right)
    product = 2 * 1536**3 / 1e9
    gemm = product / min(_best(lambda: torch.mm(a, b)), *_seconds(_graph("MatMul", left, right), {"x": left}, threads))
    bytes_left = random.integers(0, 255, (1536, 1536), dtype=np.uint8)
    bytes_right = random.integers(-127, 127, (1536, 1536), dtype=np.int8)
    integer = _graph("MatMulInteger", bytes_left, bytes_right)
    gemm_int8 = product / min(_seconds(integer, {"x": bytes_left}, threads, openvino=False))
    image = floats(1, 128, 64, 64)
    dense = _graph("Conv", image, floats(128, 128, 3, 3), pads=[1, 1, 1, 1], kernel_shape=[3, 3])
    convolution = 2 * 128 * 128 * 9 * 64 * 64 / 1e9 / min(_seconds(dense, {"x": image}, threads))
    deep = floats(1, 240, 32, 32)
    thin = _graph("Conv", deep, floats(240, 1, 5, 5), pads=[2, 2, 2, 2], kernel_shape=[5, 5], group=240)
    depthwise = 2 * 240 * 25 * 32 * 32 / 1e9 / min(_seconds(thin, {"x": deep}, threads))
    # More than any cache of a usual machine holds.
    block = torch.ones(64 << 20)
    read_gb = block.nbytes / 1e9 / _best(lambda: block.sum())
    return Ceilings(threads, gemm, gemm_int8, convolution, depthwise, read_gb)


def count_work(model: onnx.ModelProto, ceilings: Ceilings) -> Work:
    """Return what one frame needs of a graph with its weights; raises ValueError where a shape is not known."""
    shapes, constants = _shapes(model), _constants(model)
    operations: dict[str, float] = {}
    arithmetic = weights = floor = total = 0.0
    rates = asdict(ceilings)
    for node, kind, count in _nodes(model, shapes):
        seconds = count / rates[kind] if kind != "gemm_int8" else count / max(rates["gemm_int8"], rates["gemm"])
        size = sum(constants.get(name, 0) for name in node.input) / 1e9
        operations[kind] = operations.get(kind, 0.0) + count
        arithmetic += seconds
        weights += size / ceilings.read_gb
        total += size * 1e3
        floor += max(seconds, size / ceilings.read_gb)
    return Work(operations, total, arithmetic * 1e3, weights * 1e3, floor * 1e3)


def _nodes(model: onnx.ModelProto, shapes: Mapping[str, list[int]]) -> Iterator[tuple[onnx.NodeProto, str, float]]:
    """Yield the nodes that cannot be fused away with their kind and 10^9 operations."""
    quantised = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    for node in model.graph.node:
        if node.op_type == "Conv":
            weight, out = shapes[node.input[1]], shapes[node.output[0]]
            kind = "depthwise" if weight[1] == 1 and weight[0] > 1 else "convolution"
            # A 1x1 convolution is a matrix product.
            if kind == "convolution" and weight[2:] == [1, 1]:
                kind = "gemm"
            count = 2.0 * np.prod(out) * np.prod(weight[1:])
        elif node.op_type in ("MatMul", "Gemm", "MatMulInteger"):
            left, out = shapes[node.input[0]], shapes[node.output[0]]
            transposed = any(a.name == "transA" and a.i for a in node.attribute)
            kind, count = "gemm", 2.0 * np.prod(out) * left[0 if transposed else -1]
        else:
            continue
        if kind != "depthwise" and node.input[0] in quantised and node.input[1] in quantised:
            kind = "gemm_int8"
        yield node, kind, float(count) / 1e9


def _shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    """Return the shape of every value for one image."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for value in [*fixed.graph.input, *fixed.graph.output]:
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.dim_value = 1
    del fixed.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(fixed, strict_mode=True, data_prop=True).graph
    found = {
        value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in [*inferred.value_info, *inferred.input, *inferred.output]
    }
    found |= {tensor.name: list(tensor.dims) for tensor in fixed.graph.initializer}
    unknown = [name for name, shape in found.items() if 0 in shape]
    if unknown:
        raise ValueError(f"the shape of {unknown[0]} is not known")
    return found


def _constants(model: onnx.ModelProto) -> dict[str, int]:
    """Return the bytes of every constant, also of those that a node turns into another type before they are used."""
    found = {tensor.name: numpy_helper.to_array(tensor).nbytes for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("DequantizeLinear", "Cast") and node.input[0] in found:
            found[node.output[0]] = found[node.input[0]]
    return found


def _graph(kind: str, left: np.ndarray, right: np.ndarray, **attributes: Any) -> bytes:
    types = {"float32": TensorProto.FLOAT, "uint8": TensorProto.UINT8, "int8": TensorProto.INT8}
    out = TensorProto.INT32 if kind == "MatMulInteger" else TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node(kind, ["x", "w"], ["y"], **attributes)],
        "ceiling",
        [helper.make_tensor_value_info("x", types[left.dtype.name], left.shape)],
        [helper.make_tensor_value_info("y", out, None)],
        [numpy_helper.from_array(right, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    data: bytes = model.SerializeToString()
    return data


def _seconds(graph: bytes, feed: dict[str, np.ndarray], threads: int, *, openvino: bool = True) -> list[float]:
    """Return the best time of one small graph in each runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    found = [_best(lambda: session.run(None, feed))]
    if openvino and "openvino" in available():
        core = openvino_core()
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "graph.onnx")
            file.write_bytes(graph)
            hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": str(threads)}
            request = core.compile_model(core.read_model(str(file)), "CPU", hints).create_infer_request()
        found.append(_best(lambda: request.infer(feed, share_inputs=True, share_outputs=True)))
    return found


def _best(function: Callable[[], object], rounds: int = _ROUNDS) -> float:
    """Return the shortest of some runs in seconds: what disturbs can only add."""
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return min(times)


def open_all(file: Path, threads: int) -> dict[str, Backend]:
    """Open a graph with every CPU backend, and once more where ``edgead build --target cpu`` has made it faster."""
    opened: dict[str, Backend] = {}
    engines = os.environ.get(CACHE_VARIABLE)
    for name in (one for one in BACKENDS if one in available()):
        with tempfile.TemporaryDirectory() as empty:
            os.environ[CACHE_VARIABLE] = empty
            opened[name] = open_backend(name, file, threads=threads)
        del os.environ[CACHE_VARIABLE]
        if engines is not None:
            os.environ[CACHE_VARIABLE] = engines
        faster = open_backend(name, file, threads=threads)
        if "with native" in faster.describe().provider:
            opened[f"{name}-native"] = faster
        else:
            faster.close()
    return opened


def measure_bundle(path: Path, threads: int, rounds: int, ceilings: Ceilings) -> list[dict[str, Any]]:
    """Return one row a precision: its work, and the median network time on every CPU backend, interleaved."""
    rows = []
    with Bundle.open(path) as bundle:
        manifest = bundle.manifest
        name, png = bundle.references()[0]
        image = resize(decode_image(png, name), manifest.input.height, manifest.input.width)[None]
        for precision in (one for one in ("fp32", "int8-cpu") if one in manifest.precisions):
            with bundle.model_files(precision) as file:
                work = count_work(onnx.load(str(file)), ceilings)
                opened = open_all(file, threads)
                times: dict[str, list[float]] = {backend: [] for backend in opened}
                for turn in range(rounds + 10):
                    for backend, one in opened.items():
                        started = time.perf_counter()
                        one.run(image)
                        if turn >= 10:
                            times[backend].append((time.perf_counter() - started) * 1e3)
                for one in opened.values():
                    one.close()
            network = {backend: median(found) for backend, found in times.items()}
            rows.append(
                {
                    "bundle": path.name,
                    "detector": manifest.detector.name,
                    "precision": precision,
                    "threads": threads,
                    "work": asdict(work),
                    "network_ms": network,
                    "fraction_of_floor": {backend: work.floor_ms / ms for backend, ms in network.items()},
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    ceilings = [measure_ceilings(int(threads)) for threads in arguments.threads.split(",")]
    print("| threads | FP32 product | INT8 product | convolution | depthwise | memory |\n|---|---|---|---|---|---|")
    for one in ceilings:
        print(
            f"| {one.threads} | {one.gemm:.0f} GFLOP/s | {one.gemm_int8:.0f} GOP/s | {one.convolution:.0f} GFLOP/s "
            f"| {one.depthwise:.0f} GFLOP/s | {one.read_gb:.1f} GB/s |"
        )
    rows = [
        row
        for path in arguments.bundles
        for one in ceilings
        for row in measure_bundle(path, one.threads, arguments.rounds, one)
    ]
    print("\n| bundle, precision, threads | GFLOP | weights MB | arithmetic ms | weights ms | floor ms | network ms |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        work = row["work"]
        network = ", ".join(
            f"{name} {ms:.2f} ({row['fraction_of_floor'][name]:.0%})" for name, ms in row["network_ms"].items()
        )
        print(
            f"| {row['bundle']}, {row['precision']}, {row['threads']} | {sum(work['operations'].values()):.2f} "
            f"| {work['weights_mb']:.1f} | {work['arithmetic_ms']:.2f} | {work['weights_ms']:.2f} "
            f"| {work['floor_ms']:.2f} | {network} |"
        )
    if arguments.json:
        document = {
            "schema": "edgead.floor/1",
            "machine": describe_machine(),
            "ceilings": [asdict(one) for one in ceilings],
            "rows": rows,
        }
        with atomic_write(arguments.json, DataError) as stream:
            stream.write((json.dumps(document, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
