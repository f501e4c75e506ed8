"""What PTX's instructions on registers compute, for all threads of a block at once: arrays in, an array out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tests.cuda.ptx.parser import PtxError

Values = NDArray[np.generic]

TYPES: dict[str, np.dtype[np.generic]] = {
    "pred": np.dtype(bool),
    **{f"{kind}{bits}": np.dtype(f"u{bits // 8}") for kind in "ub" for bits in (8, 16, 32, 64)},
    **{f"s{bits}": np.dtype(f"i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"f{bits}": np.dtype(f"f{bits // 8}") for bits in (16, 32, 64)},
}

_WIDER = {"s16": "s32", "u16": "u32", "s32": "s64", "u32": "u64"}

# Comparisons of floats: "u" forms hold for NaN too.
_COMPARE: dict[str, Callable[[Values, Values], Values]] = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal,
}  # fmt: skip

_BINARY: dict[str, Callable[[Values, Values], Values]] = {
    "add": np.add, "sub": np.subtract, "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
}  # fmt: skip


def source_types(opcode: tuple[str, ...], count: int) -> list[str]:
    """Types in which an instruction reads its `count` sources."""
    name, kind = opcode[0], opcode[-1]
    if name in ("shl", "shr"):
        return [kind, "u32"]
    if name == "selp":
        return [kind, kind, "pred"]
    if name == "bfi":
        return [kind, kind, "u32", "u32"]
    if name == "mad" and "wide" in opcode:
        return [kind, kind, _WIDER[kind]]
    return [kind] * count


def result_type(opcode: tuple[str, ...]) -> str:
    """Type that an instruction writes."""
    if opcode[0] == "setp":
        return "pred"
    if opcode[0] == "cvt":
        return opcode[-2]
    return _WIDER[opcode[-1]] if "wide" in opcode else opcode[-1]


def compute(opcode: tuple[str, ...], sources: list[Values]) -> Values:
    """Apply an instruction; shapes broadcast.

    ``fma`` is rounded twice, by float64 and by float32, which differs from one rounding in rare last bits;
    ``ex2.approx`` is computed exactly.
    """
    name, kind = opcode[0], opcode[-1]
    if name in _BINARY:
        if kind == "pred":
            return {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}[name](*sources)
        return _BINARY[name](*sources)
    match name:
        case "mov" | "cvta":
            return sources[0]
        case "min" | "max":
            if kind[0] == "f":
                return (np.fmin if name == "min" else np.fmax)(*sources)
            return (np.minimum if name == "min" else np.maximum)(*sources)
        case "mul" | "mad":
            return _multiply(opcode, sources)
        case "fma":
            return _fma(opcode, sources)
        case "div":
            return np.true_divide(*sources) if kind[0] == "f" else _divide(*sources)
        case "rem":
            return np.fmod(*sources)
        case "not":
            return np.logical_not(sources[0]) if kind == "pred" else np.invert(sources[0])
        case "neg":
            return np.negative(sources[0])
        case "abs":
            return np.abs(sources[0])
        case "sqrt":
            return np.sqrt(sources[0])
        case "rcp":
            return np.float32(1.0) / sources[0]
        case "ex2":
            return np.exp2(sources[0].astype(np.float64)).astype(np.float32)
        case "shl" | "shr":
            return _shift(name, kind, *sources)
        case "selp":
            return np.where(sources[2], sources[0], sources[1])
        case "setp":
            return _compare(opcode, *sources)
        case "bfi":
            return _insert_bits(*sources)
        case "cvt":
            return _convert(opcode, sources[0])
        case _:
            raise PtxError(f"not supported: {'.'.join(opcode)}")


def _multiply(opcode: tuple[str, ...], sources: list[Values]) -> Values:
    a, b = sources[:2]
    if "wide" in opcode:
        wide = TYPES[_WIDER[opcode[-1]]]
        a, b = a.astype(wide), b.astype(wide)
    elif "hi" in opcode:
        wide = TYPES[_WIDER[opcode[-1]]]
        bits = 8 * a.dtype.itemsize
        return np.right_shift(a.astype(wide) * b.astype(wide), bits).astype(a.dtype)
    product = np.multiply(a, b)
    return product if opcode[0] == "mul" else np.add(product, sources[2])


def _fma(opcode: tuple[str, ...], sources: list[Values]) -> Values:
    if opcode[-1] != "f32":
        raise PtxError(f"not supported: {'.'.join(opcode)}")
    exact = sources[0].astype(np.float64) * sources[1] + sources[2]
    rounded = exact.astype(np.float32)
    if "rm" in opcode:
        return np.where(rounded > exact, np.nextafter(rounded, np.float32(-np.inf)), rounded)
    return rounded


def _divide(a: Values, b: Values) -> Values:
    quotient = np.abs(a.astype(np.float64)) // np.abs(b.astype(np.float64))  # 32-bit operands are exact in float64
    if a.dtype.itemsize > 4:
        raise PtxError("division of 64-bit integers is not supported")
    return (quotient * np.sign(a.astype(np.float64)) * np.sign(b.astype(np.float64))).astype(a.dtype)


def _shift(name: str, kind: str, value: Values, amount: Values) -> Values:
    bits = 8 * value.dtype.itemsize
    by = np.minimum(amount, bits - 1).astype(value.dtype)
    if name == "shl":
        return np.where(amount < bits, np.left_shift(value, by), 0).astype(value.dtype)
    moved = np.right_shift(value, by)
    return moved if kind[0] == "s" else np.where(amount < bits, moved, 0).astype(value.dtype)


def _compare(opcode: tuple[str, ...], a: Values, b: Values) -> Values:
    test = opcode[1]
    if test in ("nan", "num"):
        unordered = np.isnan(a) | np.isnan(b)
        return unordered if test == "nan" else ~unordered
    if opcode[-1][0] == "f" and len(test) == 3:
        return _COMPARE[test[:2]](a, b) | np.isnan(a) | np.isnan(b)
    result = _COMPARE[test](a, b)
    # numpy holds NaN != x; PTX's plain "ne" does not.
    return result & ~(np.isnan(a) | np.isnan(b)) if opcode[-1][0] == "f" and test == "ne" else result


def _insert_bits(a: Values, b: Values, position: Values, length: Values) -> Values:
    wide = np.uint64
    mask = (np.left_shift(wide(1), length.astype(wide)) - wide(1)) << position.astype(wide)
    inserted = (a.astype(wide) << position.astype(wide)) & mask
    return ((b.astype(wide) & ~mask) | inserted).astype(b.dtype)


def _convert(opcode: tuple[str, ...], value: Values) -> Values:
    target, source = TYPES[opcode[-2]], TYPES[opcode[-1]]
    if source.kind == "f":
        if target.kind in "iu" or "rni" in opcode or "rzi" in opcode or "rmi" in opcode or "rpi" in opcode:
            rounding = next((part for part in opcode if part in ("rni", "rzi", "rmi", "rpi")), None)
            if rounding is None:
                raise PtxError(f"not supported: {'.'.join(opcode)}")
            value = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}[rounding](value)
        if target.kind in "iu":
            limits = np.iinfo(target)
            clipped = np.clip(np.nan_to_num(value.astype(np.float64), nan=0.0), float(limits.min), float(limits.max))
            return clipped.astype(target)
        if "sat" in opcode:
            value = np.nan_to_num(np.clip(value, 0.0, 1.0), nan=0.0)
    return value.astype(target)
