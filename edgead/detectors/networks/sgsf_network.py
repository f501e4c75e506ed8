"""The networks of SGSF: a pyramid that is guided by the images nearest to it, and what segments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgead.detectors.learned import Pixels
from edgead.detectors.losses import anomaly_probability
from edgead.detectors.networks.blocks import ConvNorm, double, upsample
from edgead.detectors.networks.encoders import TapEncoder, as_pixels
from edgead.features.scoring import GaussianSmoothing

_STRIDES = (2, 4, 8, 16)  # of the backbone's taps


_KEY_SIDE = 8  # an image is looked up by its 8 x 8 thumbnail


_NEIGHBOURS = 4  # training draws its guide from so many


def thumbnail_keys(images: Tensor) -> Tensor:
    """Return unit vectors ``(N, 192)`` by which similar images ``(N, h, w, 3)`` uint8 are found."""
    return _keys(as_pixels(images))


def _keys(pixels: Tensor) -> Tensor:
    rows, columns = pixels.shape[2] // _KEY_SIDE, pixels.shape[3] // _KEY_SIDE
    small = F.avg_pool2d(pixels - 127.5, (rows, columns)).flatten(1)
    return small / torch.sqrt((small * small).sum(1, keepdim=True) + 1e-6)


class SgsfNetwork(nn.Module):
    """Pixels ``(N, 3, h, w)`` from 0 to 255 to score ``(N,)`` and map ``(N, gh, gw)``, see `LearnedDetector`.

    Args:
        encoder: frozen, for both parts; None builds one for each.
        settings: filled.
        size: of the input.
    """

    keys: Tensor
    codes: Tensor

    def __init__(self, encoder: TapEncoder | None, settings: Any, size: tuple[int, int]) -> None:
        super().__init__()
        w = settings.width
        self.encoder = encoder
        self.retrieved = settings.guidance == "retrieved"
        if encoder is None:
            widths = [w, 2 * w, 4 * w, 8 * w, 8 * w]
            self.guide_encoder, self.own_encoder = _Pyramid(widths), _FusedPyramid(widths)
            self.guide = _Guide(widths[-1], widths)
            self.segmenter = _Segmenter(None, widths)
            stride = 1
        else:
            widths = [w, 2 * w, 4 * w, 8 * w]
            self.guide = _Guide(encoder.channels[-1], widths)
            self.segmenter = _Segmenter(encoder.channels, widths)
            stride = encoder.strides[0]
        cells = (size[0] // stride, size[1] // stride)
        self.smoothing = GaussianSmoothing(4.0 * min(cells) / 256.0) if settings.smooth else nn.Identity()
        if self.retrieved:
            self.register_buffer("keys", torch.zeros(1, 3 * _KEY_SIDE**2))
            deepest = encoder.channels[-1] if encoder is not None else widths[-1]
            self.register_buffer("codes", torch.zeros(1, deepest, size[0] // 16, size[1] // 16))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        taps = None if self.encoder is None else self.encoder(pixels)
        if self.retrieved:
            nearest = (_keys(pixels) @ self.keys.T).argmax(1)
            code = self.codes.index_select(0, nearest)
        else:
            code = self.guide_encoder(_centred(pixels))[-1] if taps is None else taps[-1]
        guides, _ = self.guide(code)
        logits = self._segment(pixels, taps, guides)
        raw: Tensor = self.smoothing(anomaly_probability(logits))
        return raw.amax(dim=(1, 2)), raw

    def guide_features(self, pixels: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the guiding features, finest first, and the restored image ``(N, 3, gh, gw)``, from 0 to 1."""
        guides, restored = self.guide(self._code(pixels))
        return guides, restored

    def logits(self, pixels: Tensor, guides: Sequence[Tensor]) -> Tensor:
        """Return ``(N, 2, gh, gw)``."""
        return self._segment(pixels, None if self.encoder is None else self.encoder(pixels), guides)

    def remember(self, pixels: Pixels) -> None:
        """Keep keys and codes of the training images ``(n, h, w, 3)`` uint8 for retrieval."""
        device = self.keys.device
        parts = [as_pixels(torch.from_numpy(pixels[i : i + 8])).to(device) for i in range(0, len(pixels), 8)]
        self.keys = torch.cat([_keys(part) for part in parts])
        self.codes = torch.cat([self._code(part) for part in parts])

    def _code(self, pixels: Tensor) -> Tensor:
        code: Tensor = (self.guide_encoder(_centred(pixels)) if self.encoder is None else self.encoder(pixels))[-1]
        return code

    def _segment(self, pixels: Tensor, taps: Sequence[Tensor] | None, guides: Sequence[Tensor]) -> Tensor:
        levels = self.own_encoder(_centred(pixels), guides) if taps is None else self.segmenter.fuse(taps, guides)
        logits: Tensor = self.segmenter(levels)
        return logits


