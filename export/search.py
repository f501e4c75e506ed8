"""A graph that searches a memory bank, in two parts: what comes before the search, and what comes after it.

The parts are for backends that search natively (`edgead.runtime.search`); together with that search they give what the
whole graph gives. They share their weights with it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import numpy_helper

from edgead.runtime.bundle import WEIGHTS
from edgead.runtime.search import MOST_CHANNELS

# In smaller banks the matrix product takes no time worth two more files.
FEWEST_ROWS = 1024
QUERIES, DISTANCES = "queries", "distances"


def split_at_search(model: onnx.ModelProto) -> tuple[onnx.ModelProto, onnx.ModelProto, bytes] | None:
    """Return ``images -> queries (N, P, C)``, ``distances (N, P) -> score, map``, and which weights are the bank.

    That is None for a graph without a bank, and for one whose result needs more of the image than the distances.

    Recognised is what `edgead.detectors.heads.NearestNeighbourHead` exports without re-weighting:
    ``sqrt(clip(|q|^2 + min([q 1] keys)))``, where all of these nodes serve nothing else.
    """
    graph = model.graph
    producer = {name: node for node in graph.node for name in node.output}
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    constants = {tensor.name: tensor for tensor in graph.initializer}

    def only_user(node: onnx.NodeProto, kind: str) -> onnx.NodeProto | None:
        following = users.get(node.output[0], [])
        return following[0] if len(following) == 1 and following[0].op_type == kind else None

    for product in [node for node in graph.node if node.op_type == "MatMul" and node.input[1] in constants]:
        keys, pad = constants[product.input[1]], producer.get(product.input[0])
        chain = product
        for kind in ("ReduceMin", "Add", "Clip", "Sqrt"):
            following = only_user(chain, kind)
            if following is None:
                break
            chain = following
        else:
            if pad is None or pad.op_type != "Pad" or len(keys.dims) != 2:
                continue
            if keys.dims[1] < FEWEST_ROWS or keys.dims[0] > MOST_CHANNELS + 1 or not _holds_norms(keys):
                continue
            # `edgead::KnnScore` gives the distances to k rows, of which there is one.
            chain = only_user(chain, "Squeeze") or chain
            outputs = [value.name for value in graph.output]
            if _needs_image(producer, outputs, chain):
                continue
            before = _part(model, ["images"], [pad.input[0]], (pad.input[0], QUERIES))
            after = _part(model, [chain.output[0]], outputs, (chain.output[0], DISTANCES))
            described = {"keys": f"{WEIGHTS}{_digest(keys)}.bin", "shape": list(keys.dims)}
            return before, after, json.dumps(described).encode()
    return None


def _needs_image(producer: Mapping[str, onnx.NodeProto], outputs: Sequence[str], distances: onnx.NodeProto) -> bool:
    """Whether the outputs are made from more than the distances, as where another score is joined to them."""
    waiting, seen = list(outputs), set(distances.output)
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        if name == "images":
            return True
        waiting += producer[name].input if name in producer else ()
    return False


def _part(
    model: onnx.ModelProto, inputs: Sequence[str], outputs: Sequence[str], renamed: tuple[str, str]
) -> onnx.ModelProto:
    part: onnx.ModelProto = onnx.utils.Extractor(model).extract_model(list(inputs), list(outputs))
    old, new = renamed
    for node in part.graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == old:
                    names[index] = new
    for value in [*part.graph.input, *part.graph.output]:
        if value.name == old:
            value.name = new
    for value in [value for value in part.graph.value_info if value.name == old]:
        part.graph.value_info.remove(value)
    part.ir_version = model.ir_version
    onnx.checker.check_model(part)
    return part


def _holds_norms(keys: onnx.TensorProto) -> bool:
    """Whether the last row holds the squared norms of what the others hold minus twice of."""
    values = numpy_helper.to_array(keys)
    if values.dtype != np.float32:
        return False
    norms = (values[:-1].astype(np.float64) ** 2).sum(0) / 4.0
    return bool(np.allclose(values[-1], norms, rtol=1e-5, atol=1e-5 * norms.max()))


def _digest(keys: onnx.TensorProto) -> str:
    values = numpy_helper.to_array(keys)
    return hashlib.sha256(values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()).hexdigest()
