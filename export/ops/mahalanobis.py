"""``edgead::MahalanobisScore``: distances to the Gaussian of each location, as torch operator, ONNX body, reference.

Two forms, told apart by the number of inputs: whitening factors W, ``|W x|``, or a low-rank one, V with a precision,
``sqrt(|x|^2 precision - |V x|^2)``; x is the deviation from the location's mean.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgead.export.ops.batching import register_batching

NAME = "MahalanobisScore"


def squared_lengths(factors: Tensor, deviation: Tensor) -> Tensor:
    """``|W_p x|^2``: ``(P, r, d)`` and ``(P, d, M)`` to ``(P, M)``."""
    whitened = torch.matmul(factors, deviation)
    return (whitened * whitened).sum(-2)


def squared_low_rank(factors: Tensor, precision: Tensor, deviation: Tensor) -> Tensor:
    """``|x|^2 precision_p - |V_p x|^2``, no less than 0: ``(P, r, d)``, ``(P,)`` and ``(P, d, M)`` to ``(P, M)``."""
    whole = (deviation * deviation).sum(-2) * precision[..., None]
    return torch.clamp(whole - squared_lengths(factors, deviation), min=0.0)


def _score(rows: Tensor, mean: Tensor, factors: Tensor, precision: Tensor | None) -> Tensor:
    # Locations lead, so that one read of the factors serves the whole batch.
    deviation = rows.movedim(-3, -1) - mean[..., None]
    if precision is None:
        squared = squared_lengths(factors.float(), deviation)
    else:
        squared = squared_low_rank(factors.float(), precision, deviation)
    return torch.sqrt(squared).transpose(-1, -2).contiguous()


mahalanobis_score_op = torch.library.custom_op(
    "edgead::mahalanobis_score",
    _score,
    mutates_args=(),
    schema="(Tensor rows, Tensor mean, Tensor factors, Tensor? precision) -> Tensor",
)


@mahalanobis_score_op.register_fake
def _(rows: Tensor, mean: Tensor, factors: Tensor, precision: Tensor | None) -> Tensor:
    return rows.new_empty(rows.shape[0], rows.shape[1])


register_batching(mahalanobis_score_op, _score)


def mahalanobis_score(rows: Tensor, mean: Tensor, factors: Tensor, precision: Tensor | None = None) -> Tensor:
    """Return the distances ``(N, P)`` of each location's row to the Gaussian of that location.

    Args:
        rows: ``(N, P, d)`` float32.
        mean: ``(P, d)`` float32.
        factors: ``(P, r, d)``, float32 or float16; computed with in float32 either way.
        precision: ``(P,)`` float32 in the low-rank form; None means that the factors are the whole of it.
    """
    found: Tensor = mahalanobis_score_op(rows, mean, factors, precision)
    return found


def mahalanobis_reference(
    rows: NDArray[Any], mean: NDArray[Any], factors: NDArray[Any], precision: NDArray[Any] | None = None
) -> NDArray[np.float64]:
    """Compute `mahalanobis_score` in float64."""
    deviation = rows.astype(np.float64) - mean.astype(np.float64)
    parts = np.einsum("prd,npd->npr", factors.astype(np.float64), deviation)
    squared = (parts * parts).sum(2)
    if precision is not None:
        squared = np.maximum((deviation * deviation).sum(2) * precision.astype(np.float64) - squared, 0.0)
    return np.asarray(np.sqrt(squared), np.float64)


def body(inputs: int) -> str:
    """Return the ONNX function in the syntax of `onnx.parser`, for three inputs or, in the low-rank form, four."""
    low_rank = """
            lengths = Mul (deviation, deviation)
            length = ReduceSum <keepdims = 0> (lengths, first)
            column = Unsqueeze (precision, first)
            whole = Mul (length, column)
            rest = Sub (whole, part)
            zero = Constant <value = float {0.0}> ()
            squared = Clip (rest, zero)"""
    return f"""
        <domain: "edgead", opset_import: ["" : 18]>
        {NAME} <plugin_namespace, plugin_version>
            (rows, mean, factors{", precision" if inputs > 3 else ""}) => (distance) {{
            first = Constant <value = int64[1] {{1}}> ()
            last = Constant <value = int64[1] {{2}}> ()
            columns = Transpose <perm = [1, 2, 0]> (rows)
            center = Unsqueeze (mean, last)
            deviation = Sub (columns, center)
            wide = Cast <to = 1> (factors)
            whitened = MatMul (wide, deviation)
            squares = Mul (whitened, whitened)
            {"part" if inputs > 3 else "squared"} = ReduceSum <keepdims = 0> (squares, first)
            {low_rank if inputs > 3 else ""}
            root = Sqrt (squared)
            distance = Transpose <perm = [1, 0]> (root)
        }}"""
