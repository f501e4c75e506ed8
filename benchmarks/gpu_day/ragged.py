"""Every kernel once or more on ragged shapes, for a tool that watches, such as ``compute-sanitizer --tool memcheck``.

    python -m benchmarks.gpu_day.ragged [--dry-run]

Shapes lie on both sides of every tile's edge and are small, for racecheck slows a kernel down a hundredfold. Results
are checked too.
"""

from __future__ import annotations

import argparse
import sys

from benchmarks.gpu_day.machine import GpuExecutor, open_gpu
from benchmarks.gpu_day.right import kernel_cases

_LARGE = ("(784,", "(1024,", "longest", "extremes")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true")
    dry = parser.parse_args().dry_run
    with open_gpu(dry) as gpu:
        executor = GpuExecutor(gpu)
        for name, check in kernel_cases(small=dry).items():
            last = name.rpartition(" ")[2]
            if any(part in name for part in _LARGE) or (last.isdigit() and int(last) >= (1 if dry else 6)):
                continue
            if dry and name.startswith(("uncertain", "image")):
                continue
            check(executor)
            print(f"checked {name}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
