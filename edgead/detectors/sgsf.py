"""SGSF: saliency-guided forging, and a segmenter that is guided by noise-free normal features. A reconstruction.

After Xing, Sun, Li, "Self-Supervised Guided Segmentation Framework for Unsupervised Anomaly Detection", arXiv
2209.12440, of which the abstract is known and no code. What each part rests on:

- SAM, saliency map, weighted noise, adaptive segmentation, forged negatives: order [A], details ours [R], in
  `edgead.synthesis.salient`;
- SGN, a network whose noise-free features of the normal image guide the segmenter: [A]; a denoising auto-encoder
  without skips, from the forged image to the clean one [R] (its successor NIGSF retrieves a similar normal image and
  reconstructs that one [S]: ``guidance="retrieved"``);
- widths w, 2w, 4w, 8w, 8w, two 3x3 convolutions a level, a segmenter of the same widths whose encoder levels are
  ``conv3x3[E_l, D_l]``: [R]; its 28.3 GMAC and 11.8 M parameters at w = 32 are ours;
- the map is smoothed as every detector's is before its largest value becomes the image score (methods section 0) [R]:
  measured on held-out normals and probes of metal_plate, it brings the normals together and keeps the probes apart;
- loss L2 + (1 - SSIM) + focal (gamma 2), forged to clean 3 to 1, Adam 1e-4, a tenth at 50, 70 and 90 %, batch 16, image
  score the largest pixel: from NIGSF [S]; guiding features are detached from the focal loss [R].

The small profile puts a frozen backbone in the place of both encoders and works at a quarter of the pixels, which is
ours alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from edgead.detectors.learned import LearnedBase, LearnedSettings, Pixels, fill
from edgead.detectors.losses import anomaly_probability, focal, shrink, structural_similarity
from edgead.detectors.networks.blocks import ConvNorm, double, upsample
from edgead.detectors.networks.encoders import TapEncoder, as_pixels
from edgead.features.backbones import BackboneSpec
from edgead.features.scoring import GaussianSmoothing
from edgead.synthesis import SalientForger, is_grey, open_textures
from edgead.synthesis.augment import jitter
from edgead.training.recipes import Batch, Recipe, Stage

_STRIDES = (2, 4, 8, 16)  # of the backbone's taps
_FORGED = 0.75
_KEY_SIDE = 8  # an image is looked up by its 8 x 8 thumbnail
_NEIGHBOURS = 4  # training draws its guide from so many
_GAMMA = 2.0

_PROFILES: dict[str, dict[str, Any]] = {
    "small": {
        "encoder": "backbone",
        "width": 12,
        "steps": 400,
        "batch": 8,
        "learning_rate": 2e-3,
        "evaluations": 8,
        "jitter": 0.1,
    },
    "full": {
        "encoder": "own",
        "width": 32,
        "steps": 20_000,
        "batch": 16,
        "learning_rate": 1e-4,
        "evaluations": 20,
        "jitter": 0.0,
    },
}


class Sgsf(LearnedBase):
    """The detector; see the module's text."""

    name = "sgsf"

    class Settings(LearnedSettings):
        """Settings of SGSF.

        Attributes:
            encoder: ``own`` trains both encoders from nothing; ``backbone`` takes frozen features for them.
            width: w, channels of the finest level.
            guidance: ``denoised`` features of the image itself, or those of the most similar training image.
            guide_weight: of the loss of the guiding network.
            jitter: how much brightness and contrast of all images vary; ours, for categories with few images.
        """

        encoder: Literal["own", "backbone"] | None = None
        width: int | None = Field(default=None, ge=1, le=256)
        guidance: Literal["denoised", "retrieved"] = "denoised"
        guide_weight: float = Field(default=1.0, ge=0.0)
        jitter: float | None = Field(default=None, ge=0.0, le=1.0)

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = fill(settings or self.Settings(), _PROFILES)

    def backbone(self, spec: BackboneSpec) -> BackboneSpec:
        if self.settings.encoder == "own":
            return self.no_backbone(spec)
        return self.with_taps(spec, _STRIDES)

    def network(self, spec: BackboneSpec, size: tuple[int, int], *, load_weights: bool = True) -> nn.Module:
        encoder = None if self.settings.encoder == "own" else TapEncoder(spec, size, load_weights=load_weights)
        return SgsfNetwork(encoder, self.settings, size)

    def stages(self, network: SgsfNetwork, pixels: Pixels, seed: int) -> Sequence[Stage]:
        settings = self.settings
        recipe = Recipe(
            steps=settings.steps,
            batch=settings.batch,
            optimiser="adam",
            learning_rate=settings.learning_rate,
            schedule="drops",
            drops=(0.5, 0.7, 0.9),
            evaluations=settings.evaluations,
        )
        if settings.profile == "small":
            recipe = Recipe(
                steps=settings.steps,
                batch=settings.batch,
                optimiser="adamw",
                learning_rate=settings.learning_rate,
                weight_decay=1e-4,
                warm_up=min(10, settings.steps // 4),
                evaluations=settings.evaluations,
            )
        textures = open_textures(settings.textures, *pixels.shape[1:3], grey=is_grey(pixels))
        forger = SalientForger(pixels, textures)
        drawer = _Drawer(pixels, forger, recipe.batch, settings.guidance == "retrieved", settings.jitter)
        trained = [network.guide, network.segmenter]
        if network.encoder is None:
            trained += [network.guide_encoder, network.own_encoder]
        weight = settings.guide_weight

        def losses(batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
            images = as_pixels(batch["image"])
            mask = batch["mask"].float()
            if "guide" in batch:
                target = as_pixels(batch["guide"])
                guides, restored = network.guide_features(target)
            else:
                target = as_pixels(batch["clean"])
                guides, restored = network.guide_features(images)
            logits = network.logits(images, [one.detach() for one in guides]).float()
            restored, wanted = restored.float(), shrink(target / 255.0, *restored.shape[2:])
            return {
                "focal": focal(logits, shrink(mask[:, None], *logits.shape[2:])[:, 0], _GAMMA),
                "L2": weight * F.mse_loss(restored, wanted),
                "SSIM": weight * (1.0 - structural_similarity(restored, wanted)),
            }

        return [Stage("training", recipe, trained, drawer, losses)]

    def complete(self, network: SgsfNetwork, pixels: Pixels, held_out: Pixels) -> None:
        if self.settings.guidance == "retrieved":
            network.remember(pixels)

    def adopt(self, network: SgsfNetwork, tensors: Mapping[str, Tensor]) -> None:
        if self.settings.guidance == "retrieved":
            network.keys, network.codes = torch.empty_like(tensors["keys"]), torch.empty_like(tensors["codes"])


class _Drawer:
    """Makes batches: three of four images forged, and for each what should guide the segmenter."""

    def __init__(self, pixels: Pixels, forger: SalientForger, batch: int, retrieved: bool, strength: float) -> None:
        self._pixels, self._forger, self._batch, self._strength = pixels, forger, batch, strength
        self._neighbours: Any = None
        if retrieved:
            keys = thumbnail_keys(torch.from_numpy(pixels)).numpy()
            likeness = keys @ keys.T
            np.fill_diagonal(likeness, -np.inf)
            self._neighbours = np.argsort(-likeness, axis=1)[:, : min(_NEIGHBOURS, len(pixels) - 1)]

    def __call__(self, rng: np.random.Generator) -> Batch:
        indices = rng.integers(0, len(self._pixels), self._batch)
        clean = self._pixels[indices]
        images, masks = clean.copy(), np.zeros(clean.shape[:3], bool)
        for place in range(max(1, round(_FORGED * self._batch))):
            images[place], masks[place] = self._forger(int(indices[place]), rng)
        if self._strength:
            # The same for an image and what it is to be restored to.
            pairs = [np.concatenate(pair) for pair in zip(images, clean, strict=True)]
            changed = np.stack([jitter(pair, rng, self._strength) for pair in pairs])
            images, clean = np.split(changed, 2, axis=1)
        batch = {"image": images, "clean": clean, "mask": masks}
        if self._neighbours is not None:
            near = self._neighbours[indices]
            batch["guide"] = self._pixels[near[np.arange(len(near)), rng.integers(0, near.shape[1], len(near))]]
        return batch


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
