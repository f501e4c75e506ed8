"""Where an image draws the eye: what may be damaged. A saliency takes an image and gives a map from 0 to 1."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edgead.runtime.maps import resize_map
from edgead.runtime.preprocess import resize
from edgead.synthesis.forger import Image, Mask

Saliency = Callable[[Image], NDArray[np.float32]]

_SIDE = 64
_SIGMA = 4.0
_BINS = 256


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


def otsu(values: NDArray[np.floating]) -> float:
    """Return the threshold that parts values into two groups of least variance within (Otsu 1979)."""
    counts, edges = np.histogram(values, _BINS)
    centers = 0.5 * (edges[1:] + edges[:-1])
    below = np.cumsum(counts)
    sums = np.cumsum(counts * centers)
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = sums / below - (sums[-1] - sums) / above
        between = below * above * gap**2
    return float(edges[1 + int(np.nanargmax(np.where(above > 0, between, np.nan)))]) if (above > 0).any() else 0.0


def salient_region(saliency: NDArray[np.float32]) -> Mask:
    """Return where the saliency lies above Otsu's threshold, ``(h, w)`` bool; everywhere, if nowhere."""
    region = saliency > otsu(saliency)
    return region if region.any() else np.ones_like(region)
