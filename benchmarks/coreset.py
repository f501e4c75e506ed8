"""How long the greedy k-centre selection takes, in what memory, and that it is the exact greedy one.

    python -m benchmarks.coreset CATEGORY [--patches 200000] [--share 0.1] [--against 8000]

Patches are those of the category's good images with the default backbone at 256 pixels; where there are fewer than
asked for, images mirrored both ways fill up. ``--against`` patches are also selected from by the algorithm as it is
written in the paper, one row at a time: the same rows, or a coverage radius within rounding.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edgead.data import load_images, open_category
from edgead.features.backbones import BackboneSpec, build_backbone
from edgead.features.coreset import coverage_radius, greedy_coreset
from edgead.features.features import build_extractor


def patches_of(category: Path, wanted: int) -> Tensor:
    """Return ``wanted`` patches ``(n, C)``."""
    extractor = build_extractor(build_backbone(BackboneSpec(), (256, 256)), (256, 256))
    images = np.stack(list(load_images(open_category(category, train_only=True).train, 256, 256)))
    cells = extractor.grid[0] * extractor.grid[1]
    found = torch.empty(wanted, extractor.channels)
    filled = 0
    with torch.inference_mode():
        for view in (images, images[:, :, ::-1], images[:, ::-1], images[:, ::-1, ::-1]):
            for image in view:
                if filled == wanted:
                    return found
                rows = extractor(torch.from_numpy(image[None].copy()))[0].flatten(1).T
                taken = min(cells, wanted - filled)
                found[filled : filled + taken] = rows[:taken]
                filled += taken
    raise SystemExit(f"{category} has {filled} patches only; ask for fewer with --patches")


def one_at_a_time(patches: Tensor, size: int, first: int) -> Tensor:
    """Select as the paper writes it: the farthest patch, then every distance anew."""
    selected = [first]
    nearest = torch.full((len(patches),), float("inf"))
    for _ in range(size - 1):
        torch.minimum(nearest, (patches - patches[selected[-1]]).square().sum(1), out=nearest)
        selected.append(int(nearest.argmax()))
    return torch.tensor(selected)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("category", type=Path)
    parser.add_argument("--patches", type=int, default=200_000)
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--against", type=int, default=8_000)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    patches = patches_of(arguments.category, arguments.patches)
    few = patches[torch.randperm(len(patches), generator=torch.Generator().manual_seed(0))[: arguments.against]]
    size = int(len(few) * arguments.share)
    fast = greedy_coreset(few, size, seed=0)
    exact = one_at_a_time(few, size, int(fast[0]))
    same = len(set(fast.tolist()) & set(exact.tolist())) / size
    radius = coverage_radius(few, few[fast]) / coverage_radius(few, few[exact])
    print(
        f"{size} of {len(few)}: {same:.2%} the rows of the exact greedy selection, coverage radius {radius:.6f} of its"
    )
    size = int(len(patches) * arguments.share)
    started, busy = time.perf_counter(), time.process_time()
    selected = greedy_coreset(patches, size, seed=0)
    seconds, busy = time.perf_counter() - started, time.process_time() - busy
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux counts in KiB
    print(
        f"{size} of {len(patches)}: {seconds:.1f} s ({busy:.1f} s of processor time, {arguments.threads} threads), "
        f"peak of the whole process {peak:.0f} MB, coverage radius {coverage_radius(patches, patches[selected]):.3f}"
    )


if __name__ == "__main__":
    main()
