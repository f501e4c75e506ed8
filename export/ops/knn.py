"""``edgead::KnnScore``: distances of queries to their k nearest keys, as torch operator, ONNX body and reference.

``|q - m|^2 = |q|^2 + (|m|^2 - 2 q m)``: one matrix product over the keys, which hold the constant factor and the norm.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from edgead.export.ops.batching import register_batching

NAME = "KnnScore"
# Attribute of a node: 1 where its keys are a constant of the graph, so that a plugin may prepare them once.
FIXED_KEYS = "fixed_keys"


def make_keys(bank: Tensor, center: Tensor) -> Tensor:
    """Return keys ``(C + 1, M)`` float32 of a bank ``(M, C)``: ``-2 (m - center)`` and, last, its squared length."""
    rows = bank.double() - center.double()
    return torch.cat([-2.0 * rows, rows.square().sum(1, keepdim=True)], dim=1).T.float().contiguous()


def _score(queries: Tensor, keys: Tensor, k: int) -> Tensor:
    products = F.pad(queries, (0, 1), value=1.0) @ keys.float()
    least = products.amin(-1, keepdim=True) if k == 1 else products.sort(dim=-1, stable=True).values[..., :k]
    return _distances(queries, least)


def _search(queries: Tensor, keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    products = F.pad(queries, (0, 1), value=1.0) @ keys.float()
    if k == 1:
        return _distances(queries, products.amin(-1, keepdim=True)), products.argmin(-1, keepdim=True)
    least, rows = products.sort(dim=-1, stable=True)
    return _distances(queries, least[..., :k]), rows[..., :k].clone()


def _distances(queries: Tensor, least: Tensor) -> Tensor:
    return torch.sqrt(torch.clamp((queries * queries).sum(-1, keepdim=True) + least, min=0.0))


_SCHEMA = "(Tensor queries, Tensor keys, int k)"
knn_score_op = torch.library.custom_op("edgead::knn_score", _score, mutates_args=(), schema=f"{_SCHEMA} -> Tensor")
knn_search_op = torch.library.custom_op(
    "edgead::knn_search", _search, mutates_args=(), schema=f"{_SCHEMA} -> (Tensor, Tensor)"
)


@knn_score_op.register_fake
def _(queries: Tensor, keys: Tensor, k: int) -> Tensor:
    return queries.new_empty(queries.shape[0], queries.shape[1], k)


@knn_search_op.register_fake
def _(queries: Tensor, keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    shape = (queries.shape[0], queries.shape[1], k)
    return queries.new_empty(shape), queries.new_empty(shape, dtype=torch.int64)


# One bank for all images of an entry.
register_batching(knn_score_op, lambda queries, keys, k: _score(queries, keys[:, None], k))
register_batching(knn_search_op, lambda queries, keys, k: _search(queries, keys[:, None], k))


def knn_score(queries: Tensor, keys: Tensor, k: int = 1) -> Tensor:
    """Return the Euclidean distances ``(N, P, k)`` to the k nearest keys, nearest first.

    Args:
        queries: ``(N, P, C)`` float32, centred as the keys are.
        keys: of `make_keys`, float32 or float16; computed with in float32 either way.
        k: 1 to M.
    """
    found: Tensor = knn_score_op(queries, keys, k)
    return found


def knn_search(queries: Tensor, keys: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
    """Return what `knn_score` does, and the keys' numbers ``(N, P, k)`` int64; of equal distances the lowest first."""
    found: tuple[Tensor, Tensor] = knn_search_op(queries, keys, k)
    return found


def knn_reference(
    queries: NDArray[Any], keys: NDArray[Any], k: int = 1
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Compute `knn_search` in float64 from differences, not from the difference of squares."""
    rows = -0.5 * keys[:-1].astype(np.float64).T
    difference = queries.astype(np.float64)[:, :, None, :] - rows
    distances = np.sqrt((difference * difference).sum(3))
    order = np.argsort(distances, axis=2, kind="stable")[:, :, :k]
    return np.take_along_axis(distances, order, 2), order


def body(k: int, outputs: int) -> str:
    """Return the ONNX function in the syntax of `onnx.parser`: outputs are ``distance`` and, with two, ``index``."""
    if k == 1:
        nearest = "least = ReduceMin <keepdims = 1> (products, last)"
        index = "index = ArgMin <axis = 2, keepdims = 1, select_last_index = 0> (products)" if outputs > 1 else ""
    else:
        row = "index" if outputs > 1 else "row"
        nearest = f"""count = Constant <value = int64[1] {{{k}}}> ()
            least, {row} = TopK <axis = 2, largest = 0, sorted = 1> (products, count)"""
        index = ""
    # Pad with all its axes: TensorRT 10.3 knows no other form.
    results = "distance, index" if outputs > 1 else "distance"
    return f"""
        <domain: "edgead", opset_import: ["" : 18]>
        {NAME} <k, {FIXED_KEYS}, plugin_namespace, plugin_version> (queries, keys) => ({results}) {{
            pads = Constant <value = int64[6] {{0, 0, 0, 0, 0, 1}}> ()
            one = Constant <value = float {{1.0}}> ()
            zero = Constant <value = float {{0.0}}> ()
            last = Constant <value = int64[1] {{2}}> ()
            padded = Pad (queries, pads, one)
            wide = Cast <to = 1> (keys)
            products = MatMul (padded, wide)
            {nearest}
            {index}
            squares = Mul (queries, queries)
            norm = ReduceSum <keepdims = 1> (squares, last)
            squared = Add (norm, least)
            clamped = Clip (squared, zero)
            distance = Sqrt (clamped)
        }}"""