def _centred(pixels: Tensor) -> Tensor:
    return (pixels - 127.5) / 127.5


class _Pyramid(nn.Module):
    """Two 3x3 convolutions a level, halved by max-pooling between them; returns all levels, finest first."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.levels = nn.ModuleList(double(before, w) for before, w in zip((3, *widths), widths, strict=False))

    def forward(self, images: Tensor) -> list[Tensor]:
        found: list[Tensor] = []
        for number, level in enumerate(self.levels):
            images = level(F.max_pool2d(images, 2) if number else images)
            found.append(images)
        return found


class _FusedPyramid(_Pyramid):
    """The same, each level convolved with the guide's features of that level before it goes on."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__(widths)
        self.fusions = nn.ModuleList(ConvNorm(2 * w, w) for w in widths)

    def forward(self, images: Tensor, guides: Sequence[Tensor]) -> list[Tensor]:  # type: ignore[override]
        found: list[Tensor] = []
        for number, (level, fusion) in enumerate(zip(self.levels, self.fusions, strict=True)):
            images = fusion(torch.cat([level(F.max_pool2d(images, 2) if number else images), guides[number]], 1))
            found.append(images)
        return found


class _Guide(nn.Module):
    """The skip-free decoder of the guiding network: a code at stride 16 to features of every level and an image."""

    def __init__(self, channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.entry: nn.Module = nn.Identity() if channels == widths[-1] else ConvNorm(channels, widths[-1], 1)
        pairs = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.levels = nn.ModuleList(double(before, after) for before, after in pairs)
        self.image = nn.Conv2d(widths[0], 3, 1)

    def forward(self, code: Tensor) -> tuple[list[Tensor], Tensor]:
        found = [self.entry(code)]
        for level in self.levels:
            found.append(level(upsample(found[-1])))
        return found[::-1], torch.sigmoid(self.image(found[-1]))


class _Segmenter(nn.Module):
    """The decoder of a U-Net over fused levels, finest first, to two logits.

    Args:
        channels: of a backbone's taps, which are fused here; None where the encoder fuses them.
        widths: of the levels.
    """

    def __init__(self, channels: Sequence[int] | None, widths: Sequence[int]) -> None:
        super().__init__()
        self.fusions = nn.ModuleList(
            ConvNorm(c + w, w) for c, w in zip(channels or (), widths if channels else (), strict=True)
        )
        pairs = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.levels = nn.ModuleList(double(deep + skip, skip) for deep, skip in pairs)
        self.out = nn.Conv2d(widths[0], 2, 1)

    def fuse(self, taps: Sequence[Tensor], guides: Sequence[Tensor]) -> list[Tensor]:
        return [
            fusion(torch.cat([tap, guide], 1)) for fusion, tap, guide in zip(self.fusions, taps, guides, strict=True)
        ]

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        deep = levels[-1]
        for level, skip in zip(self.levels, levels[-2::-1], strict=True):
            deep = level(torch.cat([upsample(deep), skip], 1))
        logits: Tensor = self.out(deep)
        return logits
