"""Global and shared memory of the interpreter: every access is checked before it happens."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tests.cuda.ptx.parser import PtxError

Indices = NDArray[np.int64]

_RED_ZONE = 256
_NOBODY = -1
_SEVERAL = -2


def _check_aligned(addresses: Indices, size: int) -> None:
    if (addresses & (size - 1)).any():
        raise PtxError(f"misaligned access of {size} bytes")


class GlobalMemory:
    """The arrays of one launch, each between red zones; tells blocks apart that touch the same word.

    Blocks have no order, so a word that one block writes may be neither read nor written by another.
    """

    base = 0x7F00_0000_0000

    def __init__(self, arrays: list[NDArray[np.generic]]) -> None:
        self._arrays = arrays
        self._offsets = []
        end = _RED_ZONE
        for array in arrays:
            self._offsets.append(end)
            end += -(-array.nbytes // _RED_ZONE) * _RED_ZONE + _RED_ZONE
        self.bytes = np.full(end, 0xCD, np.uint8)
        self._valid = np.zeros(end, bool)
        for array, offset in zip(arrays, self._offsets, strict=True):
            self.bytes[offset : offset + array.nbytes] = array.reshape(-1).view(np.uint8)
            self._valid[offset : offset + array.nbytes] = True
        self._writer = np.full(end // 4, _NOBODY, np.int32)
        self._reader = np.full(end // 4, _NOBODY, np.int32)
        self.block = 0

    def addresses(self) -> list[int]:
        return [self.base + offset for offset in self._offsets]

    def copy_back(self) -> None:
        """Hand what the launch wrote to the arrays that it was given."""
        for array, offset in zip(self._arrays, self._offsets, strict=True):
            array.reshape(-1).view(np.uint8)[:] = self.bytes[offset : offset + array.nbytes]

    def _locate(self, addresses: Indices, size: int) -> Indices:
        _check_aligned(addresses, size)
        start = addresses - self.base
        # An access is no longer than a red zone, so where both ends lie in an array, the middle does.
        inside = (start >= 0) & (start + size <= len(self.bytes))
        if not inside.all() or not (self._valid[start] & self._valid[start + size - 1]).all():
            raise PtxError(f"global access of {size} bytes out of bounds")
        return start

    def load(self, addresses: Indices, size: int) -> NDArray[np.uint8]:
        """Bytes ``(threads, size)``."""
        start = self._locate(addresses, size)
        for word in range(0, max(size // 4, 1)):
            place = start // 4 + word
            writer = self._writer[place]
            if ((writer != _NOBODY) & (writer != self.block)).any():
                raise PtxError("race: reads what another block writes")
            reader = self._reader[place]
            self._reader[place] = np.where((reader == _NOBODY) | (reader == self.block), self.block, _SEVERAL)
        return self.bytes[start[:, None] + np.arange(size)]

    def store(self, addresses: Indices, data: NDArray[np.uint8]) -> None:
        size = data.shape[1]
        start = self._locate(addresses, size)
        for word in range(0, max(size // 4, 1)):
            place = start // 4 + word
            for others in (self._writer[place], self._reader[place]):
                if ((others != _NOBODY) & (others != self.block)).any():
                    raise PtxError("race: writes what another block reads or writes")
            self._writer[place] = self.block
        self.bytes[start[:, None] + np.arange(size)] = data


class SharedMemory:
    """Dynamic shared memory of one block; finds races, by barriers, and reads of what was never written.

    Granularity is a word of 4 bytes; smaller accesses are not supported.
    """

    def __init__(self, size: int) -> None:
        self.bytes = np.full(size, 0xFF, np.uint8)
        words = -(-size // 4)
        self._written = np.zeros(words, bool)
        self._pending = np.zeros(words, np.int32)  # copies under way to it
        self._write_epoch, self._writer = np.zeros(words, np.int64), np.zeros(words, np.int32)
        self._read_epoch, self._reader = np.zeros(words, np.int64), np.zeros(words, np.int32)
        self._epoch = 1

    def barrier(self) -> None:
        self._epoch += 1

    def _words(self, addresses: Indices, size: int) -> Indices:
        _check_aligned(addresses, size)
        if size % 4:
            raise PtxError(f"shared access of {size} bytes is not supported")
        if (addresses < 0).any() or (addresses + size > len(self.bytes)).any():
            raise PtxError(f"shared access of {size} bytes out of bounds")
        return addresses[:, None] // 4 + np.arange(size // 4)

    def load(self, addresses: Indices, size: int, threads: NDArray[np.int64]) -> NDArray[np.uint8]:
        words = self._words(addresses, size)
        if self._pending[words].any():
            raise PtxError("race: reads shared memory that cp.async has not filled yet")
        if not self._written[words].all():
            raise PtxError("reads shared memory that nobody wrote")
        who = np.broadcast_to(threads[:, None], words.shape)
        if ((self._write_epoch[words] == self._epoch) & (self._writer[words] != who)).any():
            raise PtxError("race: reads shared memory that another thread writes, without a barrier between")
        again = (self._read_epoch[words] == self._epoch) & (self._reader[words] != who)
        self._reader[words] = np.where(again, _SEVERAL, who)
        # Several readers in this very access.
        self._reader[words] = np.where(self._reader[words] == who, self._reader[words], _SEVERAL)
        self._read_epoch[words] = self._epoch
        return self.bytes[addresses[:, None] + np.arange(size)]

    def store(self, addresses: Indices, data: NDArray[np.uint8], threads: NDArray[np.int64]) -> None:
        words = self._words(addresses, data.shape[1])
        self._check_write(words, threads)
        self._written[words] = True
        self.bytes[addresses[:, None] + np.arange(data.shape[1])] = data

    def _check_write(self, words: Indices, threads: NDArray[np.int64]) -> None:
        who = np.broadcast_to(threads[:, None], words.shape)
        if self._pending[words].any():
            raise PtxError("race: writes shared memory that cp.async is filling")
        if ((self._write_epoch[words] == self._epoch) & (self._writer[words] != who)).any():
            raise PtxError("race: two threads write the same shared memory, without a barrier between")
        if ((self._read_epoch[words] == self._epoch) & (self._reader[words] != who)).any():
            raise PtxError("race: writes shared memory that another thread reads, without a barrier between")
        self._write_epoch[words] = self._epoch
        self._writer[words] = who
        if (self._writer[words] != who).any():
            raise PtxError("race: two threads write the same shared memory at once")

    def begin_copy(self, addresses: Indices, size: int, threads: NDArray[np.int64]) -> None:
        """A copy may land at any time from now on."""
        words = self._words(addresses, size)
        self._check_write(words, threads)
        np.add.at(self._pending, words, 1)

    def end_copy(self, addresses: Indices, data: NDArray[np.uint8], threads: NDArray[np.int64]) -> None:
        words = self._words(addresses, data.shape[1])
        np.add.at(self._pending, words, -1)
        self.store(addresses, data, threads)
