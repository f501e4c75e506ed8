"""Sufficient statistics of features, gathered in one pass and kept apart by fold, and the Gaussians made from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgead.runtime.errors import DataError

# Locations whose float64 matrices are held at a time: of single Gaussians, and of windows, whose bands overlap.
_BLOCK = 64
_BAND = 128


class ChannelStatistics:
    """Count, mean and covariance of all patches, wherever they lie.

    Args:
        folds: number of folds.
        channels: C.
    """

    def __init__(self, folds: int, channels: int) -> None:
        self._count = torch.zeros(folds, dtype=torch.float64)
        self._sum = torch.zeros(folds, channels, dtype=torch.float64)
        self._outer = torch.zeros(folds, channels, channels, dtype=torch.float64)
        self._origin: Tensor | None = None

    def update(self, rows: Tensor, folds: NDArray[np.int64]) -> None:
        """Take ``rows (n, P, C)`` of n images and the fold ``(n,)`` of each."""
        if self._origin is None:
            self._origin = rows.mean((0, 1))
        for fold in np.unique(folds):
            part = rows[torch.from_numpy(np.flatnonzero(folds == fold))].flatten(0, 1) - self._origin
            self._count[fold] += len(part)
            self._sum[fold] += part.double().sum(0)
            self._outer[fold] += part.T @ part

    def moments(self, used: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return mean ``(C,)`` and covariance ``(C, C)``, float64, over the given folds."""
        assert self._origin is not None
        count = float(self._count[used].sum())
        mean = self._sum[used].sum(0) / count
        scatter = self._outer[used].sum(0) - count * torch.outer(mean, mean)
        return mean + self._origin.double(), scatter / max(count - 1.0, 1.0)


