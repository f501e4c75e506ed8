"""SLSG: generatively pre-trained features, self-attentive graph relations, and learning from forged defects.

Yang, Wu, Feng, "SLSG: Industrial Image Anomaly Detection by Learning Better Feature Embeddings and One-Class
Classification", arXiv 2305.00398, Pattern Recognition 156 (2024). What each part rests on ([C]: read in the authors'
code, [R]: our reconstruction):

- encoder ResNet18 without max-pool, frozen [C]. Quirks dropped: its first block read the raw first convolution, and
  batch statistics drifted while training; ours has the standard order and fixed statistics. The small profile takes the
  default backbone in its place, ends at stride 2 and has a quarter of the width; that is ours;
- gates on the skips, graph layer with dense and sparse relations, auxiliary head, U-Net decoder [C], two convolutions a
  level [R]; quirk kept behind ``favour_distant``: the sparse relations favour distant nodes (`GraphLayer`);
- loss 0.4 focal (gamma 4) + 0.6 mean |p - y| + 0.3 mean |p_aux - y| [C]; a hypersphere term, which the title promises
  and the code lacks, is optional and off [R];
- 4 clean and 4 forged images a step (`edgead.synthesis.MixForger`), slight colour jitter, SGD 0.04, momentum 0.9,
  weight decay 3e-5, one cosine, 7001 steps [C]; gradient clipping is ours;
- pre-training: only its weights were released. Ours [R]: half of the 32-pixel tiles of a normal image (at 256) are
  shuffled or blanked, a skip-free mirror decoder restores it, L2 + 0.5 (1 - SSIM), and 0.1 times the distance from the
  features of the encoder as it was keeps it from collapsing; then the encoder is frozen;
- map p, image score the mean of its 100 largest values at 256 x 256 [C], of as large a share on other grids [R];
- one-class classification of the whole image, which the title promises and the code lacks (``one_class``): how far the
  means of encoder features and graph nodes over quarters of the image are from those of normal images; the image score
  is the larger of both, in units of the held-out normals [R]. On `benchmarks.logical` it is what finds most logical
  anomalies.

The medium profile is the small one at 256 pixels, of half the paper's width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from edgead.detectors.learned import LearnedBase, LearnedSettings, Pixels, copy_module, fill
from edgead.detectors.losses import anomaly_probability, focal, shrink, structural_similarity
from edgead.detectors.networks.encoders import TapEncoder, as_pixels
from edgead.detectors.networks.slsg_network import Hypersphere, MirrorDecoder, SlsgNetwork
from edgead.features.backbones import BackboneSpec
from edgead.runtime.errors import ConfigError
from edgead.synthesis import MixForger, is_grey, open_textures
from edgead.synthesis.augment import jitter
from edgead.synthesis.tiles import disturb_tiles
from edgead.training.recipes import Batch, Recipe, Stage

_RESNET = "resnet18"
_STRIDES = (2, 4, 8, 16)
_RESNET_STRIDES = (2, 4, 8, 16, 32)  # with its max-pool, which is omitted
_GAMMA = 4.0
_BATCH = 8
_ANCHOR = 0.1

_PROFILES: dict[str, dict[str, Any]] = {
    "small": {
        "width": 0.25,
        "output_stride": 2,
        "steps": 400,
        "pretraining_steps": 30,
        "batch": 8,
        "learning_rate": 2e-3,
        "evaluations": 8,
        "least_change": 8,
        "one_class": True,
    },
    "medium": {
        "width": 0.5,
        "output_stride": 2,
        "steps": 1500,
        "pretraining_steps": 100,
        "batch": 8,
        "learning_rate": 2e-3,
        "evaluations": 10,
        "least_change": 8,
        "one_class": True,
    },
    "full": {
        "width": 1.0,
        "output_stride": 1,
        "steps": 7001,
        "pretraining_steps": 5000,
        "batch": 8,
        "learning_rate": 0.04,
        "evaluations": 20,
        "least_change": 0,
        "one_class": False,
    },
}


class Slsg(LearnedBase):
    """The detector; see the module's text."""

    name = "slsg"

    class Settings(LearnedSettings):
        """Settings of SLSG.

        Attributes:
            width: factor of the decoder's channels.
            output_stride: pixels a cell of the map.
            pretraining_steps: of the generative stage; 0 leaves it out.
            favour_distant: see `GraphLayer`.
            hypersphere: weight of the optional term; margin: how far it pushes forged nodes.
            graph: False leaves the graph layer out.
            one_class: judge the composition of the whole image, too, see `edgead.detectors.networks.one_class`.
            least_change: grey levels below which a forged pixel counts as normal, see `MixForger`.
        """

        smooth: bool = False
        width: float | None = Field(default=None, gt=0.0, le=4.0)
        output_stride: int | None = Field(default=None, ge=1, le=2)
        pretraining_steps: int | None = Field(default=None, ge=0)
        favour_distant: bool = True
        hypersphere: float = Field(default=0.0, ge=0.0)
        margin: float = Field(default=1.0, gt=0.0)
        graph: bool = True
        one_class: bool | None = None
        least_change: int | None = Field(default=None, ge=0, le=255)

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = fill(settings or self.Settings(), _PROFILES)

    def backbone(self, spec: BackboneSpec) -> BackboneSpec:
        if spec.name == _RESNET:
            return self.with_taps(spec, _RESNET_STRIDES)
        if self.settings.profile == "full":
            raise ConfigError(
                f"profile=full of detector 'slsg' is a ResNet18, not {spec.name}; add --backbone {_RESNET}@FILE "
                f"(or @hub, or @random to learn it from nothing)"
            )
        return self.with_taps(spec, _STRIDES)

    def network(self, spec: BackboneSpec, size: tuple[int, int], *, load_weights: bool = True) -> nn.Module:
        encoder = TapEncoder(spec, size, load_weights=load_weights, pool=spec.name != _RESNET)
        return SlsgNetwork(encoder, self.settings, size)

    def stages(self, network: SlsgNetwork, pixels: Pixels, seed: int) -> Sequence[Stage]:
        first = [self._pretraining(network, pixels)] if self.settings.pretraining_steps else []
        return [*first, self._training(network, pixels)]

    def complete(self, network: SlsgNetwork, pixels: Pixels, held_out: Pixels) -> None:
        """Fit the composition on the training images, and its unit on the held-out ones."""
        composition = network.composition
        if composition is None:
            return
        means = []
        for start in range(0, len(pixels), _BATCH):
            _, _, features = network.parts(as_pixels(torch.from_numpy(pixels[start : start + _BATCH])))
            means.append(composition.means(features).numpy())
        composition.fit(np.concatenate(means))
        of_maps, distances = np.empty((2, len(held_out)), np.float32)
        for place in range(len(held_out)):
            of_map, _, features = network.parts(as_pixels(torch.from_numpy(held_out[place : place + 1])))
            of_maps[place], distances[place] = float(of_map), float(composition(features))
        network.judgement.fit(of_maps, distances)

    def adopt(self, network: SlsgNetwork, tensors: Mapping[str, Tensor]) -> None:
        if network.composition is not None:
            network.composition.adopt(tensors["composition.directions"])

    def _pretraining(self, network: SlsgNetwork, pixels: Pixels) -> Stage:
        settings, encoder = self.settings, network.encoder
        helper = nn.ModuleDict(
            {"decoder": MirrorDecoder(encoder.channels, encoder.strides), "before": copy_module(encoder)}
        )
        recipe = Recipe(
            steps=settings.pretraining_steps,
            batch=settings.batch,
            optimiser="adamw",
            learning_rate=1e-4 if settings.profile == "full" else 3e-4,
            warm_up=min(10, settings.pretraining_steps // 4),
        )

        def draw(rng: np.random.Generator) -> Batch:
            clean = pixels[rng.integers(0, len(pixels), recipe.batch)]
            return {"image": np.stack([disturb_tiles(one, rng) for one in clean]), "clean": clean}

        def losses(batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
            images = as_pixels(batch["image"])
            taps, anchors = encoder(images), helper["before"](images)
            restored = helper["decoder"](taps[-1]).float()
            wanted = shrink(as_pixels(batch["clean"]) / 255.0, *restored.shape[2:])
            drift = [F.mse_loss(tap.float(), anchor.float()) for tap, anchor in zip(taps, anchors, strict=True)]
            return {
                "L2": F.mse_loss(restored, wanted),
                "SSIM": 0.5 * (1.0 - structural_similarity(restored, wanted)),
                "drift": _ANCHOR * sum(drift[1:], drift[0]) / len(drift),
            }

        return Stage("pre-training", recipe, [encoder, helper["decoder"]], draw, losses, helper)

    def _training(self, network: SlsgNetwork, pixels: Pixels) -> Stage:
        settings = self.settings
        full = settings.profile == "full"
        recipe = Recipe(
            steps=settings.steps,
            batch=settings.batch,
            optimiser="sgd" if full else "adamw",
            learning_rate=settings.learning_rate,
            weight_decay=3e-5 if full else 1e-4,
            warm_up=0 if full else min(10, settings.steps // 4),
            evaluations=settings.evaluations,
            mixed=settings.profile == "medium",
        )
        textures = open_textures(settings.textures, *pixels.shape[1:3], grey=is_grey(pixels))
        forger = MixForger(pixels, textures, least_change=settings.least_change)

        def draw(rng: np.random.Generator) -> Batch:
            indices = rng.integers(0, len(pixels), recipe.batch)
            images, masks = pixels[indices], np.zeros((recipe.batch, *pixels.shape[1:3]), bool)
            for place in range(max(1, recipe.batch // 2)):
                images[place], masks[place] = forger(int(indices[place]), rng)
            return {"image": np.stack([jitter(one, rng) for one in images]), "mask": masks}

        sphere = Hypersphere(network.encoder.channels[-1], settings.margin) if settings.hypersphere else None

        def losses(batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
            mask = batch["mask"].float()[:, None]
            logits, auxiliary, nodes = network.logits(as_pixels(batch["image"]))
            target = shrink(mask, *logits.shape[2:])[:, 0]
            terms = {
                "focal": 0.4 * focal(logits, target, _GAMMA),
                "L1": 0.6 * (anomaly_probability(logits.float()) - target).abs().mean(),
                "auxiliary": 0.3 * (anomaly_probability(auxiliary.float()) - target).abs().mean(),
            }
            if sphere is not None:
                terms["hypersphere"] = settings.hypersphere * sphere(nodes, shrink(mask, *nodes.shape[2:])[:, 0])
            return terms

        fixed = ("encoder", "composition", "judgement")
        trained: list[nn.Module] = [child for name, child in network.named_children() if name not in fixed]
        return Stage("training", recipe, [*trained, *([] if sphere is None else [sphere])], draw, losses, sphere)
