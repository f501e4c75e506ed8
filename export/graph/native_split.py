"""A graph in two parts, around what CPUs compute natively: a memory bank, or a Gaussian for each location, if large.

The parts are for backends with native code (`edgead.runtime.backends.native`); together with it they give what the
whole graph gives. They share their weights with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from edgead.runtime.backends.native.knn import MOST_CHANNELS
from edgead.runtime.backends.native.library import DISTANCES, QUERIES
from edgead.runtime.bundle.layout import WEIGHTS
from edgead.runtime.bundle.native_description import Constant, Description

# With fewer the matrix product takes no time worth three more files.
FEWEST_ROWS = 1024
FEWEST_FACTORS = 1 << 18
_IMAGES = "images"
_CHANNELS_FIRST, _CHANNELS_LAST = [2, 1, 0], [1, 2, 0]


@dataclass(frozen=True, slots=True)
class Parts:
    """``images -> queries`` and ``distances -> score, map``, what goes between them, and its constants' files."""

    queries: onnx.ModelProto
    score: onnx.ModelProto
    description: Description
    weights: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class _Found:
    """Nodes that native code stands in for: they make the tensor ``result`` of the tensor ``source``."""

    kind: Literal["search", "gaussians"]
    source: str
    result: str
    constants: Mapping[str, NDArray[Any]]
    channels_first: bool = False
    triangular: bool = False


def split(model: onnx.ModelProto, bits: Literal[16, 32] = 32) -> Parts | None:
    """Return the graph in parts; None where it holds nothing that native code is worth it for.

    Of a graph with both kinds the Gaussians are computed natively.

    Args:
        model: of plain operators, see `edgead.export.ops.nodes.inline_nodes`.
        bits: in which triangular factors are to be held.
    """
    graph = _Graph(model.graph)
    for found in (*_gaussians(graph), *_search(graph)):
        cut = _cut(model, found)
        if cut is not None:
            constants, weights = {}, {}
            for name, values in found.constants.items():
                data = values.tobytes()
                file = f"{WEIGHTS}{hashlib.sha256(data).hexdigest()}.bin"
                weights[file] = data
                constants[name] = Constant(
                    file=file, dtype="<f2" if values.dtype == np.float16 else "<f4", shape=list(values.shape)
                )
            description = Description(
                kind=found.kind,
                constants=constants,
                carried=[value.name for value in cut[1].graph.input if value.name != DISTANCES],
                channels_first=found.channels_first,
                triangular=found.triangular,
                bits=bits if found.triangular else 32,
            )
            return Parts(*cut, description, weights)
    return None


