"""Banks and queries that make a search go wrong, and the program that searches them outside Python."""

from __future__ import annotations

import ctypes
import shutil
import struct
import subprocess
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from sys import executable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgead.runtime.backends.native.knn_bank import InstructionSet, PackedBank, Rounding, pack_bank
from edgead.runtime.backends.native.sources import FOLDER

Floats = NDArray[np.float32]
PROBE = Path(__file__).with_name("native_probe.c")
AARCH64 = "aarch64-linux-musl"


def nearest(queries: Floats, rows: Floats) -> NDArray[np.float64]:
    """The distance to the nearest row by all of them, in float64."""
    wide = rows.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        return np.array([np.linalg.norm(wide - query.astype(np.float64), axis=1).min() for query in queries])


def like_features(rows: int, channels: int, seed: int) -> Floats:
    """Rows in fewer directions than channels, as those of images are, and a little beside them."""
    random, mixer = np.random.default_rng(seed), np.random.default_rng(channels)
    mixing = mixer.normal(size=(min(24, channels), channels)) * np.geomspace(1.0, 0.01, channels)
    values = random.normal(size=(rows, len(mixing))) @ mixing + 3.0
    return (values + 1e-3 * random.normal(size=values.shape)).astype(np.float32)


def adversarial(scale: int) -> Iterator[tuple[str, Floats, Floats, int | None]]:
    """Name, queries, bank, and how many coordinates are compared first; ``scale`` times as many rows."""
    random = np.random.default_rng(0)
    for channels in (1, 5, 17, 32, 152, 260, 1024):
        rows = scale * (24 if channels > 200 else 90) + 7
        for coarse in (None, 16):
            yield f"{channels} channels", like_features(9, channels, 1), like_features(rows, channels, 0), coarse
    bank = random.normal(size=(150 * scale, 40)).astype(np.float32)
    queries = random.normal(size=(20, 40)).astype(np.float32)
    far, bad = bank.copy(), queries.copy()
    far[70] *= np.float32(1e5)
    bad[3, 7], bad[4, 0], bad[11], bad[19, 39] = np.nan, np.inf, -np.inf, 3e38
    corners = random.choice([-1.0, 1.0], (120 * scale, 48)).astype(np.float32)
    for coarse in (None, 16):
        yield "one far row", queries, far, coarse
        yield "queries far away", queries * np.float32(1e4), bank, coarse
        yield "queries that are not finite", bad, bank, coarse
        yield "rows themselves", bank[::9], bank, coarse
        yield "ties", np.concatenate([np.zeros((7, 48), np.float32), 9 * corners[:4]]), corners, coarse
        yield "equal rows", queries, np.repeat(bank[:3], 40 * scale, axis=0), coarse
    # All coordinates at the ends of their ranges: sums as large as they can be.
    ends = random.choice([-1.0, 1.0], (60 * scale, 31)).astype(np.float32)
    ends[0], ends[1] = 1.0, -1.0
    yield "largest sums", np.concatenate([5 * ends[:8], ends[:8]]), ends, None


