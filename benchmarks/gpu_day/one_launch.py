"""One work of the kernels, twice, for a tool that counts: ``ncu … python -m benchmarks.gpu_day.one_launch WORK``.

WORK is ``search fp16 1024x10000x384`` (queries, rows, channels) or ``locations fp32 3136x100`` (locations, channels).
"""

from __future__ import annotations

import argparse
import sys

import numpy as np

from benchmarks.gpu_day.counters import parse_work
from benchmarks.gpu_day.machine import open_gpu
from edgead.export.kernels.scoring import MemoryBank, mahalanobis_scores


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work")
    parser.add_argument("--dry-run", action="store_true")
    arguments = parser.parse_args()
    kind, precision, sizes = parse_work(arguments.work)
    if arguments.dry_run:
        sizes = [min(size, 40) for size in sizes]
    random = np.random.default_rng(0)
    with open_gpu(arguments.dry_run) as gpu:
        if kind == "locations":
            locations, channels = sizes
            factors = random.standard_normal((locations, channels * (channels + 1) // 2)) / channels**0.5
            mean = random.standard_normal((locations, channels)).astype(np.float32)
            given = [gpu.upload(mean[None]), gpu.upload(mean)]
            coded = gpu.upload(factors.astype(np.float16 if precision == "fp16" else np.float32))
            for _ in range(2):
                mahalanobis_scores(gpu, *given, coded)
        else:
            queries, rows, channels = sizes
            values = random.standard_normal((rows, channels)).astype(np.float32)
            near = values[random.integers(0, rows, queries)]
            features = gpu.upload((near + 0.5 * random.standard_normal(near.shape)).astype(np.float32))
            bank = MemoryBank(gpu, gpu.upload(values), None, precision)  # type: ignore[arg-type]
            for _ in range(2):
                bank.search(features)
        gpu.synchronize()
    print(f"launched {kind} {precision} {sizes}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
