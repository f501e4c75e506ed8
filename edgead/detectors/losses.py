"""Losses that several learned detectors share; all take float32 and return a scalar."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_WINDOW = 11
_SIGMA = 1.5


def focal(logits: Tensor, target: Tensor, gamma: float) -> Tensor:
    """Return the mean of ``-(1 - p_t)^gamma log p_t`` (Lin et al., ICCV 2017, alpha 1).

    Args:
        logits: ``(N, 2, h, w)``, normal and anomalous.
        target: ``(N, h, w)`` float, 1 where anomalous; between 0 and 1 it weighs both.
    """
    logs = F.log_softmax(logits.float(), dim=1)
    terms = -((1.0 - logs.exp()) ** gamma) * logs
    return (terms[:, 1] * target + terms[:, 0] * (1.0 - target)).mean()


def anomaly_probability(logits: Tensor) -> Tensor:
    """Return the softmax's second entry ``(N, h, w)`` of ``(N, 2, h, w)``."""
    return torch.sigmoid(logits[:, 1] - logits[:, 0])


def structural_similarity(first: Tensor, second: Tensor) -> Tensor:
    """Return the mean SSIM of images ``(N, C, h, w)`` in [0, 1] (Wang et al. 2004: Gaussian 11 x 11, sigma 1.5)."""
    with torch.autocast(first.device.type, enabled=False):  # variances as differences of squares need the digits
        return _similarity(first.float(), second.float())


def _similarity(first: Tensor, second: Tensor) -> Tensor:
    channels = first.shape[1]
    offsets = torch.arange(_WINDOW, dtype=torch.float32, device=first.device) - _WINDOW // 2
    line = torch.exp(-0.5 * (offsets / _SIGMA) ** 2)
    line = line / line.sum()
    kernel = torch.outer(line, line).expand(channels, 1, _WINDOW, _WINDOW)

    def smooth(values: Tensor) -> Tensor:
        return F.conv2d(values, kernel, groups=channels)

    mean_1, mean_2 = smooth(first), smooth(second)
    variance_1 = smooth(first * first) - mean_1**2
    variance_2 = smooth(second * second) - mean_2**2
    covariance = smooth(first * second) - mean_1 * mean_2
    c1, c2 = 0.01**2, 0.03**2
    top = (2 * mean_1 * mean_2 + c1) * (2 * covariance + c2)
    return (top / ((mean_1**2 + mean_2**2 + c1) * (variance_1 + variance_2 + c2))).mean()


def shrink(values: Tensor, height: int, width: int) -> Tensor:
    """Return ``(N, C, h, w)`` averaged over blocks to ``(N, C, height, width)``; sides divide."""
    rows, columns = values.shape[2] // height, values.shape[3] // width
    return values if rows == columns == 1 else F.avg_pool2d(values, (rows, columns))
