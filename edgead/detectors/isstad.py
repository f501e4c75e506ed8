"""ISSTAD: a masked auto-encoder learns what is normal, its decoder then learns to mark and repair what is not.

Jin et al., "ISSTAD: Incremental Self-Supervised Learning Based on Transformer for Anomaly Detection and Localization",
arXiv 2303.17354, EAAI 160 (2025). What each part rests on ([A]: the abstract; [C]: read in the authors' code, of which
nothing is copied; [R]: ours):

- stage 1: a masked auto-encoder, ViT-L/16 at 224 pixels from public ImageNet weights (``mae_weights``: a local file),
  decoder 6 x 512, 75 % masked, squared error of raw pixels on what was masked, AdamW (0.9, 0.95), decay 0.05, rate
  1e-3 * batch / 256, batch 20, warm-up of 40 of 300 epochs, random crops of 20 to 100 % and mirroring [C]. One epoch
  counts as ten steps here, about what 200 images make [R];
- stage 2: the encoder frozen, nothing masked; a decoder of 12 x 512 whose first half comes from stage 1; a head shared
  by all blocks turns each block's tokens into a map, the last block's also into a repaired image [C]; the normalisation
  before the heads is shared too [R];
- loss: mean over blocks of cross-entropy (weight 3 where normal, 1 where not), 0.5 squared error and 0.1 (1 - SSIM) of
  the repaired image; AdamW 1e-3, decay 0.05, a cosine that swings with half-period 30 of 200 epochs down to 1e-6, batch
  16 [C];
- ``recon_target``: ``clean``, the image before it was corrupted, since the abstract says that the network learns to
  repair [A]; ``input`` is what the code takes [C];
- corruption of two images of three (`edgead.synthesis.ShapeForger`) [C];
- score and map: see `IsstadNetwork`.

Quirks dropped: the code shuffles patch tokens before the encoder and never puts them back, at inference too, which
makes results random; ours keep their order. It normalises with ImageNet statistics in stage 1 and with 0.5 in stage 2;
ours uses the former in both. Its map scales R within each image.

The small profile is ours: tokens are the cells of a frozen backbone (``encoder=backbone``), since a masked
auto-encoder learns next to nothing in minutes on a CPU, and stage 1 trains half of the decoder on a quarter of them;
128 x 4 decoder, patches of 8 at 128 pixels, AdamW with one cosine, gradients clipped, ``score=probability``. Half of
the forgeries are the small patches of the authors' extended code, what does not show is not called forged, normal
pixels weigh no more than others, and images are moved and toned a little: a few dozen are learned by heart otherwise.
``encoder=own`` is a 192 x 6 transformer then. Transformers are matrix products: in FP16 and INT8 only convolutions
change their type.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from edgead.detectors.learned import LearnedBase, LearnedSettings, Pixels, fill
from edgead.detectors.losses import structural_similarity
from edgead.detectors.networks.encoders import TapEncoder, as_pixels
from edgead.detectors.networks.isstad_network import (
    BackboneTokens,
    IsstadNetwork,
    MaskedAutoEncoder,
    Score,
    draw_kept,
    masked_error,
)
from edgead.detectors.networks.vit import SIZES, Grid, VitEncoder, load_mae, patchify
from edgead.features.backbones import BackboneSpec
from edgead.runtime.errors import ConfigError
from edgead.synthesis import ShapeForger
from edgead.synthesis.augment import apply_table, jitter_table, random_crop, shift
from edgead.training.recipes import Batch, Recipe, Stage

_FORGED = 2 / 3
_REACH = 8 / 256  # of the image's side, that training images are moved by

_PROFILES: dict[str, dict[str, Any]] = {
    "small": {
        "encoder": "backbone",
        "vit": "mini",
        "patch": 8,
        "decoder_width": 128,
        "decoder_depth": 4,
        "decoder_heads": 4,
        "pretraining_steps": 40,
        "pretraining_batch": 8,
        "steps": 240,
        "batch": 8,
        "learning_rate": 2e-3,
        "evaluations": 6,
        "score": "probability",
        "map_stride": 2,
        "normal_weight": 1.0,
        "small": 0.5,
        "least_change": 8,
        "vary": True,
    },
    "medium": {
        "encoder": "backbone",
        "vit": "mini",
        "patch": 16,
        "decoder_width": 192,
        "decoder_depth": 4,
        "decoder_heads": 4,
        "pretraining_steps": 100,
        "pretraining_batch": 8,
        "steps": 1500,
        "batch": 8,
        "learning_rate": 2e-3,
        "evaluations": 10,
        "score": "probability",
        "map_stride": 2,
        "normal_weight": 1.0,
        "small": 0.5,
        "least_change": 8,
        "vary": True,
    },
    "full": {
        "encoder": "own",
        "vit": "large",
        "patch": 16,
        "decoder_width": 512,
        "decoder_depth": 12,
        "decoder_heads": 16,
        "pretraining_steps": 3000,
        "pretraining_batch": 20,
        "steps": 2000,
        "batch": 16,
        "learning_rate": 1e-3,
        "evaluations": 20,
        "score": "product",
        "map_stride": 1,
        "normal_weight": 3.0,
        "small": 0.0,
        "least_change": 0,
        "vary": False,
    },
}


class Isstad(LearnedBase):
    """The detector; see the module's text."""

    name = "isstad"

    class Settings(LearnedSettings):
        """Settings of ISSTAD.

        Attributes:
            encoder: ``own`` trains a transformer; ``backbone`` takes the cells of a frozen backbone for tokens.
            vit: size of an own encoder, see `edgead.detectors.networks.vit.SIZES`.
            patch: pixels a side of a patch.
            decoder_width, decoder_depth, decoder_heads: channels, blocks and heads of the decoder.
            pretraining_steps: of the masked auto-encoder; 0 leaves the stage out. pretraining_batch: images in each.
            mae_weights: file of a released masked auto-encoder that the encoder starts from; None: from nothing.
            recon_target: what the last block learns to give, the ``clean`` image or its corrupted ``input``.
            score: see `IsstadNetwork`.
            map_stride: pixels a side of a cell of the map.
            normal_weight: of a normal pixel in the entropy, over that of a forged one.
            small: share of the forged images that get 1 to 100 small patches, see `ShapeForger`.
            least_change: grey levels below which a forged pixel counts as normal, see `ShapeForger`.
            vary: train on images that are moved a little and changed a little in tone, which few images are in need of.
        """

        encoder: Literal["own", "backbone"] | None = None
        vit: Literal["mini", "tiny", "small", "base", "large"] | None = None
        patch: int | None = Field(default=None, ge=4, le=32)
        decoder_width: int | None = Field(default=None, ge=16, le=1024, multiple_of=16)
        decoder_depth: int | None = Field(default=None, ge=2, le=24)
        decoder_heads: int | None = Field(default=None, ge=1, le=16)
        pretraining_steps: int | None = Field(default=None, ge=0)
        pretraining_batch: int | None = Field(default=None, ge=1, le=1024)
        mae_weights: str | None = None
        recon_target: Literal["clean", "input"] = "clean"
        score: Score | None = None
        map_stride: int | None = Field(default=None, ge=1, le=8)
        normal_weight: float | None = Field(default=None, gt=0.0)
        small: float | None = Field(default=None, ge=0.0, le=1.0)
        least_change: int | None = Field(default=None, ge=0, le=255)
        vary: bool | None = None

        def stated(self) -> LearnedSettings:
            stated = super().stated()
            if self.mae_weights is None:
                return stated
            return stated.model_copy(update={"mae_weights": Path(self.mae_weights).name})

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = fill(settings or self.Settings(), _PROFILES)
        if self.settings.decoder_width % self.settings.decoder_heads:
            raise ConfigError(
                f"decoder_width={self.settings.decoder_width} is no multiple of "
                f"decoder_heads={self.settings.decoder_heads}; change one of them"
            )

        if self.settings.mae_weights is not None and self.settings.encoder == "backbone":
            raise ConfigError("mae_weights are a transformer's; add --set encoder=own")

    def size(self) -> int:
        return {"small": 128, "medium": 256, "full": 224}[self.settings.profile]

    def backbone(self, spec: BackboneSpec) -> BackboneSpec:
        if self.settings.encoder == "own":
            return self.no_backbone(spec)
        return self.with_taps(spec, (self.settings.patch // 2, self.settings.patch, 2 * self.settings.patch))

    def network(self, spec: BackboneSpec, size: tuple[int, int], *, load_weights: bool = True) -> nn.Module:
        settings = self.settings
        for name, side in (("patch", settings.patch), ("map_stride", settings.map_stride)):
            if size[0] % side or size[1] % side:
                raise ConfigError(
                    f"an image of {size[1]}x{size[0]} is no multiple of {name}={side}; change one of them"
                )
        grid = Grid.of(size, settings.patch)
        encoder: VitEncoder | BackboneTokens
        if settings.encoder == "backbone":
            encoder = BackboneTokens(TapEncoder(spec, size, load_weights=load_weights), grid)
        else:
            encoder = VitEncoder(SIZES[settings.vit], grid)
            if load_weights and settings.mae_weights is not None:
                load_mae(encoder, Path(settings.mae_weights))
        return IsstadNetwork(
            encoder,
            (settings.decoder_width, settings.decoder_depth, settings.decoder_heads),
            size,
            score=settings.score,
            stride=settings.map_stride,
            smooth=settings.smooth,
        )

    def stages(self, network: IsstadNetwork, pixels: Pixels, seed: int) -> Sequence[Stage]:
        if isinstance(network.encoder, BackboneTokens):
            network.encoder.measure(pixels)
        first = [self._pretraining(network, pixels)] if self.settings.pretraining_steps else []
        return [*first, self._training(network, pixels)]

    def _pretraining(self, network: IsstadNetwork, pixels: Pixels) -> Stage:
        settings = self.settings
        full = settings.profile == "full"
        steps = settings.pretraining_steps
        batch = settings.pretraining_batch
        recipe = Recipe(
            steps=steps,
            batch=batch,
            optimiser="adamw",
            learning_rate=1e-3 * batch / 256 if full else settings.learning_rate,
            weight_decay=0.05,
            betas=(0.9, 0.95),
            warm_up=round(steps * 40 / 300),
            clip=None if full else 1.0,
        )
        masked = MaskedAutoEncoder(network)
        grid = network.grid

        def draw(rng: np.random.Generator) -> Batch:
            chosen = rng.integers(0, len(pixels), batch)
            images = np.stack([random_crop(pixels[index], rng) for index in chosen])
            return {"image": images, "keep": draw_kept(batch, grid.count, rng)}

        def losses(arrays: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
            images = as_pixels(arrays["image"])
            restored = masked(network, images, arrays["keep"]).float()
            return {"masked": masked_error(restored, patchify(network.normalise(images), grid), arrays["keep"])}

        decoder = network.decoder
        half = decoder.blocks[: len(decoder.blocks) // 2]
        trained: list[nn.Module] = [decoder.embed, *half, decoder.norm, masked]
        if settings.encoder == "own":
            trained.append(network.encoder)
        return Stage("masked auto-encoder", recipe, trained, draw, losses, masked)

    def _training(self, network: IsstadNetwork, pixels: Pixels) -> Stage:
        settings = self.settings
        full = settings.profile == "full"
        recipe = Recipe(
            steps=settings.steps,
            batch=settings.batch,
            optimiser="adamw",
            learning_rate=settings.learning_rate,
            weight_decay=0.05,
            warm_up=0 if full else min(10, settings.steps // 4),
            period=max(1, settings.steps * 30 // 200) if full else None,
            floor=1e-3 if full else 0.0,
            clip=None if full else 1.0,
            evaluations=settings.evaluations,
        )
        forger = ShapeForger(pixels, small=settings.small, least_change=settings.least_change)
        repair = settings.recon_target == "clean"
        reach = round(_REACH * min(pixels.shape[1:3]))

        def draw(rng: np.random.Generator) -> Batch:
            indices = rng.integers(0, len(pixels), recipe.batch)
            clean = pixels[indices]
            images, masks = clean.copy(), np.zeros(clean.shape[:3], bool)
            for place, index in enumerate(indices):
                if rng.random() < _FORGED:
                    images[place], masks[place] = forger(int(index), rng)
                if settings.vary:
                    table = jitter_table(clean[place], rng)
                    pair = [apply_table(one, table) for one in (images[place], clean[place])]
                    moved = shift([*pair, masks[place]], rng, reach)
                    images[place], clean[place], masks[place] = moved
            return {"image": images, "target": clean if repair else images, "mask": masks}

        def losses(arrays: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
            blocks = network.decoder(network.encoder(network.encoder_input(as_pixels(arrays["image"]))))
            target = as_pixels(arrays["target"])
            restored = network.repaired(blocks).float()
            shown = (restored / network.scale + network.mean) / 255.0
            mask, weight = arrays["mask"].long(), settings.normal_weight
            entropies = [pixel_entropy(network.map_logits(block).float(), mask, weight) for block in blocks]
            return {
                "entropy": torch.stack(entropies).mean(),
                "L2": 0.5 * F.mse_loss(restored, network.normalise(target)),
                "SSIM": 0.1 * (1.0 - structural_similarity(shown, target / 255.0)),
            }

        return Stage("training", recipe, [network.decoder], draw, losses)


def pixel_entropy(logits: Tensor, mask: Tensor, normal_weight: float) -> Tensor:
    """Return the cross-entropy of ``(N, 2, h, w)`` and ``(N, h, w)`` int64, normal pixels so much as heavy."""
    weight = torch.tensor([normal_weight, 1.0], device=logits.device)
    return F.cross_entropy(logits, mask, weight)
