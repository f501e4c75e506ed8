"""Mahalanobis scoring by the kernels, in the order in which mahalanobis.cuh launches them, and what it must equal."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tests.cuda.executor import Executor
from tests.cuda.knn import Floats

NO_FUSION, PRODUCT, ZSCORE = 0, 1, 2


@dataclass(frozen=True)
class Locations:
    """Distributions of a grid; `factors` are packed triangles or, where there is a `precision`, ``(P, r, d)``."""

    grid: tuple[int, int]
    mean: Floats
    factors: NDArray[np.generic]
    precision: Floats | None

    @property
    def channels(self) -> int:
        return self.mean.shape[1]

    @property
    def rank(self) -> int:
        return self.channels if self.precision is None else self.factors.shape[1]


def make(seed: int, grid: tuple[int, int], channels: int, rank: int | None, dtype: type[np.generic]) -> Locations:
    """Draw well-conditioned distributions; `rank` None for the triangular form."""
    random = np.random.default_rng(seed)
    count = grid[0] * grid[1]
    mean = (2.0 * random.standard_normal((count, channels))).astype(np.float32)
    if rank is None:
        size = channels * (channels + 1) // 2
        factors = random.standard_normal((count, size)) / np.sqrt(channels)
        diagonal = np.cumsum(np.arange(1, channels + 1)) - 1
        factors[:, diagonal] = 1.0 + np.abs(factors[:, diagonal])
        return Locations(grid, mean, factors.astype(dtype), None)
    # Differences stay well above zero, but for the first location, where they fall below it.
    factors = random.standard_normal((count, rank, channels)) / np.sqrt(2.0 * rank * channels)
    factors[0] *= 100.0
    return Locations(grid, mean, factors.astype(dtype), (0.5 + random.random(count)).astype(np.float32))


def shared_bytes(channels: int) -> int:
    width = -(-channels // 32) * 32
    columns = min(32, (32 << 10) // (4 * width)) // 8 * 8
    return 4 * (32 * 33 + columns * width)


def measure(executor: Executor, features: Floats, locations: Locations, window: int) -> Floats:
    """Squared distances ``(P, frames, window^2)``, NaN where the window leaves the grid."""
    frames, channels = len(features), locations.channels
    squared = np.full((len(locations.mean), frames, window * window), np.nan, np.float32)
    factor = {np.dtype(np.float32): "float", np.dtype(np.float16): "__half"}[locations.factors.dtype]
    triangular = "true" if locations.precision is None else "false"
    executor.launch(
        f"location_distances<{factor}, {triangular}>", (len(locations.mean), 1, 1), 256, shared_bytes(channels),
        features, locations.mean, locations.factors, locations.precision, frames, *locations.grid, channels,
        locations.rank, window, squared,
    )  # fmt: skip
    return squared


def scores(
    executor: Executor,
    squared: Floats,
    grid: tuple[int, int],
    window: int,
    nearest: NDArray[np.uint64] | None = None,
    fusion: int = NO_FUSION,
    scale: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> Floats:
    """Scores ``(frames, P)``; `scale` is that of both distances and the offset."""
    frames = squared.shape[1]
    found = np.full((frames, len(squared)), -7, np.float32)
    blocks = (-(-found.size // 256), 1, 1)
    neighbours = 1 if nearest is None else nearest.shape[1]
    arguments = (squared, frames, *grid, window, nearest, neighbours, fusion, *scale, found)
    executor.launch("location_scores", blocks, 256, 0, *arguments)
    return found


def reference(features: Floats, locations: Locations, window: int) -> NDArray[np.float64]:
    """Distances ``(frames, P)`` in float64, from the definition."""
    height, width = locations.grid
    count, channels = locations.mean.shape
    wide = features.astype(np.float64)
    best = np.full((len(features), count), np.inf)
    rows, columns = np.tril_indices(channels)
    for b in range(count):
        factor = locations.factors[b].astype(np.float64)
        if locations.precision is None:
            square = np.zeros((channels, channels))
            square[rows, columns] = factor
            factor = square
        for down in range(max(b // width - window // 2, 0), min(b // width + window // 2 + 1, height)):
            for right in range(max(b % width - window // 2, 0), min(b % width + window // 2 + 1, width)):
                a = down * width + right
                deviation = wide[:, a] - locations.mean[b]
                length = np.square(deviation @ factor.T).sum(1)
                if locations.precision is not None:
                    length = np.maximum(np.square(deviation).sum(1) * locations.precision[b] - length, 0.0)
                best[:, a] = np.minimum(best[:, a], length)
    return np.sqrt(best)
