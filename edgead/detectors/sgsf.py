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

The small and medium profiles put a frozen backbone in the place of both encoders, the small one at a quarter of the
pixels, which is ours alone.
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
from edgead.detectors.losses import focal, shrink, structural_similarity
from edgead.detectors.networks.encoders import TapEncoder, as_pixels
from edgead.detectors.networks.sgsf_network import _NEIGHBOURS, _STRIDES, SgsfNetwork, thumbnail_keys
from edgead.features.backbones import BackboneSpec
from edgead.synthesis import SalientForger, is_grey, open_textures
from edgead.synthesis.augment import jitter
from edgead.training.recipes import Batch, Recipe, Stage

_FORGED = 0.75
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
    "medium": {
        "encoder": "backbone",
        "width": 24,
        "steps": 1500,
        "batch": 8,
        "learning_rate": 2e-3,
        "evaluations": 10,
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
        if settings.profile != "full":
            recipe = Recipe(
                steps=settings.steps,
                batch=settings.batch,
                optimiser="adamw",
                learning_rate=settings.learning_rate,
                weight_decay=1e-4,
                warm_up=min(10, settings.steps // 4),
                evaluations=settings.evaluations,
                mixed=settings.profile == "medium",
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
