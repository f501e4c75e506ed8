"""How far the composition of an image is from that of normal ones: what no single patch shows.

A part too few, one too many, or one in the wrong compartment consists of patches that normal images have, too. What
changes is how much there is of what, and in which quarter of the image: the means of features over quarters. A Gaussian
of these means, shrunk after Chen et al., "Shrinkage Algorithms for MMSE Covariance Estimation" (OAS, IEEE TSP 2010),
says how unusual they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

_QUARTERS = 4
_LEAST_SPREAD = 1e-6
_TINY = 1e-6
_LEAST_REACH = 0.05  # in logarithms: what counts as spread where the normals hardly differ
_NEVER = 1e4  # a middle that no distance comes near: the composition has no say before it is fitted
_HIGH = 0.9  # the upper end of normal is the mean of what lies above this quantile


class Composition(nn.Module):
    """Features of several strides to the mean squared Mahalanobis distance ``(N,)`` of their means over quarters.

    Args:
        channels: of each of the features ``(N, C_i, h_i, w_i)``.
        grids: ``(h_i, w_i)`` of each.
    """

    mean: Tensor
    scale: Tensor
    directions: Tensor
    weights: Tensor
    rest: Tensor

    def __init__(self, channels: Sequence[int], grids: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        size = _QUARTERS * sum(channels)
        for number, grid in enumerate(grids):
            self.register_buffer(f"quarters{number}", _quarters(*grid), persistent=False)
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("scale", torch.zeros(size))
        self.register_buffer("directions", torch.zeros(size, 1))
        self.register_buffer("weights", torch.zeros(1))
        self.register_buffer("rest", torch.zeros(1))

    def means(self, features: Sequence[Tensor]) -> Tensor:
        """Return ``(N, D)``: of every channel its mean over each quarter."""
        # A product with constants: exports as one, whatever the grid.
        parts = [one.flatten(2) @ getattr(self, f"quarters{number}") for number, one in enumerate(features)]
        return torch.cat([part.flatten(1) for part in parts], dim=1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        centred = (self.means(features) - self.mean) * self.scale
        along = centred @ self.directions
        across = centred - along @ self.directions.T
        return (along * along) @ self.weights + (across * across).mean(1) * self.rest

    def fit(self, means: NDArray[np.float32]) -> None:
        """Set the Gaussian from the means ``(n, D)`` of normal images."""
        from sklearn.covariance import OAS

        values = means.astype(np.float64)
        spread = values.std(axis=0)
        scale = np.where(spread > _LEAST_SPREAD, 1.0 / np.maximum(spread, _LEAST_SPREAD), 0.0)
        centre = values.mean(axis=0)
        normal = (values - centre) * scale
        shrinkage = float(OAS(assume_centered=True).fit(normal).shrinkage_)
        _, singular, directions = np.linalg.svd(normal, full_matrices=False)
        kept = singular > _LEAST_SPREAD * max(1.0, float(singular.max(initial=0.0)))
        size, variances = normal.shape[1], singular[kept] ** 2 / len(normal)
        flat = max(shrinkage * float(variances.sum()) / size, _LEAST_SPREAD)
        of_directions = 1.0 / (size * ((1.0 - shrinkage) * variances + flat))
        for name, value in (
            ("mean", centre),
            ("scale", scale),
            ("directions", directions[kept].T),
            ("weights", of_directions),
            ("rest", np.array([1.0 / flat])),
        ):
            setattr(self, name, torch.from_numpy(np.ascontiguousarray(value)).float().to(self.mean.device))

    def adopt(self, directions: Tensor) -> None:
        """Take the shape of saved directions, of which there are as many as there were images."""
        self.directions = torch.zeros_like(directions)
        self.weights = torch.zeros(directions.shape[1])


class Judgement(nn.Module):
    """The image score of a map's own score and the distance of the composition, and the map in the same unit.

    Both are logarithms, 0 at the median of the held-out normals and 1 at their upper end; the image score is the larger
    one. ``softplus`` keeps it positive and changes no order.
    """

    middle: Tensor
    reach: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("middle", torch.tensor([0.0, _NEVER]))
        self.register_buffer("reach", torch.ones(2))

    def forward(self, of_map: Tensor, distance: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
        """Return score ``(N,)`` and map of the map's score ``(N,)``, the distances ``(N,)`` and a map from 0 to 1."""
        larger = torch.maximum(self._unit(of_map, 0), self._unit(distance, 1))
        return F.softplus(larger), F.softplus(self._unit(grid, 0))

    def fit(self, of_map: NDArray[np.float32], distances: NDArray[np.float32]) -> None:
        """Set the units from ``(n,)`` map scores and distances of normal images that taught neither."""
        for place, values in enumerate((of_map, distances)):
            logarithms = np.log(values.astype(np.float64) + _TINY)
            middle = float(np.median(logarithms))
            high = logarithms[logarithms >= np.quantile(logarithms, _HIGH)].mean()
            self.middle[place], self.reach[place] = middle, max(float(high) - middle, _LEAST_REACH)

    def _unit(self, values: Tensor, place: int) -> Tensor:
        return (torch.log(values + _TINY) - self.middle[place]) / self.reach[place]


def _quarters(height: int, width: int) -> Tensor:
    """Return ``(height * width, 4)``: what each cell adds to the mean of each quarter; an odd middle is in both."""
    rows, columns = ((np.arange(n)[:, None], n) for n in (height, width))

    def halves(places: NDArray[np.int64], count: int) -> NDArray[np.bool_]:
        return np.concatenate([places < (count + 1) // 2, places >= count // 2], axis=1)

    below, beside = halves(*rows), halves(*columns)
    cells = np.einsum("ra,cb->rcab", below, beside).reshape(height * width, _QUARTERS).astype(np.float64)
    return torch.from_numpy((cells / cells.sum(axis=0)).astype(np.float32))