def compile_probe(target: Path, *flags: str, architecture: str | None = None) -> Path | None:
    """Compile the program for this machine, or for another one; None where there is no compiler for it."""
    if architecture is None:
        found = shutil.which("gcc")
        compiler = [found] if found else []
    elif find_spec("ziglang") is not None:
        compiler = [executable, "-m", "ziglang", "cc", "-target", architecture]
    else:
        compiler = []
    if not compiler:
        return None
    common = ("-std=gnu11", "-Wall", "-Wextra", "-Werror", "-I", str(FOLDER))
    command = [*compiler, *common, *flags, str(PROBE), "-o", str(target), "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return target


def sets_of(command: Sequence[str | Path]) -> list[InstructionSet]:
    """What the program says of the processor that it runs on."""
    done = subprocess.run([*command, "sets"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found = []
    for index, line in enumerate(done.stdout.splitlines()):
        *numbers, name = line.split(" ", 6)
        rows, unit, level, cost, negative, supported = map(int, numbers)
        found.append(InstructionSet(index, name, bool(supported), rows, unit, level, cost, bool(negative)))
    return found


def search_outside(
    command: Sequence[str | Path],
    form: InstructionSet,
    queries: Floats,
    rows: Floats,
    coarse: int | None,
    scratch: Path,
) -> Floats:
    """Search with the program; every array that it is given has exactly the size that it may read."""
    bank = pack_bank(np.ascontiguousarray(rows.T * np.float32(-2)), form, coarse)
    case, found = scratch / "case", scratch / "found"
    case.write_bytes(_case(bank, queries))
    done = subprocess.run(
        [*command, "search", str(form.index), case, found], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr or done.returncode
    return np.fromfile(found, np.float32)


class GaussiansOutside:
    """What `LocationDistances` calls, run by the program: arrays have exactly the sizes that it may read."""

    def __init__(self, command: Sequence[str | Path], scratch: Path) -> None:
        self._command, self._scratch = command, scratch
        done = subprocess.run([*command, "lanes"], capture_output=True, text=True, timeout=60, check=True)
        self.lanes = [int(line) for line in done.stdout.split()]

    def edgead_gaussians_supported(self, lanes: int) -> int:
        return lanes in self.lanes

    def edgead_gaussians(self, gaussians: Any, given: Any, start: int, end: int, distances: int) -> int:
        of, queries = gaussians._obj, given._obj
        blocks = range(0, of.rows, 4)
        entries = sum(min(row + 4, of.channels) if of.triangular else of.channels for row in blocks) * 4
        assert (start, end) == (0, -(-of.locations // of.lanes))  # one thread does all
        floats = 4 * end * of.lanes
        arrays = (
            (of.mean, floats * of.channels),
            (of.factors, floats * entries // (1 if of.scales is None else 2)),
            (of.scales, floats * 4 * len(blocks)),
            (of.precision, floats),
            (queries.values, 4 * queries.images * of.locations * of.channels),
        )
        case, found = self._scratch / "case", self._scratch / "found"
        numbers = (of.lanes, of.locations, of.channels, of.rows, of.triangular)
        steps = (queries.images, queries.image, queries.location, queries.channel)
        data = [b"" if at is None else ctypes.string_at(at, size) for at, size in arrays]
        parts = [struct.pack("=q", len(one)) + one for one in data]
        case.write_bytes(struct.pack("=9i", *numbers, *steps) + b"".join(parts))
        done = subprocess.run([*self._command, "gaussians", case, found], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr or done.returncode
        result = found.read_bytes()
        ctypes.memmove(distances, result, len(result))
        return 0


def _case(bank: PackedBank, queries: Floats) -> bytes:
    width = bank.rows.shape[1]
    turned = width if bank.axes is None else bank.axes.shape[1]
    groups, units = bank.packed.shape[:2]
    numbers = struct.pack("=7i", bank.channels, width, turned, units, groups, bank.shortened, len(queries))
    arrays = (bank.rows, bank.center, bank.axes, bank.fine, bank.most, bank.offset, bank.packed, bank.halves, queries)
    roundings = _rounding(bank.coarse_rounding) + _rounding(bank.fine_rounding)
    return numbers + roundings + b"".join(map(_array, arrays))


def _rounding(rounding: Rounding | None) -> bytes:
    if rounding is None:
        return struct.pack("=2fi", 0.0, 0.0, 0) + _array(None) + _array(None)
    numbers = struct.pack("=2fi", rounding.step, rounding.error, len(rounding.middle))
    return numbers + _array(rounding.middle) + _array(rounding.reach)


def _array(values: NDArray[np.generic] | None) -> bytes:
    data = b"" if values is None else values.tobytes()
    return struct.pack("=q", len(data)) + data
