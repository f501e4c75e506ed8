"""Heads that detectors share, and N-pad's: ``(N, C, gh, gw)`` to ``(map (N, gh, gw), image weight (N,) or None)``."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgead.export.ops.knn import knn_score, knn_search, make_keys
from edgead.export.ops.mahalanobis import mahalanobis_score, squared_lengths, squared_low_rank

# Stands for "no distribution there" in squared distances: finite, because a constant of the graph must be.
_FAR = 1e30


class NearestNeighbourHead(nn.Module):
    """Distance to the nearest row of ``bank (M, C)``, in units of the features.

    One node `edgead.export.ops.knn`, which is one matrix product over the bank. Queries and bank are centred on the
    bank's mean, which keeps its difference of squares accurate.

    Args:
        bank: ``(M, C)`` float32 rows.
        neighbours: ``(M, b)`` int64, each row's nearest bank rows (itself first); None without re-weighting.
    """

    bank: Tensor
    center: Tensor
    keys: Tensor
    neighbours: Tensor | None

    def __init__(self, bank: Tensor, neighbours: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("bank", bank)
        self.register_buffer("center", bank.mean(0))
        self.register_buffer("neighbours", neighbours)
        self.register_buffer("keys", make_keys(self.bank, self.center), persistent=False)
        # A saved bank arrives through load_state_dict; what is computed from it must follow.
        self.register_load_state_dict_post_hook(lambda module, _: module.refresh())  # type: ignore[no-untyped-call]

    def refresh(self) -> None:
        """Recompute what is derived from the bank."""
        self.keys = make_keys(self.bank, self.center)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor | None]:
        height, width = features.shape[2], features.shape[3]
        distances, weight = self.nearest(features.flatten(2).transpose(1, 2))
        return distances.reshape(-1, height, width), weight

    def nearest(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Map ``rows (N, P, C)`` to distances ``(N, P)`` and the image weight ``(N,)`` or None."""
        queries = rows - self.center
        if self.neighbours is None:
            return knn_score(queries, self.keys).squeeze(2), None
        found, index = knn_search(queries, self.keys)
        distances = found.squeeze(2)
        return distances, self._weight(queries, index.squeeze(2), distances)

    def _weight(self, queries: Tensor, index: Tensor, distances: Tensor) -> Tensor:
        """Equation 7: one minus the softmax of the worst patch's distance among its neighbour's neighbourhood."""
        worst = distances.argmax(1)
        row = index.gather(1, worst[:, None])[:, 0]
        patch = queries.gather(1, worst[:, None, None].expand(-1, 1, queries.shape[2]))
        assert self.neighbours is not None
        around = (self.bank - self.center)[self.neighbours[row]]
        difference = patch - around
        spread = torch.sqrt((difference * difference).sum(2))
        return 1.0 - torch.softmax(spread, dim=1)[:, 0]


