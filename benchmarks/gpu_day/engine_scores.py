"""Scores and maps of a category's test images by one backend, in a process that may be ended by a vendor's library.

python -m benchmarks.gpu_day.engine_scores BUNDLE BACKEND PRECISION CATEGORY OUT.npz [--dry-run]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from benchmarks.gpu_day.half import pick
from edgead.data import open_category
from edgead.data.loading import load_views
from edgead.runtime.frame import Frame
from edgead.runtime.inspection.inspector import Inspector


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("backend")
    parser.add_argument("precision")
    parser.add_argument("category", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--dry-run", action="store_true")
    given = parser.parse_args()
    samples = pick(open_category(given.category, need_test=True).test, given.dry_run)
    with Inspector.open(given.bundle, backend=given.backend, precision=given.precision) as inspect:
        found = [
            inspect(Frame(image, number, time.monotonic_ns(), "test"))
            for number, image in enumerate(load_views(samples, inspect.view))
        ]
    scores, maps = [one.score for one in found], [one.map for one in found]
    np.savez(given.out, score=np.array(scores, np.float32), map=np.stack([np.asarray(one) for one in maps]))


if __name__ == "__main__":
    main()
