"""Greedy k-centre selection of a memory bank: exact, bounded in memory, deterministic for a seed.

Each step takes the patch farthest from everything taken so far (PatchCore, Roth et al. 2022, section 3.2; the
2-approximation of Gonzalez 1985). The published code shortens the vectors by a random projection to make a step
cheap; on weakly textured parts that costs accuracy (magnetic tile, 64 of 152 dimensions, 2048 rows, two and three
seeds: image AUROC .898 instead of .909). Here steps are grouped instead, without changing the result: a distance to the
selection only shrinks as the selection grows, so a stale distance is an upper bound (lazy greedy, Minoux 1978). Among
the farthest few patches the exact greedy choice can be followed for as long as it beats the bound on all the others;
then one matrix product brings every distance up to date.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from edgead.runtime.progress import Progress, silent

# Patches looked at between two updates, the most that are selected from them, and rows updated at a time.
_CANDIDATES = 1024
_GROUP = 128
_CHUNK = 8192


def greedy_coreset(
    patches: Tensor,
    size: int,
    *,
    seed: int,
    projection: int | None = None,
    progress: Progress = silent,
    stage: str = "coreset",
) -> Tensor:
    """Select ``size`` rows that cover the others.

    Args:
        patches: ``(n, C)`` float32.
        size: rows to select; n or more selects every row.
        seed: chooses the first row, and the projection where one is asked for.
        projection: dimensions of a random Gaussian projection in which distances are taken; None for exact distances.
        progress: called with ``(stage, done, total)``.

    Returns:
        Indices ``(min(size, n),)`` int64 in order of selection. The first k of them are the coreset of size k.
    """
    count = patches.shape[0]
    if size >= count:
        return torch.arange(count)
    generator = torch.Generator().manual_seed(seed)
    if projection is not None and projection < patches.shape[1]:
        matrix = torch.randn(patches.shape[1], projection, generator=generator) / projection**0.5
        patches = patches @ matrix
    # Centred, so that the difference of squares below loses as few digits as possible.
    points = patches - patches.mean(0)
    norms = points.square().sum(1)
    nearest = torch.full((count,), float("inf"))
    selected = torch.empty(size, dtype=torch.int64)
    selected[0] = torch.randint(count, (1,), generator=generator)
    done, filled = 0, 1
    while filled < size:
        _update(nearest, points, norms, selected[done:filled])
        done = filled
        chosen = _follow_greedy(nearest, points, norms, min(_GROUP, size - filled))
        selected[filled : filled + len(chosen)] = chosen
        filled += len(chosen)
        progress(stage, filled, size)
    return selected


def _update(nearest: Tensor, points: Tensor, norms: Tensor, new: Tensor) -> None:
    """Lower ``nearest (n,)``, squared distances to the selection, by the rows ``new``."""
    centers, center_norms = points[new], norms[new]
    for start in range(0, len(points), _CHUNK):
        rows = slice(start, start + _CHUNK)
        offset = center_norms.expand(len(points[rows]), -1)
        squared = torch.addmm(offset, points[rows], centers.T, alpha=-2).amin(1).add_(norms[rows])
        torch.minimum(nearest[rows], squared, out=nearest[rows])
    # Below every distance, so that a row is never selected twice, also among equal rows.
    nearest[new] = -1.0


def _follow_greedy(nearest: Tensor, points: Tensor, norms: Tensor, most: int) -> Tensor:
    """Return the next greedy choices, one at least, as far as they are certain from the farthest candidates alone."""
    values, candidates = torch.topk(nearest, min(_CANDIDATES + 1, len(nearest)))
    bound = float(values[-1])
    current = values.numpy().copy()
    members, member_norms = points[candidates], norms[candidates]
    products = torch.addmm(member_norms.expand(len(members), -1), members, members.T, alpha=-2)
    between = products.add_(member_norms[:, None]).numpy()
    chosen: list[int] = []
    while len(chosen) < most:
        farthest = int(current.argmax())
        if chosen and current[farthest] < bound:
            break
        chosen.append(farthest)
        np.minimum(current, between[farthest], out=current)
        current[chosen] = -1.0
    return candidates[torch.tensor(chosen)]


def coverage_radius(patches: Tensor, bank: Tensor, chunk: int = 8192) -> float:
    """Return the largest distance from a patch ``(n, C)`` to its nearest bank row ``(M, C)``."""
    worst = 0.0
    for part in torch.split(patches, chunk):
        worst = max(worst, float(torch.cdist(part, bank).amin(1).max()))
    return worst
