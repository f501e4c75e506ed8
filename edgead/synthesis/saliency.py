"""Where an image draws the eye: what may be damaged. A saliency takes an image and gives a map from 0 to 1."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edgead.runtime.imaging.anomaly_map import resize_map
from edgead.runtime.imaging.otsu import otsu
from edgead.runtime.imaging.preprocess import resize
from edgead.synthesis.forger import Image, Mask

Saliency = Callable[[Image], NDArray[np.float32]]

_SIDE = 64
_SIGMA = 4.0
_BINS = 256
_RIM = 3  # pixels of 64 along the border that are background
_OBJECT = 0.82  # a flat distribution parts into two by 0.75, a normal one by 0.64


def spectral_residual(image: Image) -> NDArray[np.float32]:
    """Return the saliency ``(h, w)`` float32 of ``(h, w, 3)`` uint8: what stands out from the average spectrum.

    Hou and Zhang, "Saliency Detection: A Spectral Residual Approach", CVPR 2007, at 64 x 64 pixels, smoothed with a
    Gaussian of 4 of them, from 0 to 1. An image without any structure is salient everywhere.
    """
    from scipy import ndimage

    small = resize(image, _SIDE, _SIDE).astype(np.float64).mean(axis=2)
    spectrum = np.fft.fft2(small)
    log_amplitude = np.log(np.abs(spectrum) + 1e-9)
    residual = log_amplitude - ndimage.uniform_filter(log_amplitude, 3, mode="wrap")
    restored = np.abs(np.fft.ifft2(np.exp(residual + 1j * np.angle(spectrum)))) ** 2
    smooth = ndimage.gaussian_filter(restored, _SIGMA)
    spread = smooth.max() - smooth.min()
    if not np.isfinite(spread) or np.ptp(small) == 0 or spread <= 0:
        return np.ones(image.shape[:2], np.float32)
    scaled = ((smooth - smooth.min()) / spread).astype(np.float32)
    return resize_map(scaled, *image.shape[:2])


def object_saliency(image: Image) -> NDArray[np.float32]:
    """Return the saliency ``(h, w)`` float32 of an object before a background; of a mere surface, 1 everywhere.

    How far a pixel's colour lies from those along the border, as a Mahalanobis distance at 64 x 64 pixels, from 0 to 1.
    Ours: the spectral residual of a plate before a wall is the plate's hole, and that of a bare surface its corners,
    where the pre-trained detectors that it stands for see the object. A surface is told by a distance that does not
    part into two groups.
    """
    from scipy import ndimage

    small = ndimage.gaussian_filter(resize(image, _SIDE, _SIDE).astype(np.float64), (1.0, 1.0, 0.0))
    inner = np.zeros(small.shape[:2], bool)
    inner[_RIM:-_RIM, _RIM:-_RIM] = True
    border = small[~inner]
    center = np.median(border, axis=0)
    spread = np.cov(border.T) + 4.0 * np.eye(3)
    away = small - center
    distance = np.sqrt(np.einsum("hwc,cd,hwd->hw", away, np.linalg.inv(spread), away))
    distance = np.minimum(distance, np.quantile(distance, 0.95))
    if distance.max() <= 0 or _separation(distance) < _OBJECT:
        return np.ones(image.shape[:2], np.float32)
    return resize_map((distance / distance.max()).astype(np.float32), *image.shape[:2])


def _separation(values: NDArray[np.floating]) -> float:
    """Return the share of the variance that lies between the two groups of Otsu's threshold."""
    above = values > otsu_threshold(values)
    total, share = float(values.var()), float(above.mean())
    if not 0 < share < 1 or total <= 0:
        return 0.0
    return share * (1 - share) * float(values[above].mean() - values[~above].mean()) ** 2 / total


def otsu_threshold(values: NDArray[np.floating]) -> float:
    """Return the threshold that parts values into two groups of least variance within; the largest where all agree."""
    counts, edges = np.histogram(values, _BINS)
    if np.count_nonzero(counts) < 2:
        return float(np.max(values))
    # Among equals the middle, so that the threshold lies between the groups and not on one.
    return float(edges[1 + sum(otsu(counts)) // 2])


def salient_region(saliency: NDArray[np.float32]) -> Mask:
    """Return where the saliency lies above Otsu's threshold, ``(h, w)`` bool; everywhere, if nowhere."""
    region = saliency > otsu_threshold(saliency)
    return region if region.any() else np.ones_like(region)
