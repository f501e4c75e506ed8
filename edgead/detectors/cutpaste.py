"""CutPaste: features that tell a pasted patch from an untouched image, and a Gaussian of the untouched ones.

Li, Sohn, Yoon, Pfister, "CutPaste: Self-Supervised Learning for Anomaly Detection and Localization", CVPR 2021; from
general knowledge [G], not re-checked against code. What each part rests on ([R]: ours):

- three classes, the image as it is, with a rectangle of 2 to 15 % of its area pasted elsewhere, with a thin turned scar
  (`edgead.synthesis.CutPasteForger`); cross-entropy of a head that only training needs [G];
- ResNet-18, its pooled features the embedding; SGD 0.03, momentum 0.9, weight decay 3e-5, one cosine of 65,536 steps
  (256 epochs of 256 steps each) of 32 images in three versions; a little colour jitter [G];
- score: Mahalanobis distance of the image's embedding from a Gaussian of the training images' [G], its covariance
  shrunk (Ledoit and Wolf) and with a ridge since images are few [R];
- map: the same for windows. The paper trains a second network on patches of 64 of 256 pixels for it [G]; ours takes
  the means of this network's features over windows of half that side, and one Gaussian of all windows [R].
  ``score=patch`` takes the image's score from that map, its maximum, which small defects do not dilute [R].

The small profile is ours: a few layers learn on frozen features of the default backbone, at stride 8, and what is
classified is what is scored, the windows: one whose middle cell a forgery reaches is of its class, one that it touches
elsewhere does not count, all others are normal, and each class weighs the same. The paper's second network learns on
small patches for the same reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from edgead.detectors.gaussian import GaussianDensity, shrunk_moments
from edgead.detectors.learned import LearnedBase, LearnedSettings, Pixels, fill
from edgead.detectors.networks.blocks import ConvNorm, upsample
from edgead.detectors.networks.encoders import TapEncoder, as_pixels
from edgead.detectors.networks.resnet import ResNet18
from edgead.features.backbones import BackboneSpec
from edgead.features.scoring import GaussianSmoothing
from edgead.runtime.errors import ConfigError
from edgead.synthesis import CutPasteForger
from edgead.synthesis.augment import jitter
from edgead.training.recipes import Batch, Recipe, Stage

_RESNET = "resnet18"
_STRIDES = (8, 16)  # of the backbone's taps
_CLASSES = 3
_BATCH = 8  # images at a time where nothing is learned
_WINDOW = 32 / 256  # of the image's side
_IGNORED = -100

_PROFILES: dict[str, dict[str, Any]] = {
    "small": {
        "width": 64,
        "kept": 64,
        "steps": 150,
        "batch": 8,
        "learning_rate": 2e-3,
        "evaluations": 6,
        "score": "patch",
        "least_change": 8,
    },
    "medium": {
        "width": 64,
        "kept": 64,
        "steps": 600,
        "batch": 8,
        "learning_rate": 2e-3,
        "evaluations": 10,
        "score": "patch",
        "least_change": 8,
    },
    "full": {
        "width": 512,
        "kept": 0,
        "steps": 65_536,
        "batch": 32,
        "learning_rate": 0.03,
        "evaluations": 20,
        "score": "image",
        "least_change": 0,
    },
}


class CutPaste(LearnedBase):
    """The detector; see the module's text."""

    name = "cutpaste"

    class Settings(LearnedSettings):
        """Settings of CutPaste.

        Attributes:
            batch: images a step, of which each is seen in three versions.
            width: channels that are learned, of the small and medium profiles; a ResNet-18 has 512.
            kept: channels of the frozen backbone beside them, of the same profiles; 0 leaves them out.
            score: distance of the whole ``image``, or of the most distant ``patch``; the same is classified.
            least_change: grey levels below which a pasted pixel counts as normal, see `CutPasteForger`.
        """

        width: int | None = Field(default=None, ge=8, le=512)
        kept: int | None = Field(default=None, ge=0, le=512)
        score: Literal["image", "patch"] | None = None
        least_change: int | None = Field(default=None, ge=0, le=255)

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = fill(settings or self.Settings(), _PROFILES)
        for name in ("width", "kept"):
            if self.settings.profile == "full" and getattr(self.settings, name) != _PROFILES["full"][name]:
                raise ConfigError(
                    f"{name} belongs to the small and medium profiles of cutpaste; the full one is a ResNet-18 of 512"
                )

    def backbone(self, spec: BackboneSpec) -> BackboneSpec:
        if self.settings.profile != "full":
            return self.with_taps(spec, _STRIDES)
        if spec.name == _RESNET:
            return self.with_taps(spec, (32,))
        return self.no_backbone(spec)

    def network(self, spec: BackboneSpec, size: tuple[int, int], *, load_weights: bool = True) -> nn.Module:
        encoder: nn.Module
        if self.settings.profile != "full":
            taps = TapEncoder(spec, size, load_weights=load_weights)
            encoder = _OnBackbone(taps, self.settings.width, self.settings.kept)
        else:
            encoder = ResNet18(spec if load_weights and spec.strides else None)
        return CutPasteNetwork(encoder, size, score=self.settings.score, smooth=self.settings.smooth)

    def stages(self, network: CutPasteNetwork, pixels: Pixels, seed: int) -> Sequence[Stage]:
        settings = self.settings
        full = settings.profile == "full"
        recipe = Recipe(
            steps=settings.steps,
            batch=settings.batch,
            optimiser="sgd" if full else "adamw",
            learning_rate=settings.learning_rate,
            weight_decay=3e-5 if full else 1e-3,
            warm_up=0 if full else min(10, settings.steps // 4),
            clip=None if full else 1.0,
            evaluations=settings.evaluations,
        )
        least = settings.least_change
        forgers = [CutPasteForger(pixels, kind, least_change=least) for kind in ("paste", "scar")]
        # The head sees what is learned only, which would lean on what is there already.
        channels = network.encoder.learned
        helper = nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, _CLASSES))

        def draw(rng: np.random.Generator) -> Batch:
            chosen = [int(index) for index in rng.integers(0, len(pixels), recipe.batch)]
            versions = [(pixels[index], np.zeros(pixels.shape[1:3], bool)) for index in chosen]
            versions += [forger(index, rng) for forger in forgers for index in chosen]
            images = np.stack([jitter(image, rng) for image, _ in versions])
            masks = np.stack([mask for _, mask in versions])
            return {"image": images, "mask": masks, "label": np.repeat(np.arange(_CLASSES), recipe.batch)}

        def losses(batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
            features = network.encoder(as_pixels(batch["image"]))[:, :channels]
            if not network.by_patch:
                return {"classes": F.cross_entropy(helper(features.mean(dim=(2, 3))).float(), batch["label"])}
            labels = window_labels(batch["label"], batch["mask"], network.cells, network.window)
            logits = helper(network.windows(features)).float()
            return {"classes": balanced_entropy(logits.flatten(0, 1), labels.flatten())}

        trained = [network.encoder if full else network.encoder.neck, helper]
        start = None if full else partial(network.encoder.measure, pixels)
        settle = partial(network.measure, pixels)
        return [Stage("training", recipe, trained, draw, losses, helper, start, settle)]

    def complete(self, network: CutPasteNetwork, pixels: Pixels, held_out: Pixels) -> None:
        network.measure(pixels)


def window_labels(labels: Tensor, masks: Tensor, cells: tuple[int, int], window: int) -> Tensor:
    """Return the class of every window ``(N, gh gw)`` int64, `_IGNORED` where a forgery lies beside its middle only.

    Args:
        labels: ``(N,)``, the class of each image's forgery.
        masks: ``(N, h, w)`` bool, where it is.
        cells: ``(gh, gw)``.
        window: cells a side, odd.
    """
    reached = F.adaptive_max_pool2d(masks[:, None].float(), cells)
    touched = F.max_pool2d(reached, window, stride=1, padding=window // 2)
    classes = torch.where(touched > 0, _IGNORED, 0)
    return torch.where(reached > 0, labels[:, None, None, None], classes).flatten(1)


def balanced_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of ``(n, 3)`` and ``(n,)`` int64, the mean over the classes of their means."""
    counts = (labels[:, None] == torch.arange(_CLASSES, device=labels.device)).sum(0)
    weights = 1.0 / torch.clamp(counts, min=1).float()
    return F.cross_entropy(logits, labels, weights, ignore_index=_IGNORED)


class CutPasteNetwork(nn.Module):
    """Pixels ``(N, 3, h, w)`` from 0 to 255 to score ``(N,)`` and map ``(N, gh, gw)`` of distances.

    Args:
        encoder: pixels to features ``(N, C, gh, gw)``, with ``channels``.
        size: ``(height, width)`` of the input.
        score: see `CutPaste.Settings`.
        smooth: blur the map.
    """

    def __init__(self, encoder: Any, size: tuple[int, int], *, score: str, smooth: bool) -> None:
        super().__init__()
        self.encoder = encoder
        self.by_patch = score == "patch"
        with torch.no_grad():
            rows, columns = encoder.eval()(torch.zeros(1, 3, *size)).shape[2:]
        self.cells = (int(rows), int(columns))
        # Odd, so that a window has a cell in its middle.
        self.window = 2 * (round(_WINDOW * min(self.cells)) // 2) + 1
        self.image_density = GaussianDensity(encoder.channels)
        self.patch_density = GaussianDensity(encoder.channels)
        self.smoothing = GaussianSmoothing(4.0 * min(self.cells) / 256.0) if smooth else nn.Identity()

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        features = self.encoder(pixels)
        distances = self.patch_density(self.windows(features)).reshape(-1, *self.cells)
        smoothed: Tensor = self.smoothing(distances)
        if self.by_patch:
            return smoothed.amax(dim=(1, 2)), smoothed
        return self.image_density(features.mean(dim=(2, 3))), smoothed

    @torch.no_grad()
    def measure(self, images: Pixels) -> None:
        """Set both Gaussians from normal images ``(n, h, w, 3)``."""
        device = self.image_density.shift.device
        means, windows = [], []
        for start in range(0, len(images), _BATCH):
            part = torch.from_numpy(images[start : start + _BATCH]).to(device)
            features = self.encoder(as_pixels(part)).float()
            means.append(features.mean(dim=(2, 3)).cpu())
            windows.append(self.windows(features).flatten(0, 1).cpu())
        self.image_density.fit(*shrunk_moments(torch.cat(means).numpy()))
        self.patch_density.fit(*shrunk_moments(torch.cat(windows).numpy()))

    def windows(self, features: Tensor) -> Tensor:
        """Return the mean ``(N, gh gw, C)`` of ``(N, C, gh, gw)`` over the window around each cell, cut at borders."""
        side = self.window
        means = F.avg_pool2d(features, side, stride=1, padding=side // 2, count_include_pad=False)
        return means.flatten(2).transpose(1, 2)


class _OnBackbone(nn.Module):
    """A few learned layers on the taps of a frozen backbone, at the finer one's grid, and the taps themselves, turned.

    Args:
        encoder: its taps, the finer one first; each channel is brought to mean 0 and variance 1 over normal images.
        width: channels that are learned.
        kept: channels that a fixed random matrix makes of the taps.
    """

    level: Tensor
    gain: Tensor
    turn: Tensor

    def __init__(self, encoder: TapEncoder, width: int, kept: int) -> None:
        super().__init__()
        self.backbone = encoder
        given = sum(encoder.channels)
        # No activation at the end: values around zero have small rounding errors, which a whitening makes larger.
        self.neck = nn.Sequential(ConvNorm(given, width, 1), ConvNorm(width, width, activation="none"))
        self.register_buffer("level", torch.zeros(1, given, 1, 1))
        self.register_buffer("gain", torch.ones(1, given, 1, 1))
        matrix = np.random.default_rng((given, kept)).normal(0.0, given**-0.5, (kept, given, 1, 1))
        self.register_buffer("turn", torch.from_numpy(matrix.astype(np.float32)))
        self.learned, self.channels = width, width + kept

    def forward(self, pixels: Tensor) -> Tensor:
        """Return ``(N, learned + kept, gh, gw)``."""
        cells = (self._cells(pixels) - self.level) * self.gain
        learned: Tensor = self.neck(cells)
        return torch.cat([learned, F.conv2d(cells, self.turn)], 1) if len(self.turn) else learned

    @torch.no_grad()
    def measure(self, images: Pixels) -> None:
        """Set the statistics of the channels from normal images ``(n, h, w, 3)``."""
        device = self.level.device
        cells = torch.cat([self._cells(as_pixels(torch.from_numpy(one[None]).to(device))) for one in images]).double()
        std, mean = torch.std_mean(cells, dim=(0, 2, 3), correction=0, keepdim=True)
        self.level.copy_(mean)
        self.gain.copy_(1.0 / torch.clamp(std, min=1e-6))

    def _cells(self, pixels: Tensor) -> Tensor:
        fine, coarse = self.backbone(pixels)
        return torch.cat([fine, upsample(coarse)], 1)
