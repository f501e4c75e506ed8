"""The networks of EfficientAD-S: patch description networks without padding, and an auto-encoder of the same grid."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from edgead.detectors.networks.blocks import upsample
from edgead.detectors.networks.encoders import TapEncoder, as_pixels
from edgead.features.backbones import BackboneSpec
from edgead.features.features import pool
from edgead.features.scoring import GaussianSmoothing

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


@torch.no_grad()
def scale_outputs(layer: nn.Conv2d, mean: Tensor, std: Tensor | None = None) -> None:
    """Fold ``(y - mean) / std`` of each output channel, ``(out,)`` each, into a convolution."""
    assert layer.bias is not None
    layer.bias.sub_(mean.clone())
    if std is not None:
        layer.weight.div_(std[:, None, None, None])
        layer.bias.div_(std)


class Describer(nn.Module):
    """What a teacher is taught, ``(N, channels, h / 4 - 8, w / 4 - 8)``, of pixels ``(N, 3, h, w)`` from 0 to 255.

    The taps of a pre-trained backbone, averaged over 3 x 3 cells and resized to the finest one's grid, then turned.

    Args:
        encoder: its taps at strides 4, 8 and 16.
        channels: of the answers; a fixed random matrix turns the backbone's channels into as many.
    """

    def __init__(self, encoder: TapEncoder, channels: int) -> None:
        super().__init__()
        self.encoder = encoder
        given = sum(encoder.channels)
        self.turn = nn.Conv2d(given, channels, 1)
        matrix = np.random.default_rng((given, channels)).normal(0.0, given**-0.5, (channels, given, 1, 1))
        with torch.no_grad():
            self.turn.weight.copy_(torch.from_numpy(matrix))
        for parameter in self.turn.parameters():
            if parameter.ndim == 1:
                nn.init.zeros_(parameter)

    def forward(self, pixels: Tensor) -> Tensor:
        answers: Tensor = self.turn(self._describe(pixels))
        return answers

    @torch.no_grad()
    def measure(self, images: NDArray[np.uint8]) -> None:
        """Bring channels, then answers, to mean 0 and variance 1 over images ``(n, h, w, 3)`` uint8; once."""
        device = self.turn.weight.device
        described = [self._describe(as_pixels(torch.from_numpy(image[None]).to(device))) for image in images]
        mean, std = _moments(described)
        self.turn.weight.div_(std[None])
        scale_outputs(self.turn, self.turn.weight[:, :, 0, 0] @ mean.flatten())
        mean, std = _moments([self.turn(one) for one in described])
        scale_outputs(self.turn, mean.flatten(), std.flatten())

    def _describe(self, pixels: Tensor) -> Tensor:
        taps = self.encoder(pixels)
        maps = [pool(taps[0])] + [upsample(pool(tap), 2**octave) for octave, tap in enumerate(taps[1:], 1)]
        return torch.cat(maps, 1)[:, :, CROP:-CROP, CROP:-CROP]


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
        teacher: `PatchDescriber` of normalised images, or `Describer` of pixels.
        spec: of the backbone that teaches, or teaches the teacher.
        widths: hidden channels of the student.
        channels: of the teacher's output.
        width: of the auto-encoder.
        size: ``(height, width)`` of the input.
        smooth: blur the map.
    """

    mean: Tensor
    scale: Tensor
    low: Tensor
    gain: Tensor

    # More than six parameters: each is one quantity of the network.
    def __init__(
        self,
        teacher: nn.Module,
        spec: BackboneSpec,
        widths: tuple[int, int, int],
        channels: int,
        width: int,
        size: tuple[int, int],
        *,
        smooth: bool,
    ) -> None:
        super().__init__()
        self.spec, self.channels = spec, channels
        self.teacher = teacher
        self.student = PatchDescriber(widths, 2 * channels)
        self.autoencoder = AutoEncoder(width, channels, size)
        self.register_buffer("mean", torch.from_numpy(np.array(MEAN, np.float32).reshape(1, 3, 1, 1)))
        self.register_buffer("scale", torch.from_numpy((1.0 / np.array(STD)).astype(np.float32).reshape(1, 3, 1, 1)))
        self.register_buffer("low", torch.zeros(2))
        self.register_buffer("gain", torch.ones(2))
        self.smoothing = GaussianSmoothing(4.0 * min(size) / _STRIDE / 256.0) if smooth else nn.Identity()

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        local, overall = self.maps(pixels)
        local, overall = (local - self.low[0]) * self.gain[0], (overall - self.low[1]) * self.gain[1]
        combined = compress(0.5 * (local + overall))
        combined = F.pad(combined[:, None], (CROP, CROP, CROP, CROP), mode="replicate")[:, 0]
        smoothed: Tensor = self.smoothing(combined)
        return smoothed.amax(dim=(1, 2)), smoothed

    def normalise(self, pixels: Tensor) -> Tensor:
        return (pixels - self.mean) * self.scale

    def taught(self, pixels: Tensor) -> Tensor:
        """Return what the teacher says, ``(N, channels, h / 4 - 8, w / 4 - 8)``."""
        answers: Tensor = self.teacher(pixels if isinstance(self.teacher, Describer) else self.normalise(pixels))
        return answers

    @torch.no_grad()
    def standardise_teacher(self, images: NDArray[np.uint8]) -> None:
        """Give the teacher's answers on images ``(n, h, w, 3)`` mean 0 and variance 1 in each channel."""
        self.eval()
        if isinstance(self.teacher, Describer):
            self.teacher.measure(images)
            return
        assert isinstance(self.teacher, PatchDescriber)
        answers = [self.taught(as_pixels(torch.from_numpy(one[None]).to(self.mean.device))) for one in images]
        mean, std = _moments(answers)
        last = self.teacher[-1]
        assert isinstance(last, nn.Conv2d)
        scale_outputs(last, mean.flatten(), std.flatten())

    def maps(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the map of the student and that of the auto-encoder, ``(N, h / 4 - 8, w / 4 - 8)``, unscaled."""
        images = self.normalise(pixels)
        wanted, imitated, rebuilt = self.taught(pixels), self.student(images), self.autoencoder(images)
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


def _moments(maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of each channel ``(C, 1, 1)`` over maps ``(1, C, h, w)``, the latter above 0."""
    count = len(maps)
    mean = sum((one.double().mean((0, 2, 3)) for one in maps[1:]), maps[0].double().mean((0, 2, 3))) / count
    squares = [(one.double() - mean[:, None, None]).square().mean((0, 2, 3)) for one in maps]
    std = torch.sqrt(torch.stack(squares).mean(0))
    return mean.float()[:, None, None], torch.clamp(std, min=1e-6).float()[:, None, None]
