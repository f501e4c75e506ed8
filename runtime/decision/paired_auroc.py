"""How well scores tell images from painted copies of them, and how sure a difference between two models is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Ranking:
    """What one model's scores say of n images and painted copies of them.

    Attributes:
        wins: ``(n, n)``, entry (i, j): how many copies of image j score above image i, ties half.
        copies: ``(n,)``, copies of each image.
    """

    wins: _Floats
    copies: _Floats

    @classmethod
    def of(cls, images: _Floats, painted: _Floats, owners: NDArray[np.int64]) -> Ranking:
        """Count the wins.

        Args:
            images: ``(n,)`` scores of the images.
            painted: ``(m,)`` scores of the copies.
            owners: ``(m,)`` index of the image that each is a copy of; of two images at least.
        """
        above = (painted > images[:, None]) + 0.5 * (painted == images[:, None])
        of_image = (owners[:, None] == np.arange(len(images))).astype(np.float64)
        return cls(above @ of_image, of_image.sum(0))

    @property
    def auroc(self) -> float:
        """The area under the ROC curve: how often a copy scores above an image, ties half."""
        return float(self._areas(np.ones((1, len(self.copies))))[0])

    def error(self, other: Ranking | None = None) -> float:
        """Return the standard error of the AUROC, or of its difference to that of a model that judged the same images.

        It is the jackknife's: an image is left out together with its copies, whose scores hang together (Efron 1982).
        """
        count = len(self.copies)
        weights = 1.0 - np.eye(count)
        areas = self._areas(weights) - (0.0 if other is None else other._areas(weights))
        return float(np.sqrt((count - 1) / count * np.square(areas - areas.mean()).sum()))

    def _areas(self, weights: _Floats) -> _Floats:
        """Return the AUROC for each row of ``weights (b, n)``, how much an image and its copies count."""
        won = np.einsum("bi,ij,bj->b", weights, self.wins, weights)
        return np.asarray(won / (weights.sum(1) * (weights @ self.copies)))