class LocationStatistics:
    """Counts, sums and outer products at each location, about the first batch's mean so that differences stay accurate.

    Memory is ``folds * P * C^2`` numbers and does not grow with the images.

    Args:
        folds: number of folds.
        cells: P, locations.
        channels: C.
        dtype: of the outer products. In float32 a covariance is off by about 1e-7 of its largest eigenvalue.
    """

    def __init__(self, folds: int, cells: int, channels: int, dtype: torch.dtype = torch.float32) -> None:
        self._count = torch.zeros(folds, dtype=torch.float64)
        self._sum = torch.zeros(folds, cells, channels, dtype=torch.float64)
        self._outer = torch.zeros(folds, cells, channels, channels, dtype=dtype)
        self._origin: Tensor | None = None

    def update(self, rows: Tensor, folds: NDArray[np.int64]) -> None:
        """Take ``rows (n, P, C)`` of n images and the fold ``(n,)`` of each."""
        located = rows.permute(1, 0, 2).to(self._outer.dtype)
        if self._origin is None:
            self._origin = located.mean(1, keepdim=True)
        located = located - self._origin
        for fold in np.unique(folds):
            members = located[:, torch.from_numpy(np.flatnonzero(folds == fold))]
            self._count[fold] += members.shape[1]
            self._sum[fold] += members.double().sum(1)
            self._outer[fold].baddbmm_(members.transpose(1, 2), members)

    def means(self, used: Sequence[int]) -> tuple[float, Tensor, Tensor]:
        """Return the image count, the means ``(P, C)`` about an origin, and that origin ``(P, C)``; float64."""
        assert self._origin is not None
        count = float(self._count[used].sum())
        return count, self._sum[used].sum(0) / count, self._origin[:, 0].double()

    def scatter(self, used: Sequence[int], part: slice, count: float, mean: Tensor) -> Tensor:
        """Return ``sum (f - mean)(f - mean)^T`` at some locations, ``(len, C, C)`` float64; arguments as of `means`."""
        outer = self._outer[used[0], part].to(torch.float64, copy=True)
        for fold in used[1:]:
            outer += self._outer[fold, part]
        center = mean[part, :, None]
        return outer - count * center * center.transpose(1, 2)

    def location_gaussians(self, used: Sequence[int]) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield a block of locations with its means ``(b, C)`` and covariances ``(b, C, C)``, float64."""
        count, mean, origin = self.means(used)
        for start in range(0, len(mean), _BLOCK):
            part = slice(start, min(start + _BLOCK, len(mean)))
            covariance = self.scatter(used, part, count, mean) / max(count - 1.0, 1.0)
            yield part, mean[part] + origin[part], covariance

    def window_gaussians(
        self, used: Sequence[int], grid: tuple[int, int], window: int, basis: Tensor | None = None
    ) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield as `location_gaussians`, each Gaussian over all features in the window around its location.

        No neighbour is ever copied: the sums of the window are box-filtered sums of the locations, and

            sum (f - mu)(f - mu)^T = sum_p S_p + n (sum_p m_p m_p^T - k mu mu^T)

        for a window of k locations with means m_p and scatters S_p over n images each.

        Args:
            used: folds to take.
            grid: ``(gh, gw)``, with gh * gw = P.
            window: side, odd; cropped at the borders.
            basis: ``(C, d)`` float64 projection of the features; None for none.
        """
        count, mean, origin = self.means(used)
        absolute = mean + origin
        center = absolute.mean(0)
        offset = absolute - center
        if basis is not None:
            offset, center = offset @ basis, center @ basis
        dimensions = offset.shape[1]
        (height, width), reach = grid, window // 2
        products = offset.new_empty(0, width, dimensions, dimensions)
        held = 0  # first row of `products`
        band = max(1, _BAND // width)
        for top in range(0, height, band):
            bottom = min(top + band, height)
            first, last = max(0, top - reach), min(height, bottom + reach)
            known = held + len(products)
            new = slice(known * width, last * width)
            scatter = self.scatter(used, new, count, mean)
            if basis is not None:
                scatter = basis.T @ (scatter @ basis)
            scatter += count * offset[new, :, None] * offset[new, None, :]
            products = torch.cat(
                [products[first - held :], scatter.reshape(last - known, width, dimensions, dimensions)]
            )
            held = first
            inner = slice(top - first, bottom - first)
            around = offset[first * width : last * width].reshape(last - first, width, dimensions)
            cells = window_sum(torch.ones_like(around[:, :, :1]), window)[inner].flatten(0, 1)
            pooled = window_sum(around, window)[inner].flatten(0, 1) / cells
            summed = window_sum(products, window)[inner].flatten(0, 1)
            samples = (count * cells)[:, :, None]
            covariance = (summed - samples * pooled[:, :, None] * pooled[:, None, :]) / (samples - 1.0).clamp(min=1.0)
            yield slice(top * width, bottom * width), pooled + center, covariance


def window_sum(values: Tensor, window: int) -> Tensor:
    """Return the sum of ``values (gh, gw, ...)`` over the window around each cell, cropped at the borders."""
    for axis in (0, 1):
        size = values.shape[axis]
        total = values.clone()
        for step in range(1, min(window // 2, size - 1) + 1):
            for shift in (-step, step):
                target = total.narrow(axis, max(0, -shift), size - step)
                target += values.narrow(axis, max(0, shift), size - step)
        values = total
    return values


def whiten(covariance: Tensor) -> tuple[Tensor, float]:
    """Return lower triangular ``W (b, d, d)`` with ``W^T W`` the inverse of ``covariance``, and the jitter it took.

    Where rounding left a matrix that is not positive definite, the least power of ten times its mean variance
    (from 1e-9) is added to its diagonal.

    Raises:
        DataError: something is NaN or infinite, or no jitter helped.
    """
    require_finite(covariance)
    identity = torch.eye(covariance.shape[1], dtype=covariance.dtype)
    factor, failed = torch.linalg.cholesky_ex(covariance)
    jitter = 0.0
    for index in torch.nonzero(failed)[:, 0].tolist():
        scale = float(covariance[index].diagonal().mean())
        for exponent in range(-9, 1):
            added = scale * 10.0**exponent
            factor[index], info = torch.linalg.cholesky_ex(covariance[index] + added * identity)
            if int(info) == 0:
                jitter = max(jitter, added)
                break
        else:
            raise DataError("the features of the training images have no covariance; check the backbone's weights")
    return torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False), jitter


def whiten_low_rank(covariance: Tensor, rank: int, floor: float) -> tuple[Tensor, Tensor]:
    """Return factors ``(b, rank, d)`` and precision ``(b,)`` of `edgead.detectors.heads.LowRankWhitening`, float32.

    Args:
        covariance: ``(b, d, d)`` float64, d > rank.
        rank: eigenpairs kept.
        floor: what no eigenvalue is below but for rounding.
    """
    require_finite(covariance)
    # In float32, which is what they are stored in, and takes half the time: a fit decomposes some ten thousand of them.
    variances, axes = torch.linalg.eigh(covariance.float())
    variances = variances.clamp(min=floor)
    others = covariance.shape[1] - rank
    precision = 1.0 / variances[:, :others].mean(1)
    gain = torch.sqrt((precision[:, None] - 1.0 / variances[:, others:]).clamp(min=0.0))
    return (axes[:, :, others:] * gain[:, None]).transpose(1, 2), precision


def require_finite(values: Tensor) -> None:
    """Raise `DataError` where something made from features is NaN or infinite."""
    if not bool(torch.isfinite(values).all()):
        raise DataError("the features of a training image are NaN or infinite; check the backbone's weights")


def random_orthonormal(channels: int, dimensions: int, seed: int) -> Tensor:
    """Return ``(channels, dimensions)`` float64 with orthonormal columns in uniformly random directions."""
    gaussian = torch.from_numpy(np.random.default_rng(seed).standard_normal((channels, dimensions)))
    basis: Tensor
    basis, triangle = torch.linalg.qr(gaussian)
    # LAPACKs differ in the signs they choose.
    return basis * torch.where(triangle.diagonal() < 0, -1.0, 1.0)


def principal_axes(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Return variances ``(C,)``, largest first, and axes ``(C, C)`` in columns, the largest entry of each positive."""
    require_finite(covariance)
    variances, axes = torch.linalg.eigh(covariance)
    variances, axes = variances.flip(0).clamp(min=0.0), axes.flip(1)
    largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    return variances, axes * torch.where(largest < 0, -1.0, 1.0)


def whitening_axes(covariance: Tensor, floor: float) -> Tensor:
    """Return the principal axes ``(C, C)`` in columns, scaled to a variance of about one, float64.

    ``floor`` times the mean variance is added to each, so that directions in which features hardly vary do not become
    as loud as all others by their noise. At 1, directions quieter than the mean keep their proportions.
    """
    variances, axes = principal_axes(covariance)
    return axes / torch.sqrt(variances + floor * variances.mean() + 1e-9)
