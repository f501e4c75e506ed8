"""The network of ISSTAD: an encoder, a decoder that is judged after every block, and what scores it."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from edgead.detectors.losses import anomaly_probability
from edgead.detectors.networks.blocks import upsample
from edgead.detectors.networks.encoders import TapEncoder, as_pixels
from edgead.detectors.networks.vit import Block, Grid, VitEncoder, initialise, sine_cosine, unpatchify
from edgead.features.scoring import GaussianSmoothing

# Pixel statistics that public weights were trained with, a channel.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
_MASKED = 0.75
_TOP = 0.1  # share of the pixels that the extended score averages

Score = Literal["product", "probability", "extended"]


class BackboneTokens(nn.Module):
    """The cells of a frozen backbone in the place of a transformer's tokens; ours, for the small profile.

    Pixels ``(N, 3, h, w)`` from 0 to 255 to tokens ``(N, 1 + T, C)``, zeros for the class token. A token holds all
    cells of the finest tap that lie in its patch, as a transformer's holds all of its pixels; the coarsest tap is
    resized. Each channel has mean 0 and variance 1 over the training images.
    """

    level: Tensor
    gain: Tensor

    def __init__(self, encoder: TapEncoder, grid: Grid) -> None:
        super().__init__()
        self.backbone, self.grid = encoder, grid
        self.factors = tuple(max(1, grid.patch // stride) for stride in encoder.strides)
        self.channels = sum(count * f * f for count, f in zip(encoder.channels, self.factors, strict=True))
        self.register_buffer("level", torch.zeros(self.channels))
        self.register_buffer("gain", torch.ones(self.channels))

    def embed(self, pixels: Tensor) -> Tensor:
        """Return ``(N, T, C)``."""
        return (self._cells(pixels) - self.level) * self.gain

    def encode(self, patches: Tensor) -> Tensor:
        """Return some or all tokens ``(N, K, C)`` with a class token before them."""
        return torch.cat([patches[:, :1] * 0.0, patches], dim=1)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.encode(self.embed(pixels))

    @torch.no_grad()
    def measure(self, images: NDArray[np.uint8]) -> None:
        """Set the statistics of the channels from images ``(n, h, w, 3)``."""
        device = self.level.device
        cells = torch.cat([self._cells(as_pixels(torch.from_numpy(one[None]).to(device))) for one in images]).double()
        std, mean = torch.std_mean(cells.flatten(0, 1), dim=0, correction=0)
        self.level.copy_(mean)
        self.gain.copy_(1.0 / torch.clamp(std, min=1e-6))

    def _cells(self, pixels: Tensor) -> Tensor:
        *finer, coarse = self.backbone(pixels)
        folded = [F.pixel_unshuffle(tap, factor) for tap, factor in zip(finer, self.factors, strict=False)]
        return torch.cat([*folded, upsample(coarse)], 1).flatten(2).transpose(1, 2)


class IsstadDecoder(nn.Module):
    """Encoder tokens ``(N, 1 + T, E)`` to those of each block ``(N, T, C)``, one list entry a block.

    Args:
        embedded: E, channels of the encoder.
        size: ``(channels, blocks, heads)``.
        grid: of the patches.
    """

    pos_embed: Tensor

    def __init__(self, embedded: int, size: tuple[int, int, int], grid: Grid) -> None:
        super().__init__()
        channels, depth, heads = size
        pixels = grid.patch**2
        self.embed = nn.Linear(embedded, channels)
        self.register_buffer("pos_embed", torch.from_numpy(sine_cosine(channels, grid)), persistent=False)
        self.blocks = nn.ModuleList(Block(channels, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        # One head for the maps of all blocks [C], one for the repaired image behind the last.
        self.pixels = nn.Linear(channels, 2 * pixels)
        self.repair = nn.Linear(channels, 3 * pixels)
        initialise(self)

    def forward(self, tokens: Tensor) -> list[Tensor]:
        x = self.embed(tokens) + self.pos_embed
        found = []
        for block in self.blocks:
            x = block(x)
            found.append(self.norm(x)[:, 1:])
        return found


class IsstadNetwork(nn.Module):
    """Pixels ``(N, 3, h, w)`` from 0 to 255 to score ``(N,)`` and map ``(N, h / stride, w / stride)``.

    P is the mean over blocks of the anomaly probability, R the mean over channels of the squared error of the repaired
    image, G a Gaussian. Scores: ``product`` ``mean(G(G(P) * G(R)))`` [C] with that tensor as the map; ``probability``
    ``max G(P)`` with the map G(P), ours; ``extended`` ``(1 + top(P)) (1 + top(R))`` with the mean of the highest tenth
    for top, exponents 1 [C], and the map of ``product``. The code scales R of each image to [0, 1] in its map, which
    makes maps of different images incomparable: dropped, scoring modules give raw maps.

    Args:
        encoder: normalised images to tokens, or pixels to tokens where it is a backbone's.
        decoder: ``(channels, blocks, heads)``.
        size: ``(height, width)`` of the input.
        score: see above.
        stride: pixels a side that a cell of the map averages.
        smooth: whether G does anything.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        encoder: VitEncoder | BackboneTokens,
        decoder: tuple[int, int, int],
        size: tuple[int, int],
        *,
        score: Score = "product",
        stride: int = 1,
        smooth: bool = True,
    ) -> None:
        super().__init__()
        self.grid = encoder.grid
        self.score, self.stride = score, stride
        self.encoder = encoder
        self.decoder = IsstadDecoder(encoder.channels, decoder, self.grid)
        self.register_buffer("mean", torch.from_numpy(np.array(MEAN, np.float32).reshape(1, 3, 1, 1)))
        self.register_buffer("scale", torch.from_numpy((1.0 / np.array(STD)).astype(np.float32).reshape(1, 3, 1, 1)))
        cells = min(size) // stride
        self.smoothing = GaussianSmoothing(4.0 * cells / 256.0) if smooth else nn.Identity()
        self.top = max(1, round(_TOP * (size[0] // stride) * (size[1] // stride)))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        images = self.normalise(pixels)
        blocks = self.decoder(self.encoder(self.encoder_input(pixels)))
        probability = anomaly_probability(self.map_logits(blocks[0]))
        for block in blocks[1:]:
            probability = probability + anomaly_probability(self.map_logits(block))
        probability = self._shrink(probability / len(blocks))
        difference = self.repaired(blocks) - images
        return self.judge(probability, self._shrink((difference * difference).mean(1)))

    def judge(self, probability: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Return score and map of P and R, ``(N, h, w)`` each."""
        first: Tensor = self.smoothing(probability)
        if self.score == "probability":
            return first.amax(dim=(1, 2)), first
        product: Tensor = self.smoothing(first * self.smoothing(residual))
        if self.score == "product":
            return product.mean(dim=(1, 2)), product
        tops = [torch.topk(one.flatten(1), self.top, dim=1).values.mean(1) for one in (probability, residual)]
        return (1.0 + tops[0]) * (1.0 + tops[1]), product

    def normalise(self, pixels: Tensor) -> Tensor:
        """Return pixels as public weights expect them, in both stages alike."""
        return (pixels - self.mean) * self.scale

    def encoder_input(self, pixels: Tensor) -> Tensor:
        """Return what the encoder takes of pixels; a backbone has its own normalisation."""
        return pixels if isinstance(self.encoder, BackboneTokens) else self.normalise(pixels)

    def map_logits(self, block: Tensor) -> Tensor:
        """Return ``(N, 2, h, w)`` of one block's tokens ``(N, T, C)``."""
        return unpatchify(self.decoder.pixels(block), self.grid)

    def repaired(self, blocks: list[Tensor]) -> Tensor:
        """Return the repaired image ``(N, 3, h, w)``, normalised."""
        return unpatchify(self.decoder.repair(blocks[-1]), self.grid)

    def _shrink(self, maps: Tensor) -> Tensor:
        if self.stride == 1:
            return maps
        return torch.nn.functional.avg_pool2d(maps[:, None], self.stride)[:, 0]


class MaskedAutoEncoder(nn.Module):
    """What stage 1 needs beside the network: the token of a masked patch, and the head that gives its pixels."""

    def __init__(self, network: IsstadNetwork) -> None:
        super().__init__()
        channels = network.decoder.embed.out_features
        self.mask_token = nn.Parameter(torch.zeros(1, 1, channels))
        self.pixels = nn.Linear(channels, 3 * network.grid.patch**2)
        initialise(self)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, network: IsstadNetwork, pixels: Tensor, keep: Tensor) -> Tensor:
        """Return the patches ``(N, T, 3 p p)``, normalised, of pixels of which ``keep (N, K)`` are seen."""
        encoder, decoder = network.encoder, network.decoder
        patches = encoder.embed(network.encoder_input(pixels))
        seen = patches.gather(1, keep[:, :, None].expand(-1, -1, patches.shape[2]))
        embedded = decoder.embed(encoder.encode(seen))
        tokens = self.mask_token.to(embedded.dtype).repeat(len(pixels), patches.shape[1], 1)
        # Each seen token goes back to its own place; the rest hold the mask's.
        tokens = tokens.scatter(1, keep[:, :, None].expand(-1, -1, tokens.shape[2]), embedded[:, 1:])
        x = torch.cat([embedded[:, :1], tokens], 1) + decoder.pos_embed
        for block in decoder.blocks[: len(decoder.blocks) // 2]:
            x = block(x)
        result: Tensor = self.pixels(decoder.norm(x)[:, 1:])
        return result


def draw_kept(count: int, patches: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return which quarter of the patches each of ``count`` images shows, ``(count, K)``, ascending."""
    kept = max(1, round((1.0 - _MASKED) * patches))
    order = np.argsort(rng.random((count, patches)), axis=1)[:, :kept]
    return np.asarray(np.sort(order, axis=1), np.int64)


def masked_error(restored: Tensor, patches: Tensor, keep: Tensor) -> Tensor:
    """Return the mean squared error of ``(N, T, D)`` over the patches that are not in ``keep (N, K)``."""
    errors = (restored - patches).square().mean(2)
    hidden = torch.ones_like(errors).scatter(1, keep, 0.0)
    return (errors * hidden).sum() / hidden.sum()
