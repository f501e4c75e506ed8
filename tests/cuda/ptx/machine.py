"""One block of a kernel: registers, control flow, barriers, copies; threads are elements of numpy arrays.

Threads that diverge run the lower address first and meet again where their addresses do, which is how compilers lay
out code. Between barriers all warps run in step: what depends on their order is found by the checks of `memory`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tests.cuda.ptx import arithmetic, warp
from tests.cuda.ptx.arithmetic import TYPES, Values
from tests.cuda.ptx.memory import GlobalMemory, SharedMemory
from tests.cuda.ptx.parser import Instruction, Kernel, PtxError

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Copy:
    """Copies of one cp.async that are still under way: per thread target, source, bytes to read and group."""

    threads: NDArray[np.int64]
    target: NDArray[np.int64]
    source: NDArray[np.int64]
    read: NDArray[np.int64]
    group: NDArray[np.int64]
    size: int

    def __getitem__(self, chosen: Mask) -> Copy:
        parts = (self.threads, self.target, self.source, self.read, self.group)
        return Copy(*(part[chosen] for part in parts), self.size)


class Block:
    """State of one block.

    Args:
        kernel: code; arguments: values of its parameters, by name.
        threads: in x, a multiple of 32.
        place: ``%ctaid`` and ``%nctaid``.
    """

    def __init__(
        self,
        kernel: Kernel,
        arguments: dict[str, np.generic],
        memory: GlobalMemory,
        threads: int,
        place: tuple[tuple[int, int, int], tuple[int, int, int]],
        shared_bytes: int,
    ) -> None:
        self.kernel, self.arguments, self.memory, self.threads = kernel, arguments, memory, threads
        self.shared = SharedMemory(shared_bytes)
        self.registers: dict[str, Values] = {}
        self.copies: list[Copy] = []
        self.group = np.zeros(threads, np.int64)
        self.number = np.arange(threads)
        self.special = _special_registers(threads, place)

    def run(self) -> None:
        """Run all threads to their end; raises `PtxError` with the place where something is wrong."""
        groups: dict[int, Mask] = {0: np.ones(self.threads, bool)}
        waiting: dict[int, Mask] = {}
        # Lanes at an instruction of the whole warp, which wait for the others: they may come by another way.
        early: dict[int, Mask] = {}
        done = np.zeros(self.threads, bool)
        while groups or waiting or early:
            if not groups and early:
                instruction = self.kernel.code[min(early)]
                raise PtxError(f"{instruction.opcode[0]} in a divergent warp ({instruction.place})")
            if not groups:
                groups = self._open_barrier(waiting, done)
                waiting = {}
            pc = min(groups)
            mask = groups.pop(pc)
            limit = min(groups, default=len(self.kernel.code))
            while mask.any():
                if pc >= limit and groups:
                    _join(groups, pc, mask)
                    break
                instruction = self.kernel.code[pc]
                acting = mask & self._guard(instruction)
                name = instruction.opcode[0]
                if name == "bra":
                    _join(groups, self.kernel.labels[instruction.operands[0]], acting)
                    _join(groups, pc + 1, mask & ~acting)
                    break
                if name in ("ret", "exit"):
                    done |= acting
                    mask = mask & ~acting
                elif name in ("bar", "barrier"):
                    _join(waiting, pc, acting)
                    _join(groups, pc + 1, mask & ~acting)
                    break
                else:
                    if name in _WARP_WIDE:
                        came = early.pop(pc, np.zeros(self.threads, bool))
                        mask, acting = mask | came, acting | came
                        lacking = _partial_warps(acting)
                        _join(early, pc, lacking)
                        mask, acting = mask & ~lacking, acting & ~lacking
                    if acting.any():
                        self._execute(instruction, acting)
                pc += 1
        if self.copies:
            raise PtxError("a thread exits with cp.async under way")

    def _open_barrier(self, waiting: dict[int, Mask], done: Mask) -> dict[int, Mask]:
        places = [self.kernel.code[pc].place for pc in waiting]
        if len(waiting) > 1:
            raise PtxError(f"divergent barrier: {' and '.join(places)}")
        if done.any():
            raise PtxError(f"barrier after threads exited ({places[0]})")
        self.shared.barrier()
        return {pc + 1: mask for pc, mask in waiting.items()}

    def _execute(self, instruction: Instruction, mask: Mask) -> None:
        try:
            handler = _HANDLERS.get(instruction.opcode[0])
            if handler is None:
                self._compute(instruction, mask)
            else:
                handler(self, instruction, mask)
        except PtxError as error:
            raise PtxError(f"{error} ({instruction.place})") from None

    # Registers

    def _guard(self, instruction: Instruction) -> Mask | bool:
        if instruction.guard is None:
            return True
        return self._read(instruction.guard, "pred").astype(bool) ^ instruction.negated

    def _read(self, operand: str, kind: str) -> Values:
        """Read a register, special register or constant as a type; wider registers give their low part."""
        dtype = TYPES[kind]
        if operand[0] != "%" and operand not in self.kernel.registers:
            return np.full(self.threads, _constant(operand, dtype))
        held = self.special.get(operand)
        if held is None:
            held = self.registers.get(operand)
        if held is None:
            raise PtxError(f"reads {operand}, which nothing wrote")
        if held.dtype.itemsize == dtype.itemsize:
            return held.view(dtype)
        return held.astype(f"u{dtype.itemsize}").view(dtype)

    def _write(self, register: str, value: Values, mask: Mask) -> None:
        if register == "_":
            return
        declared = self.kernel.registers.get(register) or self.kernel.registers[register.rstrip("0123456789")]
        width = TYPES[declared].itemsize
        if value.shape != (self.threads,):
            value = np.broadcast_to(value, self.threads)
        if value.dtype.itemsize < width:
            # Loads and conversions of small integers fill the register, with the sign where there is one.
            value = value.astype(f"{value.dtype.kind}{width}")
        bits = np.ascontiguousarray(value).view(f"u{width}")
        held = self.registers.get(register)
        if held is None:
            held = self.registers[register] = np.zeros(self.threads, bits.dtype)
        np.copyto(held, bits, where=mask)

    def _addresses(self, operand: str) -> NDArray[np.int64]:
        base, _, offset = operand[1:-1].partition("+")
        # The dynamic array is the only thing in shared memory, at address 0.
        value = (
            self._read(base, "u64" if base.startswith("%rd") else "u32") if base[0] == "%" else np.zeros(self.threads)
        )
        return value.astype(np.int64) + int(offset or 0)

    def _compute(self, instruction: Instruction, mask: Mask) -> None:
        opcode, operands = instruction.opcode, instruction.operands
        sources = [
            self._read(operand, kind)
            for operand, kind in zip(operands[1:], arithmetic.source_types(opcode, len(operands) - 1), strict=True)
        ]
        if opcode[0] == "setp" and "|" in operands[0]:
            raise PtxError("setp with two results is not supported")
        result = arithmetic.compute(opcode, sources)
        self._write(operands[0], np.asarray(result).astype(TYPES[arithmetic.result_type(opcode)], copy=False), mask)

    def _move(self, instruction: Instruction, mask: Mask) -> None:
        target, source = instruction.operands
        kind = instruction.opcode[-1]
        if source[0] == "{":
            low, high = (self._read(part, f"u{TYPES[kind].itemsize * 4}") for part in _list(source))
            bits = TYPES[kind].itemsize * 4
            self._write(target, low.astype(np.uint64) | high.astype(np.uint64) << np.uint64(bits), mask)
        elif target[0] == "{":
            value = self._read(source, kind).view(f"u{TYPES[kind].itemsize // 2}").reshape(self.threads, 2)
            for part, half in zip(_list(target), value.T, strict=True):
                self._write(part, half, mask)
        else:
            self._compute(instruction, mask)

    # Memory

    def _load(self, instruction: Instruction, mask: Mask) -> None:
        opcode, (target, place) = instruction.opcode, instruction.operands
        _refuse_local(opcode)
        kind = opcode[-1]
        if "param" in opcode:
            name = place[1:-1]
            self._write(target, np.full(self.threads, self.arguments[name]), mask)
            return
        size = TYPES[kind].itemsize
        targets = _list(target) if target[0] == "{" else [target]
        addresses = self._addresses(place)[mask]
        if "shared" in opcode:
            data = self.shared.load(addresses, size * len(targets), self.number[mask])
        else:
            data = self.memory.load(addresses, size * len(targets))
        values = np.ascontiguousarray(data).view(TYPES[kind])
        for i, register in enumerate(targets):
            whole = np.zeros(self.threads, TYPES[kind])
            whole[mask] = values[:, i]
            self._write(register, whole, mask)

    def _store(self, instruction: Instruction, mask: Mask) -> None:
        opcode, (place, source) = instruction.opcode, instruction.operands
        _refuse_local(opcode)
        kind = opcode[-1]
        sources = _list(source) if source[0] == "{" else [source]
        data = np.stack([self._read(register, kind)[mask] for register in sources], axis=1).view(np.uint8)
        addresses = self._addresses(place)[mask]
        if "shared" in opcode:
            self.shared.store(addresses, data, self.number[mask])
        else:
            self.memory.store(addresses, data)

    def _copy(self, instruction: Instruction, mask: Mask) -> None:
        opcode, operands = instruction.opcode, instruction.operands
        if "commit_group" in opcode:
            self.group[mask] += 1
        elif "wait_group" in opcode:
            self._wait(int(operands[0]), mask)
        else:
            size = int(operands[2])
            read = self._read(operands[3], "u32") if len(operands) > 3 else np.full(self.threads, size)
            threads = self.number[mask]
            copy = Copy(
                threads, self._addresses(operands[0])[mask], self._addresses(operands[1])[mask],
                read[mask].astype(np.int64), self.group[mask], size,
            )  # fmt: skip
            if (copy.read > size).any() or (copy.source & (size - 1)).any():
                raise PtxError("cp.async reads more than it copies, or from a misaligned address")
            self.shared.begin_copy(copy.target, size, threads)
            self.copies.append(copy)

    def _wait(self, pending: int, mask: Mask) -> None:
        left = []
        for copy in self.copies:
            over = mask[copy.threads] & (copy.group < self.group[copy.threads] - pending)
            ready = copy[over]
            data = np.zeros((len(ready.threads), copy.size), np.uint8)
            whole = ready.read == copy.size
            if (~whole & (ready.read != 0)).any():
                raise PtxError("cp.async of a part is not supported")
            if whole.any():
                data[whole] = self.memory.load(ready.source[whole], copy.size)
            self.shared.end_copy(ready.target, data, ready.threads)
            if not over.all():
                left.append(copy[~over])
        self.copies = left

    # Warps

    def _warps(self, mask: Mask, name: str) -> NDArray[np.int64]:
        """Numbers of the warps that take part, each with all its lanes."""
        if _partial_warps(mask).any():
            raise PtxError(f"{name} in a divergent warp")
        return np.flatnonzero(mask.reshape(-1, 32).all(1))

    def _shuffle(self, instruction: Instruction, mask: Mask) -> None:
        target, value, b, c, member = instruction.operands
        if (self._read(member, "u32")[mask] != 0xFFFFFFFF).any():
            raise PtxError("a shuffle among a part of the warp is not supported")
        self._warps(mask, "shuffle")
        values, lanes = self._read(value, "b32").reshape(-1, 32), self._read(b, "u32").reshape(-1, 32)
        (clamp,) = set(self._read(c, "u32")[mask].tolist())
        self._write(target.split("|")[0], warp.shuffle(instruction.opcode[2], values, lanes, clamp).reshape(-1), mask)

    def _load_matrix(self, instruction: Instruction, mask: Mask) -> None:
        if "x4" not in instruction.opcode or "trans" in instruction.opcode:
            raise PtxError("only ldmatrix.x4 is supported")
        registers = _list(instruction.operands[0])
        addresses = self._addresses(instruction.operands[1])
        result = np.zeros((4, self.threads), np.uint32)
        for number in self._warps(mask, "ldmatrix"):
            lanes = slice(32 * number, 32 * number + 32)
            # Any lane may read any row: two lanes that read one word do not race, so the reader is the row's lane.
            data = self.shared.load(addresses[lanes], 16, self.number[lanes])
            tiles = np.ascontiguousarray(data).view(np.uint32).reshape(4, 8, 4)
            result[:, lanes] = tiles[:, warp.MATRIX_ROW, warp.MATRIX_WORD]
        for register, values in zip(registers, result, strict=True):
            self._write(register, values, mask)

    def _multiply(self, instruction: Instruction, mask: Mask) -> None:
        self._warps(mask, "mma")
        shape = f"{instruction.opcode[3]}.{instruction.opcode[7]}"
        target, *factors = (_list(operand) for operand in instruction.operands)
        words = [
            np.stack([self._read(register, "b32") for register in registers], axis=1).reshape(-1, 32, len(registers))
            for registers in factors
        ]
        result = warp.multiply(shape, *words).reshape(self.threads, -1)
        for register, values in zip(target, result.T, strict=True):
            self._write(register, values, mask)


def _special_registers(threads: int, place: tuple[tuple[int, int, int], tuple[int, int, int]]) -> dict[str, Values]:
    number = np.arange(threads, dtype=np.uint32)
    values = {"%laneid": number % 32}
    block, grid = place
    for i, axis in enumerate("xyz"):
        values[f"%tid.{axis}"] = number if axis == "x" else 0 * number
        values[f"%ntid.{axis}"] = np.full(threads, threads if axis == "x" else 1, np.uint32)
        values[f"%ctaid.{axis}"] = np.full(threads, block[i], np.uint32)
        values[f"%nctaid.{axis}"] = np.full(threads, grid[i], np.uint32)
    return dict(values)


def _partial_warps(mask: Mask) -> Mask:
    """Threads of the mask whose warps are not all in it."""
    whole = mask.reshape(-1, 32).all(1)
    return mask & ~np.repeat(whole, 32)


def _join(groups: dict[int, Mask], pc: int, mask: Mask) -> None:
    if mask.any():
        groups[pc] = groups[pc] | mask if pc in groups else mask


def _refuse_local(opcode: tuple[str, ...]) -> None:
    if "local" in opcode:
        raise PtxError("local memory is not supported: an array is indexed by what the compiler does not know")


def _list(operand: str) -> list[str]:
    return [part.strip() for part in operand.strip("{}").split(",")]


@functools.cache
def _constant(text: str, dtype: np.dtype[np.generic]) -> np.generic:
    if text[:2] in ("0f", "0F"):
        return np.uint32(int(text[2:], 16)).view(np.float32)
    if text[:2] in ("0d", "0D"):
        return np.uint64(int(text[2:], 16)).view(np.float64)
    if not text.lstrip("-")[0].isdigit():
        return np.zeros((), dtype)[()]  # the name of the dynamic array in shared memory
    bits = int(text.rstrip("U"), 0) & ((1 << 8 * dtype.itemsize) - 1)
    return np.array(bits, f"u{dtype.itemsize}").view(dtype)[()] if dtype.kind != "b" else np.bool_(bits)


# All lanes of a warp do these together.
_WARP_WIDE = frozenset({"shfl", "ldmatrix", "mma"})
_HANDLERS: dict[str, Callable[[Block, Instruction, Mask], None]] = {
    "mov": Block._move,
    "ld": Block._load,
    "st": Block._store,
    "cp": Block._copy,
    "shfl": Block._shuffle,
    "ldmatrix": Block._load_matrix,
    "mma": Block._multiply,
}
