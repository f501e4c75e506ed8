"""Gaussian densities of learned embeddings: how far one lies from the normal ones, in standard deviations."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

# Of the mean variance, added in every direction: few embeddings span few directions, and a whitening that stretches
# the others makes a distance of rounding errors, those of half precision above all.
RIDGE = 0.05


class GaussianDensity(nn.Module):
    """Embeddings ``(N, C)`` or ``(N, P, C)`` to Mahalanobis distances ``(N,)`` or ``(N, P)``.

    The whitening W with ``W^T W`` the inverse covariance is stored, so that scoring is a product and a sum of squares.
    Until `fit`, it is the distance from the origin.
    """

    whitening: Tensor
    shift: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("whitening", torch.eye(channels))
        self.register_buffer("shift", torch.zeros(channels))

    def forward(self, embeddings: Tensor) -> Tensor:
        white = torch.matmul(embeddings, self.whitening) - self.shift
        return torch.sqrt((white * white).sum(-1))

    def fit(self, mean: Tensor, covariance: Tensor) -> None:
        """Take a mean ``(C,)`` and a positive definite covariance ``(C, C)``."""
        mean, covariance = mean.double(), covariance.double()
        lower = torch.linalg.cholesky(covariance)
        eye = torch.eye(len(lower), dtype=torch.float64, device=lower.device)
        whitening = torch.linalg.solve_triangular(lower, eye, upper=False).T
        self.whitening.copy_(whitening)
        self.shift.copy_(mean @ whitening)


def add_ridge(covariance: Tensor) -> Tensor:
    """Return ``(C, C)`` with `RIDGE` of its mean variance, and a little more where there is none, on the diagonal."""
    level = RIDGE * torch.diagonal(covariance).mean() + 1e-9
    return covariance + level * torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)


def shrunk_moments(embeddings: NDArray[np.floating]) -> tuple[Tensor, Tensor]:
    """Return mean and covariance of ``(n, C)``, float64, the latter shrunk towards a sphere (Ledoit and Wolf 2004).

    As Rippel et al. (ICPR 2020) do for few embeddings of many channels; the ridge is ours.
    """
    from sklearn.covariance import LedoitWolf

    rows = np.asarray(embeddings, np.float64)
    found = LedoitWolf().fit(rows)
    return torch.from_numpy(found.location_), add_ridge(torch.from_numpy(found.covariance_))
