"""The networks of EfficientAD-S: patch description networks without padding, and an auto-encoder of the same grid."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgead.detectors.blocks import upsample
from edgead.scoring import GaussianSmoothing

MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
CROP = 4  # cells a side that networks without padding do not describe
_STRIDE = 4
_DROPOUT = 0.2
_DEEPEST = 32  # pixels a cell before the bottleneck
# Between these shares of the held-out normals' map values lies a tenth of the combined map's scale.
QUANTILES = (0.9, 0.995)
_UNIT = 0.1


class PatchDescriber(nn.Sequential):
    """Images ``(N, 3, h, w)`` to ``(N, out, h / 4 - 8, w / 4 - 8)``, each cell of 33 x 33 pixels; EfficientAD-S's PDN.

    Args:
        widths: channels of the three hidden layers; the paper's are 128, 256, 256.
        out: channels of the output.
    """

    def __init__(self, widths: tuple[int, int, int], out: int) -> None:
        first, second, third = widths
        super().__init__(
            nn.Conv2d(3, first, 4),
            nn.ReLU(),
            nn.AvgPool2d(2, 2),
            nn.Conv2d(first, second, 4),
            nn.ReLU(),
            nn.AvgPool2d(2, 2),
            nn.Conv2d(second, third, 3),
            nn.ReLU(),
            nn.Conv2d(third, out, 4),
        )

    def scale_outputs(self, mean: Tensor, std: Tensor) -> None:
        """Fold ``(y - mean) / std`` of each output channel, ``(out,)`` each, into the last convolution."""
        last = self[-1]
        assert isinstance(last, nn.Conv2d)
        assert last.bias is not None
        with torch.no_grad():
            last.weight.div_(std[:, None, None, None])
            last.bias.sub_(mean).div_(std)

    def take_over(self, other: PatchDescriber) -> None:
        """Make the first outputs those of ``other``, which has the same hidden widths and no more outputs."""
        with torch.no_grad():
            for mine, theirs in zip(self.parameters(), other.parameters(), strict=True):
                mine[: len(theirs)].copy_(theirs)


class AutoEncoder(nn.Module):
    """Images ``(N, 3, h, w)`` to what the teacher would say, ``(N, out, h / 4 - 8, w / 4 - 8)``, through one vector.

    Widths, kernels and the number of layers are the paper's [S]. Its decoder resizes to odd sizes, at last from 127 to
    56 cells, which misplaces them; ours [R] doubles, averages to a quarter of the pixels and cuts four cells
    a side, where the patch describers see nothing: each cell stays over its pixels, and the graph has constant factors.

    Args:
        width: channels of the finest levels; 32 is the paper's, which doubles them behind the second.
        out: channels of the output.
        size: ``(height, width)`` of the images.
    """

    def __init__(self, width: int, out: int, size: tuple[int, int]) -> None:
        super().__init__()
        channels = (3, width, width, 2 * width, 2 * width, 2 * width)
        deep = 2 * width
        self.deepest = (size[0] // _DEEPEST, size[1] // _DEEPEST)
        self.encoder = nn.ModuleList(nn.Conv2d(before, after, 4, 2, 1) for before, after in pairwise(channels))
        self.bottleneck = nn.Conv2d(deep, deep, self.deepest)
        # Kernels of 4 keep the size with one row more behind than before.
        self.decoder = nn.ModuleList(
            nn.Sequential(nn.ZeroPad2d((1, 2, 1, 2)), nn.Conv2d(deep, deep, 4)) for _ in range(6)
        )
        self.dropout = nn.Dropout(_DROPOUT)
        self.out = nn.Sequential(nn.Conv2d(deep, deep, 3, padding=1), nn.ReLU(), nn.Conv2d(deep, out, 3, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        x = images
        for layer in self.encoder:
            x = F.relu(layer(x))
        x = self.bottleneck(x)
        # All cells start from the one vector, by constant factors.
        x = F.interpolate(
            x, scale_factor=(float(self.deepest[0]), float(self.deepest[1])), mode="bilinear", align_corners=False
        )
        for number, layer in enumerate(self.decoder):
            if number > 1:
                x = upsample(x)
            x = self.dropout(F.relu(layer(x)))
        x = F.avg_pool2d(x, 2)[:, :, CROP:-CROP, CROP:-CROP]
        result: Tensor = self.out(x)
        return result


class EfficientAdNetwork(nn.Module):
    """Pixels ``(N, 3, h, w)`` from 0 to 255 to score ``(N,)`` and map ``(N, h / 4, w / 4)``.

    Two maps, mean squared differences over channels: teacher and student, auto-encoder and the student's second half.
    Each is scaled so that the 0.9 and 0.995 quantiles of the held-out normals' values become 0 and 0.1, then both are
    averaged; the score is the maximum. Squares have no upper end, and a defect's may be a hundred times the threshold,
    of which a rounding error is as much as the way to it; so what is above 0 goes through ``0.1 log(1 + x / 0.1)``,
    which keeps every order ([R]). The four cells a side that the networks do not see take their neighbours' value
    ([R]; the code puts zeros there, which are more than most normal cells have).

    Args:
        widths: hidden channels of teacher and student.
        channels: of the teacher's output.
        width: of the auto-encoder.
        size: ``(height, width)`` of the input.
        smooth: blur the map.
    """

    mean: Tensor
    scale: Tensor
    low: Tensor
    gain: Tensor

    def __init__(
        self, widths: tuple[int, int, int], channels: int, width: int, size: tuple[int, int], *, smooth: bool
    ) -> None:
        super().__init__()
        self.channels = channels
        self.teacher = PatchDescriber(widths, channels)
        self.student = PatchDescriber(widths, 2 * channels)
        self.autoencoder = AutoEncoder(width, channels, size)
        self.register_buffer("mean", torch.from_numpy(np.array(MEAN, np.float32).reshape(1, 3, 1, 1)))
        self.register_buffer("scale", torch.from_numpy((1.0 / np.array(STD)).astype(np.float32).reshape(1, 3, 1, 1)))
        self.register_buffer("low", torch.zeros(2))
        self.register_buffer("gain", torch.ones(2))
        self.smoothing = GaussianSmoothing(4.0 * min(size) / _STRIDE / 256.0) if smooth else nn.Identity()

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        local, overall = self.maps(self.normalise(pixels))
        local, overall = (local - self.low[0]) * self.gain[0], (overall - self.low[1]) * self.gain[1]
        combined = compress(0.5 * (local + overall))
        combined = F.pad(combined[:, None], (CROP, CROP, CROP, CROP), mode="replicate")[:, 0]
        smoothed: Tensor = self.smoothing(combined)
        return smoothed.amax(dim=(1, 2)), smoothed

    def normalise(self, pixels: Tensor) -> Tensor:
        return (pixels - self.mean) * self.scale

    def maps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the map of the student and that of the auto-encoder, ``(N, h / 4 - 8, w / 4 - 8)``, unscaled."""
        wanted, imitated, rebuilt = self.teacher(images), self.student(images), self.autoencoder(images)
        local = wanted - imitated[:, : self.channels]
        overall = rebuilt - imitated[:, self.channels :]
        return (local * local).mean(1), (overall * overall).mean(1)

    def set_quantiles(self, low: Tensor, high: Tensor) -> None:
        """Take the two quantiles of each map, ``(2,)`` each."""
        self.low.copy_(low)
        self.gain.copy_(_UNIT / torch.clamp(high - low, min=1e-9))


def compress(values: Tensor) -> Tensor:
    """Return values below 0 as they are, those above on a logarithmic scale, of slope 1 at 0 and in the same order."""
    above = F.relu(values)
    return values - above + _UNIT * torch.log(above * (1.0 / _UNIT) + 1.0)
