"""Peak memory and processor time of a fit against the number of training images, as a table and as curves.

    python -m benchmarks.memory ../shared/data/mvtec_ad/screw --detectors patchcore,padim --counts 500,2000 \
        [--json memory.json] [--png docs/memory.png]

The images are those of the category, shifted by a few pixels and changed in brightness until there are enough. Each fit
runs in a process of its own with one thread; the system reports its peak resident memory, in which the interpreter and
libraries are, and its processor time, which other programs disturb less than the time on the wall. With ``--json`` rows
that are in the file are not measured again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

from edgead.data import load_images, open_category
from edgead.runtime.errors import DataError
from edgead.runtime.files import atomic_write

FIT = """
import json, resource, sys, time
import torch
from edgead.fitting import fit
torch.set_num_threads(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
started = time.process_time()
model = fit([sys.argv[1]], detector=sys.argv[2])
seconds = time.process_time() - started
weights = sum(tensor.nbytes for tensor in model.module.state_dict().values())
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
row = {"peak_mb": peak / 1024, "imports_mb": before / 1024, "model_mb": weights / 2**20, "processor_s": seconds}
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


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw memory and processor time over the number of images, a curve a detector."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 4), constrained_layout=True)
    for axis, key, label in zip(
        axes, ("peak_mb", "processor_s"), ("peak memory, MB", "processor time, s"), strict=True
    ):
        for detector in dict.fromkeys(row["detector"] for row in rows):
            points = sorted((row["images"], row[key]) for row in rows if row["detector"] == detector)
            axis.plot(*zip(*points, strict=True), marker="o", label=detector)
        axis.set(xlabel="training images (256 px)", ylabel=label, ylim=(0, None))
        axis.grid(alpha=0.3)
    axes[0].legend()
    with atomic_write(path, DataError) as stream:
        figure.savefig(stream, format="png", dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("category", type=Path)
    parser.add_argument("--detectors", default="patchcore,padim,npad,fre,protoad")
    parser.add_argument("--counts", default="500,2000")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--png", type=Path)
    arguments = parser.parse_args()
    if sys.platform != "linux":
        raise SystemExit("other systems report memory in other units; run this on Linux")
    rows: list[dict[str, Any]] = []
    if arguments.json and arguments.json.is_file():
        rows = json.loads(arguments.json.read_text())["rows"]
    known = {(row["detector"], row["images"]): row for row in rows}
    print(
        "| detector | images | peak MB | of it imports MB | model MB | processor s |\n|---|---|---|---|---|---|",
        flush=True,
    )
    for count in map(int, arguments.counts.split(",")):
        missing = [one for one in arguments.detectors.split(",") if (one, count) not in known]
        with TemporaryDirectory() as temporary:
            folder = Path(temporary, "parts")
            if missing:
                make_images(arguments.category, folder / "train" / "good", count)
            for detector in missing:
                time.sleep(1.0)
                command = [sys.executable, "-W", "error", "-c", FIT, str(folder), detector]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                rows.append({"detector": detector, "images": count, **json.loads(done.stdout)})
                known[detector, count] = rows[-1]
                if arguments.json:
                    with atomic_write(arguments.json, DataError) as stream:
                        stream.write(
                            (json.dumps({"schema": "edgead.memory/1", "rows": rows}, indent=2) + "\n").encode()
                        )
        for detector in arguments.detectors.split(","):
            row = known[detector, count]
            print(
                f"| {detector} | {count} | {row['peak_mb']:.0f} | {row['imports_mb']:.0f} | {row['model_mb']:.1f} "
                f"| {row['processor_s']:.0f} |",
                flush=True,
            )
    if arguments.png:
        draw(rows, arguments.png)


if __name__ == "__main__":
    main()