class MahalanobisHead(nn.Module):
    """``|W_p (f_p - mu_p)|`` for each location p, with ``W^T W`` the inverse covariance.

    Args:
        mean: ``(P, d)`` float32.
        whitening: ``(P, d, d)`` float32, lower triangular.
    """

    mean: Tensor
    whitening: Tensor

    def __init__(self, mean: Tensor, whitening: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("whitening", whitening)

    def forward(self, features: Tensor) -> tuple[Tensor, None]:
        height, width = features.shape[2], features.shape[3]
        distances = mahalanobis_score(features.flatten(2).transpose(1, 2), self.mean, self.whitening)
        return distances.reshape(-1, height, width), None


class LocationGaussians(nn.Module):
    """Mahalanobis distance to the Gaussian of each location, or to the nearest of those in a window around it.

    Args:
        mean: ``(P, d)`` float32.
        form: `TriangularWhitening` or `LowRankWhitening`.
        window: side q, odd; ``min |W_b (f_a - mu_b)|`` over the locations b of the q x q window around a.
    """

    mean: Tensor

    def __init__(self, mean: Tensor, form: TriangularWhitening | LowRankWhitening, window: int = 1) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.form: TriangularWhitening | LowRankWhitening = form
        self.window = window

    def distances(self, rows: Tensor, grid: tuple[int, int]) -> Tensor:
        """Map ``rows (N, P, d)`` to distances ``(N, P)``."""
        if self.window == 1:
            return mahalanobis_score(rows, self.mean, *self.form.factors_and_precision)
        return torch.sqrt(self._nearest_in_window(rows.permute(1, 2, 0), grid)).T

    def _nearest_in_window(self, located: Tensor, grid: tuple[int, int]) -> Tensor:
        """Each distribution judges its q x q neighbours in one product, then each cell takes its least distance."""
        height, width = grid
        reach = self.window // 2
        offsets = [(i, j) for i in range(self.window) for j in range(self.window)]
        located = located.reshape(height, width, self.mean.shape[1], -1)
        around = F.pad(located, (0, 0, 0, 0, reach, reach, reach, reach))
        neighbours = torch.stack([around[i : i + height, j : j + width] for i, j in offsets], dim=3)
        deviation = neighbours.reshape(*self.mean.shape, -1) - self.mean[:, :, None]
        squared = self.form(deviation).reshape(height, width, len(offsets), -1)
        # What was judged at b for the cell b + offset goes back to that cell; padding was judged for cells outside.
        back = F.pad(squared, (0, 0, 0, 0, reach, reach, reach, reach), value=_FAR)
        last = 2 * reach
        moved = [
            back[last - i : last - i + height, last - j : last - j + width, number]
            for number, (i, j) in enumerate(offsets)
        ]
        return torch.stack(moved).amin(0).flatten(0, 1)


class NPadHead(nn.Module):
    """N-pad: projection, the two distances, and their fusion.

    Args:
        projection: ``(C, d)`` float32; None where the features come as they are to be used.
        gaussians, centroids: one of them or both.
        zscore: ``(2, 2)`` float32, mean and standard deviation of the Mahalanobis and of the Euclidean distance, the
            latter's deviation divided by its weight; None multiplies the two, and must be None where there is one only.
        condition: largest condition number of a covariance; jitter: largest that one needed. Kept for the record.
    """

    projection: Tensor | None
    zscore: Tensor | None
    condition: Tensor
    jitter: Tensor

    def __init__(
        self,
        projection: Tensor | None,
        gaussians: LocationGaussians | None,
        centroids: NearestNeighbourHead | None,
        *,
        zscore: Tensor | None = None,
        condition: float = 0.0,
        jitter: float = 0.0,
    ) -> None:
        super().__init__()
        self.register_buffer("projection", projection)
        self.gaussians = gaussians
        self.centroids = centroids
        self.register_buffer("zscore", zscore)
        self.register_buffer("condition", torch.tensor(condition))
        self.register_buffer("jitter", torch.tensor(jitter))

    def forward(self, features: Tensor) -> tuple[Tensor, None]:
        grid = (features.shape[2], features.shape[3])
        distances = self.distances(features.flatten(2).transpose(1, 2), grid)
        if self.zscore is not None:
            # Scale and offset are formed here, not before, so that one set of numbers is saved; constants fold.
            scale = 1.0 / self.zscore[:, 1]
            offset = (self.zscore[:, 0] * scale).sum()
            fused = distances[0] * scale[0] + distances[1] * scale[1] - offset
        else:
            fused = distances[0] if len(distances) == 1 else distances[0] * distances[1]
        return fused.reshape(-1, *grid), None

    def distances(self, rows: Tensor, grid: tuple[int, int]) -> list[Tensor]:
        """Map ``rows (N, P, C)`` to the distances in use, ``(N, P)`` each: Mahalanobis first, then Euclidean."""
        if self.projection is not None:
            rows = rows @ self.projection
        found = [] if self.gaussians is None else [self.gaussians.distances(rows, grid)]
        return found if self.centroids is None else [*found, self.centroids.nearest(rows)[0]]


class TriangularWhitening(nn.Module):
    """``|W_p x|^2`` with lower triangular ``W_p``, kept as its ``d (d + 1) / 2`` entries.

    Args:
        packed: ``(P, d (d + 1) / 2)``, rows of the triangle one after the other, float32 or float16. The product is
            taken in float32 either way; float16 only halves what is stored.
    """

    packed: Tensor
    whitening: Tensor

    def __init__(self, packed: Tensor) -> None:
        super().__init__()
        self.register_buffer("packed", packed)
        self.register_buffer("whitening", unpack_triangles(packed), persistent=False)
        self.register_load_state_dict_post_hook(lambda module, _: module.refresh())  # type: ignore[no-untyped-call]

    def refresh(self) -> None:
        """Recompute the square form, which the matrix product needs."""
        self.whitening = unpack_triangles(self.packed)

    @property
    def factors_and_precision(self) -> tuple[Tensor, None]:
        """What `mahalanobis_score` takes."""
        return self.whitening, None

    def forward(self, deviation: Tensor) -> Tensor:
        """Map deviations ``(P, d, M)`` to squared distances ``(P, M)``."""
        return squared_lengths(self.whitening.float(), deviation)


class LowRankWhitening(nn.Module):
    """Inverse covariance from the r largest eigenpairs of each location and one variance for all other directions.

    With eigenvalues ``l_1 >= ... >= l_d`` and ``v = mean(l_{r+1} ... l_d)`` (the maximum-likelihood noise of
    probabilistic PCA, Tipping and Bishop 1999) the squared distance
    ``sum_{i<=r} (u_i x)^2 / l_i + (|x|^2 - sum_{i<=r} (u_i x)^2) / v`` is ``|x|^2 / v - |V x|^2`` where row i of V is
    ``sqrt(1/v - 1/l_i) u_i``: one product with r instead of d rows.

    Args:
        factors: V, ``(P, r, d)``, float32 or float16 (computed with in float32).
        precision: ``1 / v``, ``(P,)`` float32.
    """

    factors: Tensor
    precision: Tensor

    def __init__(self, factors: Tensor, precision: Tensor) -> None:
        super().__init__()
        self.register_buffer("factors", factors)
        self.register_buffer("precision", precision)

    @property
    def factors_and_precision(self) -> tuple[Tensor, Tensor]:
        """What `mahalanobis_score` takes."""
        return self.factors, self.precision

    def forward(self, deviation: Tensor) -> Tensor:
        """Map deviations ``(P, d, M)`` to squared distances ``(P, M)``."""
        return squared_low_rank(self.factors.float(), self.precision, deviation)


def pack_triangles(square: Tensor) -> Tensor:
    """Return the lower triangles of ``(P, d, d)`` row by row, ``(P, d (d + 1) / 2)``."""
    rows, columns = torch.tril_indices(square.shape[1], square.shape[1])
    return square[:, rows, columns].contiguous()


def unpack_triangles(packed: Tensor) -> Tensor:
    """Undo `pack_triangles`; what lies above the diagonal is zero."""
    dimensions = (math.isqrt(8 * packed.shape[1] + 1) - 1) // 2
    rows, columns = torch.tril_indices(dimensions, dimensions)
    square = packed.new_zeros(len(packed), dimensions, dimensions)
    square[:, rows, columns] = packed
    return square
