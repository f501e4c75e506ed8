"""Exact nearest-neighbour search on the CPU by native code, in place of one large matrix product in the graph."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgead.runtime.backends.native.knn_bank import InstructionSet, PackedBank, Rounding, pack_bank
from edgead.runtime.backends.native.library import Workers
from edgead.runtime.errors import BackendError, BackendUnavailable

# Sums of products of bytes stay within 32 bits up to here.
MOST_CHANNELS = 2048
LACKING = "AVX2 or NEON, which the native search needs"


class _InstructionSet(ctypes.Structure):
    """As in knn.h, without its last fields."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        *((name, ctypes.c_int32) for name in ("rows", "unit", "level", "fine_cost", "negative")),
    ]


class _Rounding(ctypes.Structure):
    """As in knn.h."""

    _fields_ = [
        ("middle", ctypes.c_void_p),
        ("reach", ctypes.c_void_p),
        ("count", ctypes.c_int32),
        ("step", ctypes.c_float),
        ("row_error", ctypes.c_float),
    ]

    @classmethod
    def of(cls, rounding: Rounding | None) -> _Rounding:
        if rounding is None:
            return cls()
        return cls(
            rounding.middle.ctypes.data,
            rounding.reach.ctypes.data,
            len(rounding.middle),
            rounding.step,
            rounding.error,
        )


class _Bank(ctypes.Structure):
    """As in knn.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("rows", "center", "axes", "fine")),
        *((name, ctypes.c_void_p) for name in ("most", "offset", "packed", "halves")),
        ("coarse_rounding", _Rounding),
        ("fine_rounding", _Rounding),
        *((name, ctypes.c_int32) for name in ("channels", "width", "turned", "units", "groups")),
        ("shortened", ctypes.c_int32),
    ]

    @classmethod
    def of(cls, bank: PackedBank) -> _Bank:
        def start(values: NDArray[Any] | None) -> int | None:
            return None if values is None else values.ctypes.data

        groups, units = bank.packed.shape[:2]
        return cls(
            rows=start(bank.rows),
            center=start(bank.center),
            axes=start(bank.axes),
            fine=start(bank.fine),
            most=start(bank.most),
            offset=start(bank.offset),
            packed=start(bank.packed),
            halves=start(bank.halves),
            coarse_rounding=_Rounding.of(bank.coarse_rounding),
            fine_rounding=_Rounding.of(bank.fine_rounding),
            channels=bank.channels,
            width=bank.rows.shape[1],
            turned=bank.rows.shape[1] if bank.axes is None else bank.axes.shape[1],
            units=units,
            groups=groups,
            shortened=bank.shortened,
        )


def instruction_sets(library: Any) -> list[InstructionSet]:
    """Return what a library from `find_library` has, the fastest first, plain C last."""
    found: list[InstructionSet] = []
    while address := library.edgead_knn_set(len(found)):
        one = _InstructionSet.from_address(address)
        supported = bool(library.edgead_knn_supported(len(found)))
        name = one.name.decode()
        layout = (one.rows, one.unit, one.level, one.fine_cost, bool(one.negative))
        found.append(InstructionSet(len(found), name, supported, *layout))
    return found


def find_set(library: Any, name: str | None = None) -> InstructionSet:
    """Return the fastest instruction set that this processor has, or the one that is asked for.

    Plain C is taken only where it is asked for: the graph's matrix product is faster.

    Raises:
        BackendUnavailable: this processor lacks it.
    """
    sets = instruction_sets(library)
    for one in sets[:-1] if name is None else sets:
        if one.supported and name in (None, one.name):
            return one
    raise BackendUnavailable(f"this processor lacks {name or LACKING}")


def supported(library: Any) -> bool:
    """Return whether this processor has one of the library's instruction sets, plain C aside."""
    return any(one.supported for one in instruction_sets(library)[:-1])


class RowSearch:
    """Distances to the nearest row of a bank.

    Args:
        library: from `edgead.runtime.backends.native.library.find_library`.
        keys: ``(C + 1, M)`` float32 as the graph's matrix product holds them: ``-2 m`` and ``|m|^2`` of each row m.
        threads: CPU threads.
        instructions, coarse: name of an instruction set, and how many coordinates are compared first, see `pack_bank`;
            None takes what promises the least time.
    """

    def __init__(
        self,
        library: Any,
        keys: NDArray[np.float32],
        threads: int,
        *,
        instructions: str | None = None,
        coarse: int | None = None,
    ) -> None:
        self._library = library
        self._set = find_set(library, instructions)
        self._channels = len(keys) - 1
        # The code reads it through the structure, which keeps nothing alive.
        self._packed = pack_bank(keys[:-1], self._set, coarse)
        self._bank = _Bank.of(self._packed)
        self._workers = Workers(threads, "edgead-search")

    def distances(self, queries: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the Euclidean distance ``(...)`` of each query ``(..., C)`` to its nearest row, NaN for one with NaN.

        Exact to the rounding of float32 sums; raises `BackendError` where memory is short.
        """
        rows = np.ascontiguousarray(queries, np.float32).reshape(-1, queries.shape[-1])
        if rows.shape[1] != self._channels:
            raise BackendError(f"the network gave {rows.shape[1]} channels, its memory bank has {self._channels}")
        found = np.empty(len(rows), np.float32)

        def search(start: int, end: int) -> None:
            part, out = rows[start:end], found[start:end]
            if self._library.edgead_knn(
                self._set.index, ctypes.byref(self._bank), part.ctypes.data, len(part), out.ctypes.data
            ):
                raise BackendError("the search in the memory bank ran out of memory")

        self._workers.share(len(rows), search)
        return found.reshape(queries.shape[:-1])

    def describe(self) -> str:
        """Return what it is, in a few words."""
        return f"native search ({self._set.name})"

    def close(self) -> None:
        """End the threads."""
        self._workers.close()


def open_search(library: Any, constants: Mapping[str, NDArray[Any]], channels: int, threads: int) -> RowSearch:
    """Return the search among the constant ``keys``; raises `ValueError` where they do not fit so many channels."""
    keys = constants["keys"]
    if keys.dtype != np.float32 or keys.ndim != 2 or len(keys) - 1 != channels or channels > MOST_CHANNELS:
        raise ValueError(f"keys {keys.shape} {keys.dtype} for {channels} channels")
    return RowSearch(library, keys, threads)