class _Graph:
    """A graph's nodes by what they make and take, and its constants."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.nodes = list(graph.node)
        self._makers = {name: node for node in graph.node for name in node.output}
        self._constants = {tensor.name: tensor for tensor in graph.initializer}

    def maker(self, name: str, kind: str) -> onnx.NodeProto | None:
        """Return the node of a kind that makes a tensor."""
        node = self._makers.get(name)
        return node if node is not None and node.op_type == kind else None

    def user(self, node: onnx.NodeProto | None, kind: str) -> onnx.NodeProto | None:
        """Return the only node that takes what this one makes, where it is of a kind."""
        taking = [] if node is None else [one for one in self.nodes if node.output[0] in one.input]
        return taking[0] if len(taking) == 1 and taking[0].op_type == kind else None

    def constant(self, name: str) -> NDArray[Any] | None:
        """Return a constant, and one of half precision that is cast to full as it is stored."""
        cast = self.maker(name, "Cast")
        tensor = self._constants.get(name if cast is None else cast.input[0])
        if tensor is None or tensor.data_type not in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16):
            return None
        values = numpy_helper.to_array(tensor)
        return np.ascontiguousarray(values, values.dtype.newbyteorder("<"))

    def widened(self, name: str, axis: int) -> NDArray[Any] | None:
        """Return a constant that a node gives one more axis, at the end."""
        node = self.maker(name, "Unsqueeze")
        return self.constant(node.input[0]) if node is not None and self.axes(node) == [axis] else None

    def axes(self, node: onnx.NodeProto) -> list[int] | None:
        """Return the axes of a node that takes them as a constant input."""
        tensor = self._constants.get(node.input[1]) if len(node.input) > 1 else None
        return None if tensor is None else numpy_helper.to_array(tensor).tolist()

    def sum_of_squares(self, name: str) -> str | None:
        """Return the tensor whose squares are summed up along axis 1."""
        total = self.maker(name, "ReduceSum")
        squares = self.maker(total.input[0], "Mul") if total is not None and self.axes(total) == [1] else None
        return squares.input[0] if squares is not None and squares.input[0] == squares.input[1] else None


def _gaussians(graph: _Graph) -> Iterator[_Found]:
    """Yield what `edgead.export.ops.mahalanobis` became: ``sqrt(sum (W (x - m))^2)``, and the low-rank form of it."""
    for node in [node for node in graph.nodes if node.op_type == "Sqrt"]:
        result = graph.user(node, "Transpose")
        if result is None or list(result.attribute[0].ints) != [1, 0]:
            continue
        part, precision, whole = node.input[0], None, None
        clip = graph.maker(part, "Clip")
        rest = graph.maker(clip.input[0], "Sub") if clip is not None else None
        if rest is not None:
            product = graph.maker(rest.input[0], "Mul")
            if product is None:
                continue
            part, precision = rest.input[1], graph.widened(product.input[1], 1)
            whole = graph.sum_of_squares(product.input[0])
        whitened = graph.maker(graph.sum_of_squares(part) or "", "MatMul")
        deviation = graph.maker(whitened.input[1], "Sub") if whitened is not None else None
        columns = graph.maker(deviation.input[0], "Transpose") if deviation is not None else None
        if whitened is None or deviation is None or columns is None:
            continue
        factors, mean = graph.constant(whitened.input[0]), graph.widened(deviation.input[1], 2)
        order = list(columns.attribute[0].ints)
        if factors is None or mean is None or order not in (_CHANNELS_FIRST, _CHANNELS_LAST):
            continue
        if factors.ndim != 3 or factors.shape[::2] != mean.shape or factors.size < FEWEST_FACTORS:
            continue
        if rest is not None and (precision is None or whole != deviation.output[0]):
            continue
        constants = {"mean": mean, "factors": factors} | ({} if precision is None else {"precision": precision})
        triangular = factors.shape[1] == factors.shape[2] and not np.triu(factors, 1).any()
        yield _Found(
            "gaussians", columns.input[0], result.output[0], constants, order == _CHANNELS_FIRST, bool(triangular)
        )


def _search(graph: _Graph) -> Iterator[_Found]:
    """Yield what `edgead.export.ops.knn` became, of one neighbour: ``sqrt(clip(|q|^2 + min([q 1] keys)))``."""
    for product in [node for node in graph.nodes if node.op_type == "MatMul"]:
        keys, pad = graph.constant(product.input[1]), graph.maker(product.input[0], "Pad")
        chain: onnx.NodeProto | None = product
        for kind in ("ReduceMin", "Add", "Clip", "Sqrt"):
            chain = graph.user(chain, kind)
        if keys is None or pad is None or chain is None or keys.ndim != 2:
            continue
        if keys.shape[1] < FEWEST_ROWS or keys.shape[0] > MOST_CHANNELS + 1 or not _holds_norms(keys):
            continue
        # There are distances to k rows, of which there is one.
        result = graph.user(chain, "Squeeze") or chain
        yield _Found("search", pad.input[0], result.output[0], {"keys": keys})


def _holds_norms(keys: NDArray[Any]) -> bool:
    """Whether the last row holds the squared norms of what the others hold minus twice of."""
    if keys.dtype != np.float32:
        return False
    norms = (keys[:-1].astype(np.float64) ** 2).sum(0) / 4.0
    return bool(np.allclose(keys[-1], norms, rtol=1e-5, atol=1e-5 * norms.max()))


def _cut(model: onnx.ModelProto, found: _Found) -> tuple[onnx.ModelProto, onnx.ModelProto] | None:
    """Return what comes before the source, and what comes after the result; None where these are no two graphs."""
    of_images, after = {_IMAGES}, {found.result}
    carried: list[str] = []
    for node in model.graph.node:
        if any(name in of_images for name in node.input):
            of_images.update(node.output)
        if any(name in after for name in node.input):
            after.update(node.output)
            carried += [name for name in node.input if name in of_images and name not in after]
    carried = list(dict.fromkeys(carried))
    outputs = [value.name for value in model.graph.output]
    if found.source in carried or not set(outputs) <= after:
        return None
    names = {found.source: QUERIES, found.result: DISTANCES}
    queries = _part(model, [_IMAGES], [found.source, *carried], names)
    score = _part(model, [found.result, *carried], outputs, names)
    for value in score.graph.input:
        batch, *rest = value.type.tensor_type.shape.dim
        if not batch.dim_param or not all(size.dim_value for size in rest):
            return None
    return queries, score


def _part(
    model: onnx.ModelProto, inputs: Sequence[str], outputs: Sequence[str], names: Mapping[str, str]
) -> onnx.ModelProto:
    part: onnx.ModelProto = onnx.utils.Extractor(model).extract_model(list(inputs), list(outputs))
    for node in part.graph.node:
        for taken in (node.input, node.output):
            for index, name in enumerate(taken):
                taken[index] = names.get(name, name)
    for value in [*part.graph.input, *part.graph.output]:
        value.name = names.get(value.name, value.name)
    for value in [value for value in part.graph.value_info if value.name in names]:
        part.graph.value_info.remove(value)
    part.ir_version = model.ir_version
    onnx.checker.check_model(part)
    return part
