"""EfficientAD-S: a student and an auto-encoder that follow a small teacher on normal images, and nowhere else.

Batzner, Heckler, König, "EfficientAD: Accurate Visual Anomaly Detection at Millisecond-Level Latencies", WACV 2024;
from secondary sources [S]. What each part rests on ([R]: ours):

- teacher and student are patch describers of four convolutions; the auto-encoder has one vector of 64 for its neck [S];
- stage 1, the teacher is distilled from a pre-trained network [S]: here offline, from the backbone of ``--backbone``
  (the default one's weights come with it), its taps averaged over 3 x 3 cells, resized to the teacher's grid, turned by
  a seeded random matrix into as many channels as the teacher has, each of mean 0 and variance 1 [R]. In the place of
  ImageNet: a third training images, cropped, a third textures, a third training images with textures in them [R]. Its
  outputs on the training images are scaled to mean 0 and variance 1 a channel [S];
- stage 2, student and auto-encoder together: squared difference of teacher and the student's first half, of which the
  0.1 % largest of each step count; the student's answer to a strange image, squared, which keeps it from following the
  teacher there; on jittered images, differences of teacher and auto-encoder, and of auto-encoder and the student's
  second half [S]. Adam 1e-4, decay 1e-5, batch 1, 70,000 steps, a tenth of the rate for the last 5 % [S];
- strange images are images of ``textures`` (a folder of ImageNet-like images is what the paper means), else procedural
  textures [R]; with ``strange=both`` half of them are training images with textures in them, of which the changed cells
  count, so that a student of few steps learns where not to follow [R];
- score and map: see `EfficientAdNetwork`.

The small profile is ours: narrower networks, AdamW with one cosine, a larger batch and share of hard cells,
``strange=both``, and the frozen backbone itself for a teacher (``teacher=backbone``), since a hundred steps distil next
to nothing and a student follows so poor a teacher everywhere.
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
from edgead.detectors.networks.efficientad_network import (
    CROP,
    QUANTILES,
    Describer,
    EfficientAdNetwork,
    PatchDescriber,
)
from edgead.detectors.networks.encoders import TapEncoder, as_pixels
from edgead.features.backbones import BackboneSpec
from edgead.runtime.errors import ConfigError
from edgead.synthesis import MixForger, is_grey, open_textures
from edgead.synthesis.augment import jitter, random_crop
from edgead.training.recipes import Batch, Recipe, Stage

_STRIDES = (4, 8, 16)  # taps that the teacher is taught
_SAMPLE = 32  # training images, and textures, that statistics are taken from
_SMALLEST = 64  # pixels; below, nothing is left of the grid
_JITTER = 0.2

_PROFILES: dict[str, dict[str, Any]] = {
    "small": {
        "width": 0.25,
        "channels": 64,
        "distillation_steps": 120,
        "distillation_batch": 8,
        "steps": 300,
        "batch": 4,
        "learning_rate": 2e-3,
        "evaluations": 6,
        "hard": 0.99,
        "strange": "both",
        "teacher": "backbone",
    },
    "medium": {
        "width": 0.5,
        "channels": 96,
        "distillation_steps": 1000,
        "distillation_batch": 8,
        "steps": 1200,
        "batch": 4,
        "learning_rate": 2e-3,
        "evaluations": 8,
        "hard": 0.99,
        "strange": "both",
        "teacher": "backbone",
    },
    "full": {
        "width": 1.0,
        "channels": 384,
        "distillation_steps": 60_000,
        "distillation_batch": 16,
        "steps": 70_000,
        "batch": 1,
        "learning_rate": 1e-4,
        "evaluations": 20,
        "hard": 0.999,
        "strange": "images",
        "teacher": "distilled",
    },
}


class EfficientAd(LearnedBase):
    """The detector; see the module's text."""

    name = "efficientad"

    class Settings(LearnedSettings):
        """Settings of EfficientAD-S.

        Attributes:
            textures: images that the student must not follow the teacher on; None: procedural textures.
            width: factor of the hidden channels.
            channels: of the teacher's output.
            distillation_steps: of the teacher. distillation_batch: images in each.
            hard: share of the differences of a step that do not count, the smallest.
            strange: what the student must not follow the teacher on, whole ``images``, or forged defects too.
            teacher: a small network made to follow the backbone, or the ``backbone`` itself.
        """

        smooth: bool = False
        width: float | None = Field(default=None, gt=0.0, le=4.0)
        channels: int | None = Field(default=None, ge=8, le=1024)
        distillation_steps: int | None = Field(default=None, ge=1)
        distillation_batch: int | None = Field(default=None, ge=1, le=1024)
        hard: float | None = Field(default=None, ge=0.0, lt=1.0)
        strange: Literal["images", "both"] | None = None
        teacher: Literal["distilled", "backbone"] | None = None

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = fill(settings or self.Settings(), _PROFILES)

    def backbone(self, spec: BackboneSpec) -> BackboneSpec:
        # It is no part of the network, but the teacher is made of it.
        return self.with_taps(spec, _STRIDES)

    def network(self, spec: BackboneSpec, size: tuple[int, int], *, load_weights: bool = True) -> nn.Module:
        if min(size) < _SMALLEST:
            raise ConfigError(f"efficientad needs at least {_SMALLEST} pixels a side, got {size[1]}x{size[0]}")
        wide = [max(8, round(channels * self.settings.width)) for channels in (128, 256, 256, 32)]
        widths, channels = (wide[0], wide[1], wide[2]), self.settings.channels
        teacher: nn.Module = PatchDescriber(widths, channels)
        if self.settings.teacher == "backbone":
            teacher = Describer(TapEncoder(spec, size, load_weights=load_weights), channels)
        return EfficientAdNetwork(teacher, spec, widths, channels, wide[3], size, smooth=self.settings.smooth)

    def stages(self, network: EfficientAdNetwork, pixels: Pixels, seed: int) -> Sequence[Stage]:
        textures = open_textures(self.settings.textures, *pixels.shape[1:3], grey=is_grey(pixels))
        training = self._training(network, pixels, textures)
        if self.settings.teacher == "backbone":
            return [training]
        return [self._distillation(network, pixels, textures, seed), training]

    def _recipe(self, steps: int, batch: int, evaluations: int) -> Recipe:
        if self.settings.profile == "full":
            return Recipe(
                steps=steps,
                batch=batch,
                optimiser="adam",
                learning_rate=self.settings.learning_rate,
                weight_decay=1e-5,
                schedule="drops",
                drops=(0.95,),
                clip=None,
                evaluations=evaluations,
            )
        return Recipe(
            steps=steps,
            batch=batch,
            optimiser="adamw",
            learning_rate=self.settings.learning_rate,
            weight_decay=1e-4,
            warm_up=min(10, steps // 4),
            evaluations=evaluations,
        )

    def _distillation(self, network: EfficientAdNetwork, pixels: Pixels, textures: Any, seed: int) -> Stage:
        batch = self.settings.distillation_batch
        recipe = self._recipe(self.settings.distillation_steps, batch, 0)
        teaching = Describer(TapEncoder(network.spec, (pixels.shape[1], pixels.shape[2])), network.channels)
        forger = MixForger(pixels, textures, mode="texture")

        rng = np.random.default_rng((seed, _SAMPLE))
        chosen = rng.permutation(len(pixels))[:_SAMPLE]
        sample = np.concatenate([pixels[chosen], np.stack([textures(rng) for _ in range(_SAMPLE)])])

        def draw(rng: np.random.Generator) -> Batch:
            images = []
            for place in range(batch):
                index = int(rng.integers(0, len(pixels)))
                if place % 3 == 0:
                    images.append(random_crop(pixels[index], rng))
                else:
                    images.append(textures(rng) if place % 3 == 1 else forger(index, rng)[0])
            return {"image": np.stack(images)}

        def losses(arrays: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
            images = as_pixels(arrays["image"])
            return {"teacher": F.mse_loss(network.taught(images).float(), teaching(images))}

        return Stage(
            "distillation",
            recipe,
            [network.teacher],
            draw,
            losses,
            teaching,
            start=lambda: teaching.measure(sample),
        )

    def _training(self, network: EfficientAdNetwork, pixels: Pixels, textures: Any) -> Stage:
        settings = self.settings
        recipe = self._recipe(settings.steps, settings.batch, settings.evaluations)

        forger = MixForger(pixels, textures, mode="texture")
        whole = np.ones(pixels.shape[1:3], bool)

        def draw(rng: np.random.Generator) -> Batch:
            indices = rng.integers(0, len(pixels), recipe.batch)
            shifted = np.stack([jitter(pixels[index], rng, _JITTER) for index in indices])
            pairs = [
                forger(int(index), rng) if settings.strange == "both" and place % 2 else (textures(rng), whole)
                for place, index in enumerate(indices)
            ]
            strange, masks = (np.stack(part) for part in zip(*pairs, strict=True))
            return {"image": pixels[indices], "shifted": shifted, "strange": strange, "mask": masks}

        def losses(arrays: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
            images = [as_pixels(arrays[name]) for name in ("image", "shifted", "strange")]
            clean, shifted, strange = (network.normalise(one) for one in images)
            half = network.channels
            with torch.no_grad():
                wanted, wanted_shifted = (network.taught(one).float() for one in images[:2])
            difference = (wanted - network.student(clean)[:, :half].float()).square()
            rebuilt = network.autoencoder(shifted).float()
            overall = (rebuilt - network.student(shifted)[:, half:].float()).square()
            return {
                "student": hard_mean(difference, settings.hard),
                "strange": masked_energy(network.student(strange)[:, :half].float(), arrays["mask"]),
                "auto-encoder": (wanted_shifted - rebuilt).square().mean(),
                "second student": overall.mean(),
            }

        return Stage(
            "training",
            recipe,
            [network.student, network.autoencoder],
            draw,
            losses,
            start=lambda: network.standardise_teacher(pixels),
            # Without a scale of their own the larger of the two maps would be judged alone.
            settle=lambda: scale_maps(network, evenly(pixels, _SAMPLE)),
        )

    def complete(self, network: EfficientAdNetwork, pixels: Pixels, held_out: Pixels) -> None:
        scale_maps(network, held_out)


@torch.no_grad()
def scale_maps(network: EfficientAdNetwork, images: Pixels) -> None:
    """Scale both maps by the quantiles that they have on normal images ``(n, h, w, 3)``."""
    device = network.mean.device
    maps = [network.maps(as_pixels(torch.from_numpy(images[i : i + 1]).to(device))) for i in range(len(images))]
    network.set_quantiles(*_quantiles([torch.cat([pair[which].flatten() for pair in maps]) for which in (0, 1)]))


def evenly(images: Pixels, most: int) -> Pixels:
    """Return at most so many of the images, evenly taken."""
    chosen = np.linspace(0, len(images) - 1, min(most, len(images))).round().astype(int)
    found: Pixels = images[np.unique(chosen)]
    return found


def hard_mean(differences: Tensor, share: float) -> Tensor:
    """Return the mean of the differences of a step that reach their ``share`` quantile."""
    flat = differences.flatten()
    kept = max(1, round((1.0 - share) * len(flat)))
    return torch.topk(flat, kept).values.mean()


def masked_energy(answers: Tensor, mask: Tensor) -> Tensor:
    """Return the mean square of ``(N, C, h / 4 - 8, w / 4 - 8)`` in cells of ``(N, h, w)`` bool, by the share set."""
    share = F.avg_pool2d(mask[:, None].float(), 4)[:, :, CROP:-CROP, CROP:-CROP]
    return (answers.square().mean(1, keepdim=True) * share).sum() / torch.clamp(share.sum(), min=1.0)


def _quantiles(values: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    rows = [np.quantile(one.detach().double().cpu().numpy(), QUANTILES) for one in values]
    table = torch.tensor(np.array(rows), dtype=torch.float32, device=values[0].device)
    return table[:, 0], table[:, 1]
