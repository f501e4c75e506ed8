"""The kernels on this machine's GPU: are they right, and how near do they come to what the device can do?

    python -m benchmarks.kernels [--rounds 20] [--json FILE]

The ceilings (TFLOP/s in FP32, FP16 and INT8, GB/s) are measured first; a floor is the time that a work's arithmetic or
its memory traffic takes at the ceiling, whichever is longer. Times are medians on the GPU's clock, inputs and bank
already in its memory. A search is all of it: coding the queries, scan, exact ranking. **Never executed on a GPU.**
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from edgead.export.kernels.gpu import Gpu
from edgead.export.kernels.scoring import MemoryBank, Precision, mahalanobis_scores
from edgead.runtime.errors import EdgeadError

CEILINGS_SOURCE = Path(__file__).with_name("ceilings.cuh").read_text()
SEARCHES = ((784, 10_000, 128), (784, 10_000, 512), (1024, 10_000, 384))
LOCATIONS = (3136, 100)
_CHAINS, _THREADS = 8, 256
_COPY_BYTES = 256 << 20
_CHECKED = 64  # queries that are also computed in float64


@dataclass(frozen=True)
class Ceilings:
    """Most that this device was seen to do: TFLOP/s or TOP/s, and GB/s."""

    fp32: float
    fp16: float
    int8: float
    bandwidth: float


@dataclass(frozen=True)
class Row:
    """One work.

    Attributes:
        work: what; milliseconds: median; tflops, gb_s: what it computed and moved in that time.
        floor_ms: see above; error: largest relative error of a distance against float64.
    """

    work: str
    milliseconds: float
    tflops: float
    gb_s: float
    floor_ms: float
    error: float

    @property
    def fraction(self) -> float:
        return self.floor_ms / self.milliseconds


def measure_ceilings(gpu: Gpu, rounds: int, *, turns: int = 1 << 14, copy_bytes: int | None = None) -> Ceilings:
    """Measure what the device can do at most; `turns` and `copy_bytes` are for a device that is none."""
    copy_bytes = copy_bytes or _COPY_BYTES
    blocks = 8 * gpu.multiprocessors
    out = gpu.empty((blocks * _THREADS,), np.float32)

    def tera(kernel: str, work: float) -> float:
        gpu.load(kernel, source=CEILINGS_SOURCE)
        times = gpu.milliseconds(lambda: gpu.launch(kernel, (blocks, 1, 1), _THREADS, 0, turns, 1.0, out), rounds)
        return work * turns * blocks / (median(times) * 1e9)

    warps = _THREADS // 32
    source, target = gpu.empty((copy_bytes,), np.uint8), gpu.empty((copy_bytes,), np.uint8)
    copying = median(gpu.milliseconds(lambda: gpu.copy(target, source), rounds))
    return Ceilings(
        fp32=tera("ceiling_fp32", 2.0 * _CHAINS * _THREADS),
        fp16=tera("ceiling_mma<__half>", 2.0 * 16 * 8 * 16 * _CHAINS * warps),
        int8=tera("ceiling_mma<int8_t>", 2.0 * 16 * 8 * 32 * _CHAINS * warps),
        bandwidth=2.0 * copy_bytes / (copying * 1e6),
    )


def measure_search(gpu: Gpu, ceilings: Ceilings, shape: tuple[int, int, int], precision: Precision, rounds: int) -> Row:
    """Measure a search of queries among rows, of so many channels."""
    queries, rows, channels = shape
    random = np.random.default_rng(0)
    bank_rows = random.standard_normal((rows, channels)).astype(np.float32)
    near = bank_rows[random.integers(0, rows, queries)]
    features = (near + 0.5 * random.standard_normal(near.shape)).astype(np.float32)
    uploaded = gpu.upload(features)
    bank = MemoryBank(gpu, gpu.upload(bank_rows), None, precision)
    found, _ = bank.search(uploaded)
    wide = features[:_CHECKED].astype(np.float64)
    squared = np.square(wide).sum(1)[:, None] + np.square(bank_rows.astype(np.float64)).sum(1) - 2 * wide @ bank_rows.T
    error = _error(found.numpy()[:_CHECKED, 0], np.sqrt(squared.min(1)))
    size = {"fp32": 4, "fp16": 2, "int8": 1}[precision]
    flop, moved = 2.0 * queries * rows * channels, float((queries + rows) * channels * size)
    peak = {"fp32": ceilings.fp32, "fp16": ceilings.fp16, "int8": ceilings.int8}[precision]
    name = f"search {precision}, {queries} x {rows} x {channels}"
    return _row(gpu, name, lambda: bank.search(uploaded), flop, moved, peak, ceilings.bandwidth, error, rounds)


def measure_locations(
    gpu: Gpu, ceilings: Ceilings, shape: tuple[int, int], dtype: type[np.generic], frames: int, rounds: int
) -> Row:
    """Measure Mahalanobis distances at so many locations and channels, packed triangular factors."""
    locations, channels = shape
    random = np.random.default_rng(0)
    packed = channels * (channels + 1) // 2
    mean = random.standard_normal((locations, channels)).astype(np.float32)
    factors = (random.standard_normal((locations, packed)) / channels**0.5).astype(dtype)
    rows = (mean + random.standard_normal((frames, locations, channels))).astype(np.float32)
    arrays = tuple(gpu.upload(values) for values in (rows, mean, factors))
    found = mahalanobis_scores(gpu, *arrays).numpy()
    whole = np.zeros((channels, channels))
    down, across = np.tril_indices(channels)
    expected = []
    for location in range(min(_CHECKED, locations)):
        whole[down, across] = factors[location]
        expected.append(np.linalg.norm(whole @ (rows[0, location].astype(np.float64) - mean[location])))
    error = _error(found[0, : len(expected)], np.array(expected))
    flop = 2.0 * locations * packed * frames
    moved = float(locations * (packed * np.dtype(dtype).itemsize + 4 * channels * (1 + frames)))
    name = f"locations {np.dtype(dtype).name}, {locations} x {channels}, {frames} frame{'s' if frames > 1 else ''}"
    peaks = (ceilings.fp32, ceilings.bandwidth)
    return _row(gpu, name, lambda: mahalanobis_scores(gpu, *arrays), flop, moved, *peaks, error, rounds)


def measure_all(gpu: Gpu, ceilings: Ceilings, rounds: int) -> list[Row]:
    """Measure what docs/kernels.md has floors for."""
    found = [
        measure_search(gpu, ceilings, shape, precision, rounds)
        for shape in SEARCHES
        for precision in get_args(Precision)
    ]
    for dtype in (np.float32, np.float16):
        found += [measure_locations(gpu, ceilings, LOCATIONS, dtype, frames, rounds) for frames in (1, 4)]
    return found


def _row(
    gpu: Gpu,
    work: str,
    run: Callable[[], object],
    flop: float,
    moved: float,
    peak: float,
    bandwidth: float,
    error: float,
    rounds: int,
) -> Row:
    milliseconds = median(gpu.milliseconds(run, rounds))
    floor = max(flop / (peak * 1e9), moved / (bandwidth * 1e6))
    return Row(work, milliseconds, flop / (milliseconds * 1e9), moved / (milliseconds * 1e6), floor, error)


def _error(found: NDArray[np.float32], expected: NDArray[np.float64]) -> float:
    return float(np.max(np.abs(found - expected) / np.maximum(expected, 1e-12)))


def table(ceilings: Ceilings, rows: Sequence[Row]) -> str:
    """Return what `main` prints."""
    lines = [
        f"ceilings: {ceilings.fp32:.2f} TFLOP/s FP32, {ceilings.fp16:.1f} FP16, {ceilings.int8:.1f} TOP/s INT8, "
        f"{ceilings.bandwidth:.0f} GB/s",
        f"{'work':44s} {'ms':>9s} {'floor':>9s} {'of it':>6s} {'TFLOP/s':>8s} {'GB/s':>7s} {'error':>8s}",
    ]
    for row in rows:
        lines.append(
            f"{row.work:44s} {row.milliseconds:9.4f} {row.floor_ms:9.4f} {row.fraction:6.0%} {row.tflops:8.2f} "
            f"{row.gb_s:7.0f} {row.error:8.1e}"
        )
    return "\n".join(lines)


def to_dict(ceilings: Ceilings, rows: Sequence[Row]) -> dict[str, Any]:
    """Return the JSON form."""
    return {"ceilings": asdict(ceilings), "rows": [{**asdict(row), "fraction": row.fraction} for row in rows]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    try:
        with Gpu() as gpu:
            ceilings = measure_ceilings(gpu, arguments.rounds)
            rows = measure_all(gpu, ceilings, arguments.rounds)
    except EdgeadError as error:
        print(error, file=sys.stderr)
        return 2
    print(table(ceilings, rows))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(to_dict(ceilings, rows), indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
