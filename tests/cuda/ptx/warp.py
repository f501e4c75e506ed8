"""What the 32 threads of a warp do together in PTX: shuffles, ldmatrix and mma.sync, in the layouts of the PTX ISA."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tests.cuda.ptx.parser import PtxError

Words = NDArray[np.uint32]

_LANE = np.arange(32)
_GROUP, _MEMBER = _LANE >> 2, _LANE & 3

# After ldmatrix, word i of a lane is word _MEMBER of row _GROUP of tile i.
MATRIX_ROW, MATRIX_WORD = _GROUP, _MEMBER


def shuffle(mode: str, values: Words, b: NDArray[np.uint32], c: int) -> Words:
    """``(warps, 32)`` to what each lane gets; `b` is the lane, the offset or the flip, `c` clamp and segment mask."""
    clamp, segment = c & 31, c >> 8 & 31
    last = (_LANE & segment) | (clamp & ~segment)
    b = b.astype(np.int64) & 31
    lane = np.broadcast_to(_LANE, values.shape)
    source = {
        "up": lambda: lane - b,
        "down": lambda: lane + b,
        "bfly": lambda: lane ^ b,
        "idx": lambda: (lane & segment) | (b & ~segment),
    }[mode]()
    inside = source >= last if mode == "up" else source <= last
    return np.take_along_axis(values, np.where(inside, source, lane), axis=1)


def _scatter(elements: NDArray[np.generic], rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.generic]:
    """``(warps, 32, n)`` fragments to ``(warps, rows, columns)`` matrices."""
    matrix = np.zeros((len(elements), int(rows.max()) + 1, int(columns.max()) + 1), elements.dtype)
    matrix[:, rows, columns] = elements
    return matrix


def _cells(count: int, per_word: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns of factor A's elements, ``(32, count)``; words go to the next 8 rows first, then along k."""
    i = np.arange(count)
    word = i // per_word
    rows = _GROUP[:, None] + word % 2 * 8
    columns = _MEMBER[:, None] * per_word + i % per_word + word // 2 * 4 * per_word
    return rows, columns


def _factor_b(count: int, per_word: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """k and column of factor B's elements."""
    i = np.arange(count)
    k = _MEMBER[:, None] * per_word + i % per_word + i // per_word * 4 * per_word
    return k, np.broadcast_to(_GROUP[:, None], k.shape)


def _sum_cells(count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    i = np.arange(count)
    return _GROUP[:, None] + i // 2 * 8, _MEMBER[:, None] * 2 + i % 2


def multiply(shape: str, a: Words, b: Words, c: Words) -> Words:
    """``mma.sync`` of a whole block: fragments ``(warps, 32, words)``, the sum's bits back in the same form."""
    if shape in ("m16n8k16.f16", "m16n8k8.f16"):
        left, right = _halves(a), _halves(b)
        sums, wide, per_word = c.view(np.float32), np.float32, 2
    elif shape in ("m16n8k32.s8", "m8n8k16.s8"):
        left, right = _bytes(a), _bytes(b)
        sums, wide, per_word = c.view(np.int32), np.float64, 4  # sums of products of bytes are exact in float64
    else:
        raise PtxError(f"mma of shape {shape} is not supported")
    if shape == "m8n8k16.s8":
        rows, columns = _factor_b(4, per_word)[::-1]
    else:
        rows, columns = _cells(left.shape[2], per_word)
    factor = _scatter(right, *_factor_b(right.shape[2], per_word))
    product = _scatter(left, rows, columns).astype(wide) @ factor.astype(wide)
    target_rows, target_columns = _sum_cells(c.shape[2])
    return (sums + product[:, target_rows, target_columns].astype(sums.dtype)).view(np.uint32)


def _halves(words: Words) -> NDArray[np.float32]:
    return np.ascontiguousarray(words).view(np.float16).astype(np.float32)


def _bytes(words: Words) -> NDArray[np.int8]:
    return np.ascontiguousarray(words).view(np.int8)
