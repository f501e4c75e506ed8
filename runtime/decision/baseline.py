"""What good parts looked like when the threshold was made: four numbers an image, and their quantiles.

They are taken from the picture at network size and from the anomaly map, so training images and a camera of another
resolution give comparable values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgead.runtime.decision.known_images import fingerprint

SIGNALS = ("score", "level", "brightness", "focus")
PICTURE_SIGNALS = ("brightness", "focus")  # of the image alone, so every good image has them, judged or not
QUANTILES = 21  # 0 %, 5 %, … 100 %


@dataclass(frozen=True, slots=True)
class Normals:
    """Quantiles of the signals of good images.

    Attributes:
        images: how many were judged; a training that holds images out judges only these.
        quantiles: of each of `SIGNALS`: its 0, 5, … 100 % quantiles, ascending. ``score`` is raw; ``level`` is the
            mean of the anomaly map, how far patches are from normal on the whole, which moves with light and lens
            where the score, a maximum, moves with the worst place; ``brightness`` is the mean green value, 0 to 255;
            ``focus`` is the variance of the Laplacian.
        known: digests of the images that the model was fitted on, see `edgead.runtime.decision.known_images`.
        pictures: how many images `PICTURE_SIGNALS` are of; None: the ``images`` that were judged.
    """

    images: int
    quantiles: Mapping[str, tuple[float, ...]]
    pictures: int | None = None
    known: frozenset[bytes] = frozenset()

    @classmethod
    def of(cls, values: Mapping[str, Sequence[float] | NDArray[np.float64]]) -> Normals:
        """Return the quantiles of values by signal, one value an image; pictures may outnumber scores."""
        shares = np.linspace(0.0, 1.0, QUANTILES)
        table = {name: tuple(float(q) for q in np.quantile(np.asarray(values[name]), shares)) for name in SIGNALS}
        images, pictures = len(values[SIGNALS[0]]), len(values[PICTURE_SIGNALS[0]])
        return cls(images, table, None if pictures == images else pictures)

    def count(self, signal: str) -> int:
        """Return how many images a signal's quantiles are of."""
        return self.images if self.pictures is None or signal not in PICTURE_SIGNALS else self.pictures

    def knows(self, picture: NDArray[np.uint8]) -> bool:
        """Return whether the model was fitted on a picture, as the network gets it."""
        return bool(self.known) and fingerprint(picture) in self.known

    def band(self, signal: str, outer: float) -> tuple[float, float]:
        """Return the ``outer`` and ``1 - outer`` quantile, multiples of 0.05, of a signal."""
        step = round(outer * (QUANTILES - 1))
        values = self.quantiles[signal]
        return values[step], values[QUANTILES - 1 - step]


def picture_signals(image: NDArray[np.uint8]) -> dict[str, float]:
    """Return brightness and focus of an ``(h, w, 3)`` or ``(h, w)`` uint8 image, see `Normals`."""
    # Green is close to luminance, and one channel needs no pass over the others.
    grey = image if image.ndim == 2 else image[:, :, 1]
    return {"brightness": float(grey.mean()), "focus": sharpness(grey)}


def map_level(grid: NDArray[np.floating]) -> float:
    """Return the mean of an anomaly map ``(gh, gw)``."""
    return float(grid.mean(dtype=np.float64))


def sharpness(grey: NDArray[np.uint8]) -> float:
    """Return the variance of the Laplacian of a grey image ``(h, w)``; comparable between images of one scene only."""
    if min(grey.shape) < 3:
        return 0.0
    wide = grey.astype(np.int16)
    laplacian = wide[:-2, 1:-1] + wide[2:, 1:-1] + wide[1:-1, :-2] + wide[1:-1, 2:] - 4 * wide[1:-1, 1:-1]
    return float(laplacian.var(dtype=np.float64))


def is_finite(values: Mapping[str, float]) -> bool:
    """Whether every signal is a finite number."""
    return all(math.isfinite(value) for value in values.values())
