"""A memory bank as the native search wants it: turned to its main directions, rounded, and packed; see knn.c and knn.h.

What is written here decides how many rows must be compared exactly, never what the search finds: whatever the axes,
the library counts on their being orthonormal, and on the ranges and errors stated for the rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgead.runtime.backends.native.library import aligned

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

# With fewer channels there is nothing to shorten.
_FEWEST_TURNED = 32
_MOST_AXES = 256
_FINE_LEVEL = 127
_LEAST_STEP = 1e-30  # of a bank whose rows are all the same
_FILLING = 1 << 30
_BLOCK = 4096  # rows that are worked on at a time: no second copy of a bank in float64 is ever made
# Rows that stand for queries, and for the bank, where the number of coarse coordinates is chosen. What is looked for is
# farther from the bank than its rows from each other, and its distance is not known at the start: hence the slack.
_ASKED, _ASKED_AMONG = 64, 32768
_SLACK = 2.0
# What an exact comparison costs in place of a fine one, and a product of float32 in place of a fine comparison.
_EXACT, _TURN = 2.0, 1.0 / 1000.0


@dataclass(frozen=True, slots=True)
class InstructionSet:
    """What the library has for a kind of processor.

    Attributes:
        index: by which the library knows it; name: such as ``AVX2``; supported: this processor has it.
        rows: of a group; unit: channels of a row that lie side by side.
        level: largest rounded value; negative: rounded rows keep their sign.
        fine_cost: of a comparison in all coordinates, in products of one.
    """

    index: int
    name: str
    supported: bool
    rows: int
    unit: int
    level: int
    fine_cost: int
    negative: bool


@dataclass(frozen=True, slots=True)
class Rounding:
    """How coordinates are rounded: ``middle`` and ``reach`` of their range, the step, the largest error of a
    row, and the largest rounded values."""

    middle: Floats
    reach: Floats
    step: float
    error: float

    most: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class PackedBank:
    """The arrays and numbers of the structure in knn.h."""

    rows: Floats
    channels: int
    center: Floats
    axes: Floats | None
    shortened: bool
    fine: NDArray[np.int8] | None
    fine_rounding: Rounding | None
    most: NDArray[np.int32]
    offset: NDArray[np.int32]
    packed: NDArray[np.uint8]
    halves: NDArray[np.int32]
    coarse_rounding: Rounding


def pack_bank(columns: Floats, form: InstructionSet, coarse: int | None = None) -> PackedBank:
    """Pack a bank.

    Args:
        columns: ``(C, M)``, each row of the bank times -2 as a column.
        form: what the instruction set wants.
        coarse: coordinates that all rows are compared in, a multiple of 8; None: as many as promise the least time.

    Raises:
        ValueError: a row is not finite.
    """
    channels, count = columns.shape
    rows = aligned((count, _up(channels, 8)), np.float32)
    rows[:, :channels] = columns.T
    rows *= np.float32(-0.5)
    space = _Space.of(rows, channels)
    coarse = min(coarse or space.choose(form), space.count)
    if coarse == space.count or space.axes is None:
        space = space.plain()
        coarse = space.count
    rounding, fine_rounding = _find_roundings(space, coarse, form.level)
    offset = np.zeros_like(rounding.most) if form.negative else rounding.most
    units = coarse // form.unit
    packed = aligned((-(-count // form.rows), units, form.rows, form.unit), np.uint8)
    halves = aligned([len(packed) * form.rows], np.int32)
    halves[count:] = _FILLING
    fine = aligned((count, space.count), np.int8) if coarse < space.count else None
    error = fine_error = 0.0
    for block in space.blocks():
        values = space.coordinates(block)
        rounded, off = _round(_first(values, coarse), rounding)
        error = max(error, off)
        halves[block] = (rounded * rounded).sum(1) >> 1
        filled = np.zeros((_up(len(rounded), form.rows), coarse), np.uint8)
        filled[: len(rounded)] = (rounded + offset).astype(np.uint8)
        start = block.start // form.rows
        parts = filled.reshape(-1, form.rows, units, form.unit).transpose(0, 2, 1, 3)
        packed[start : start + len(parts)] = parts
        if fine is not None:
            fine[block], off = _round(values, fine_rounding)
            fine_error = max(fine_error, off)
    return PackedBank(
        rows=rows,
        channels=channels,
        center=space.center,
        axes=None if space.axes is None else space.axes.astype(np.float32),
        shortened=space.shortened,
        fine=fine,
        fine_rounding=None if fine is None else replace(fine_rounding, error=fine_error),
        most=rounding.most,
        offset=offset,
        packed=packed,
        halves=halves,
        coarse_rounding=replace(rounding, error=error),
    )


@dataclass(frozen=True, slots=True)
class _Space:
    """Rows ``(M, width)`` and the axes ``(width, count)`` along which they are looked at, None for the channels.

    ``shortened``: the axes leave something out; its length is the last coordinate, and the last axis is zero.
    """

    rows: Floats
    channels: int
    center: Floats
    axes: Doubles | None
    shortened: bool

    @classmethod
    def of(cls, rows: Floats, channels: int) -> _Space:
        center = rows.mean(0, dtype=np.float64).astype(np.float32)
        if channels < _FEWEST_TURNED:
            return cls(rows, channels, center, None, False)
        sample = rows[:: -(-len(rows) // _BLOCK)].astype(np.float64) - center
        if not np.isfinite(sample).all():
            raise ValueError("rows that are not finite")
        axes = np.linalg.eigh(sample.T @ sample)[1][:, ::-1]
        # A multiple of 32 is compared fastest: what there is too little of is filled up with zeros.
        turned = np.zeros((len(axes), min(_up(len(axes), 32), _MOST_AXES)))
        turned[:, : len(axes)] = axes[:, : turned.shape[1]]
        shortened = turned.shape[1] < len(axes)
        if shortened:
            turned[:, -1] = 0.0
        return cls(rows, channels, center, turned, shortened)

    def plain(self) -> _Space:
        """Return the same rows along their channels."""
        return _Space(self.rows, self.channels, self.center, None, False)

    @property
    def count(self) -> int:
        """How many coordinates there are."""
        return int((self.rows if self.axes is None else self.axes).shape[1])

    def blocks(self) -> Iterator[slice]:
        """Some rows after the other."""
        return (slice(start, min(start + _BLOCK, len(self.rows))) for start in range(0, len(self.rows), _BLOCK))

    def coordinates(self, block: slice) -> Doubles:
        """Return the coordinates of some rows."""
        values = self.rows[block].astype(np.float64) - self.center
        if self.axes is None:
            return values
        turned: Doubles = values @ self.axes
        if self.shortened:
            turned[:, -1] = np.sqrt(np.maximum((values * values).sum(1) - (turned[:, :-1] ** 2).sum(1), 0.0))
        return turned

    def choose(self, form: InstructionSet) -> int:
        """Return the number of coarse coordinates that promises the least time, tried on rows in place of queries."""
        if self.axes is None:
            return self.count
        among = self.rows[:: -(-len(self.rows) // _ASKED_AMONG)]
        turned = (among - self.center) @ self.axes.astype(np.float32)
        asked = np.linspace(0, len(turned) - 1, min(_ASKED, len(turned))).astype(np.int64)
        own = np.arange(len(asked)), asked
        squared, best = np.zeros((len(asked), len(turned)), np.float32), np.inf
        norms = (turned * turned).sum(1)
        whole = norms[asked, None] + norms - 2.0 * turned[asked] @ turned.T
        whole[own] = np.inf
        nearest = whole.min(1, keepdims=True)
        chosen, done = self.count, 0
        for count in (*range(16, self.count, 16), self.count):
            part = turned[:, done : count - 1]
            squared += (part[asked] ** 2).sum(1)[:, None] + (part * part).sum(1) - 2.0 * part[asked] @ part.T
            done = count - 1
            rest = np.sqrt(np.maximum((turned[:, done:] ** 2).sum(1), 0.0))
            near = squared + (rest[asked][:, None] - rest) ** 2 <= _SLACK * nearest
            share = (near.sum() - len(asked)) / near.size
            if count < self.count:
                cost = count + form.fine_cost * (share + _TURN * self.axes.size / len(self.rows))
            else:
                cost = self.rows.shape[1] + form.fine_cost * share * _EXACT
            if cost < best:
                chosen, best = count, cost
        return chosen


def _up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def _first(coordinates: Doubles, count: int) -> Doubles:
    """Return the first coordinates, with the length of the others in place of the last one."""
    if count == coordinates.shape[1]:
        return coordinates
    last = np.sqrt((coordinates[:, count - 1 :] ** 2).sum(1, keepdims=True))
    return np.concatenate([coordinates[:, : count - 1], last], axis=1)


def _find_roundings(space: _Space, coarse: int, level: int) -> tuple[Rounding, Rounding]:
    """Return how the first coordinates of all rows are rounded so that none exceeds a level, and all coordinates."""
    low, high = np.full(coarse, np.inf), np.full(coarse, -np.inf)
    lowest, highest = np.full(space.count, np.inf), np.full(space.count, -np.inf)
    for block in space.blocks():
        values = space.coordinates(block)
        lowest, highest = np.minimum(lowest, values.min(0)), np.maximum(highest, values.max(0))
        first = _first(values, coarse)
        low, high = np.minimum(low, first.min(0)), np.maximum(high, first.max(0))
    return _rounding(low, high, level), _rounding(lowest, highest, _FINE_LEVEL)


def _rounding(low: Doubles, high: Doubles, level: int) -> Rounding:
    middle = ((low + high) / 2).astype(np.float32)
    # Rounded up: the library counts on no row lying outside.
    reach = np.nextafter(np.maximum(high - middle, middle - low).astype(np.float32), np.float32(np.inf))
    step = float(np.float32(max(float(reach.max()) / level * 1.000001, _LEAST_STEP)))
    if not np.isfinite(step):
        raise ValueError("rows that are not finite")
    return Rounding(middle, reach, step, 0.0, np.rint(reach / np.float32(step)).astype(np.int32))


def _round(values: Doubles, rounding: Rounding) -> tuple[NDArray[np.int32], float]:
    """Return rounded coordinates ``(n, count)``, and the largest distance of a row from its rounded form."""
    most, centered = rounding.most, values - rounding.middle
    rounded: NDArray[np.int32] = np.clip(np.rint(centered / rounding.step), -most, most).astype(np.int32)
    off = centered - rounding.step * rounded
    # A little more: the library counts on no row being farther.
    return rounded, float(np.sqrt((off * off).sum(1).max())) * 1.00001 + 1e-37
