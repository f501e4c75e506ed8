"""Weights in INT8 whose sums never saturate, on whatever processor.

Processors without dot products of bytes (x86 before AVX-512 VNNI and AVX-VNNI) multiply unsigned by signed bytes in
pairs and add each pair up in 16 bits, which saturate at 32767: ``vpmaddubsw``. Two large weights side by side then give
another sum than on a newer processor, and so another score. The runtimes pair inputs that follow each other in the
order kernel row, kernel column, channel. So of all such neighbours of a filter the sum stays within `PAIR_LIMIT`; which
of them are paired (the even with the odd ones, or with padding in between) then makes no difference.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgead.runtime.backends.saturation_probe import PROBE_SCORE, PROBE_SIDE

LEVELS = 127
PAIR_LIMIT = 128  # 255 * 128 <= 32767, the largest activation times what two weights of one sign may sum up to


def in_kernel_order(weights: NDArray[np.generic]) -> NDArray[np.generic]:
    """Return weights ``(O, C, ...)`` as ``(O, K)``, K in the order of kernel positions and, within each, channels."""
    return np.moveaxis(weights, 1, -1).reshape(len(weights), -1)


def largest_pair(weights: NDArray[np.generic]) -> NDArray[np.float64]:
    """Return ``(O,)``, the largest magnitude that two neighbours of one sign sum up to in each of ``(O, C, ...)``."""
    ordered = in_kernel_order(weights).astype(np.float64)
    if ordered.shape[1] < 2:
        return np.zeros(len(ordered))
    found = np.zeros(len(ordered))
    for part in (np.maximum(ordered, 0.0), np.maximum(-ordered, 0.0)):
        found = np.maximum(found, (part[:, 1:] + part[:, :-1]).max(1))
    return found


def may_saturate(whole: NDArray[np.generic]) -> bool:
    """Whether integers ``(O, C, ...)`` can give another sum on a processor that adds pairs up in 16 bits."""
    return bool((largest_pair(whole) > PAIR_LIMIT).any())


def bounds_after(before: NDArray[np.float64] | None) -> tuple[NDArray[np.float64] | float, NDArray[np.float64] | float]:
    """Return the least and the largest integer that may follow one in kernel order; None: it is the first."""
    if before is None:
        return -LEVELS, LEVELS
    low = np.maximum(-LEVELS, -PAIR_LIMIT - np.minimum(before, 0))
    return low, np.minimum(LEVELS, PAIR_LIMIT - np.maximum(before, 0))


def clip_pairs(whole: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return integers ``(O, C, ...)``, the second of two neighbours cut where they sum up to more than the limit."""
    moved = np.moveaxis(whole, 1, -1)
    ordered = moved.reshape(len(whole), -1).copy()
    for place in range(1, ordered.shape[1]):
        ordered[:, place] = np.clip(ordered[:, place], *bounds_after(ordered[:, place - 1]))
    return np.moveaxis(ordered.reshape(moved.shape), -1, 1)


def probe_graph() -> onnx.ModelProto:
    """Return the graph that `edgead.runtime.backends.saturation_probe` asks a backend with; kept there as a file.

    White pixels become 16 channels of 255, each multiplied by 127: the largest sums that eight bits can make.
    """
    channels = 16
    constants = {
        "unit": np.float32(1.0),
        "zero": np.uint8(0),
        "spread": np.eye(3, dtype=np.int8)[np.arange(channels) % 3].reshape(channels, 3, 1, 1),
        "largest": np.full((channels, channels, 1, 1), LEVELS, np.int8),
        "step": np.float32(255 * LEVELS * channels / PROBE_SCORE),
        "channel": np.array([1]),
        "places": np.array([1, 2]),
    }
    one, coarse = ["unit", "zero"], ["step", "zero"]
    steps: list[tuple[str, list[str], str, dict[str, Any]]] = [
        ("Cast", ["images"], "pixels", {"to": TensorProto.FLOAT}),
        ("Transpose", ["pixels"], "planes", {"perm": [0, 3, 1, 2]}),
        ("QuantizeLinear", ["planes", *one], "planes_q", {}),
        ("DequantizeLinear", ["planes_q", *one], "planes_dq", {}),
        ("DequantizeLinear", ["spread", "unit"], "spread_dq", {}),
        ("Conv", ["planes_dq", "spread_dq"], "wide", {}),
        ("QuantizeLinear", ["wide", *one], "wide_q", {}),
        ("DequantizeLinear", ["wide_q", *one], "wide_dq", {}),
        ("DequantizeLinear", ["largest", "unit"], "largest_dq", {}),
        ("Conv", ["wide_dq", "largest_dq"], "sums", {}),
        ("QuantizeLinear", ["sums", *coarse], "sums_q", {}),
        ("DequantizeLinear", ["sums_q", *coarse], "sums_dq", {}),
        ("Div", ["sums_dq", "step"], "levels", {}),
        ("ReduceMin", ["levels", "channel"], "map", {"keepdims": 0}),
        ("ReduceMin", ["map", "places"], "score", {"keepdims": 0}),
    ]
    graph = helper.make_graph(
        [helper.make_node(kind, given, [made], name=made, **rest) for kind, given, made, rest in steps],
        "saturation_probe",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", PROBE_SIDE, PROBE_SIDE, 3])],
        [
            helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch"]),
            helper.make_tensor_value_info("map", TensorProto.FLOAT, ["batch", PROBE_SIDE, PROBE_SIDE]),
        ],
        [numpy_helper.from_array(np.asarray(values), name) for name, values in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
