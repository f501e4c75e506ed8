"""Peak memory of a fit against the number of training images.

    python -m benchmarks.memory ../shared/data/mvtec_ad/screw --detectors patchcore,padim --counts 500,2000

The images are those of the category, shifted by a few pixels and changed in brightness until there are enough. Each fit
runs in a process of its own, whose peak resident memory the system reports; the interpreter and libraries are in it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from edgead.data import load_images, open_category

FIT = """
import json, resource, sys, time
from edgead.fitting import fit
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
started = time.perf_counter()
model = fit([sys.argv[1]], detector=sys.argv[2])
seconds = time.perf_counter() - started
weights = sum(tensor.nbytes for tensor in model.module.state_dict().values())
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
row = {"peak_mb": peak / 1024, "imports_mb": before / 1024, "model_mb": weights / 2**20, "seconds": seconds}
print(json.dumps(row))
"""


def make_images(category: Path, folder: Path, count: int) -> None:
    """Write ``count`` images of 256x256 pixels made from the good ones of a category."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    samples = open_category(category, train_only=True).train
    originals = list(load_images(samples, 256, 256))
    for number in range(count):
        shift = tuple(random.integers(-6, 7, 2).tolist())
        moved = np.roll(originals[number % len(originals)], shift, axis=(0, 1)).astype(np.float32)
        changed = np.clip(moved * random.uniform(0.95, 1.05), 0, 255).astype(np.uint8)
        Image.fromarray(changed).save(folder / f"{number:05d}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("category", type=Path)
    parser.add_argument("--detectors", default="patchcore,padim,npad,fre,protoad")
    parser.add_argument("--counts", default="500,2000")
    arguments = parser.parse_args()
    if sys.platform != "linux":
        raise SystemExit("other systems report memory in other units; run this on Linux")
    print(
        "| detector | images | peak MB | of it imports MB | model MB | fit s |\n|---|---|---|---|---|---|", flush=True
    )
    for count in map(int, arguments.counts.split(",")):
        with TemporaryDirectory() as temporary:
            folder = Path(temporary, "parts")
            make_images(arguments.category, folder / "train" / "good", count)
            for detector in arguments.detectors.split(","):
                time.sleep(1.0)
                command = [sys.executable, "-W", "error", "-c", FIT, str(folder), detector]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                row = json.loads(done.stdout)
                print(
                    f"| {detector} | {count} | {row['peak_mb']:.0f} | {row['imports_mb']:.0f} | {row['model_mb']:.1f} "
                    f"| {row['seconds']:.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
