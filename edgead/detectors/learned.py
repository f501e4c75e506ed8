"""What a learned detector is, and how it is fitted: hold out, train, select on probes, calibrate.

One fifth of the good images is held out. Probes planted on them (`edgead.probes`, another generator than any that
training sees) select the state to keep, and their own scores set the threshold; so the threshold comes from images
whose pixels taught nothing, though they had a say in which of a handful of states was kept.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from edgead.detectors import base
from edgead.detectors.networks.blocks import fold_batch_norm
from edgead.features.backbones import DEFAULT_BACKBONE, DEFAULT_TAPS, NO_BACKBONE, BackboneSpec, transformer
from edgead.metrics.metrics import image_auroc
from edgead.metrics.pixels import count_pixels, pixel_auroc
from edgead.probes import STRUCTURAL, plant
from edgead.runtime.decision.baseline import map_level
from edgead.runtime.errors import ConfigError, DataError
from edgead.runtime.progress import Progress
from edgead.training.checkpoints import Checkpoint
from edgead.training.recipes import Stage
from edgead.training.training import Device, train
from edgead.training.training_log import TrainingLog

HELD_OUT = 0.2  # of the good images (design section 7)
_LEAST_IMAGES = 4
_MOST_PROBED = 16  # held-out images that get probes, one of each structural kind
_BATCH = 8

Pixels = NDArray[np.uint8]


class LearnedSettings(base.Settings):
    """Settings that every learned detector has; None takes the profile's value.

    Attributes:
        profile: ``small`` trains on a CPU in minutes at 128 pixels, ``medium`` in up to an hour at 256, ``full`` is the
            paper's recipe (a GPU, hours on a CPU).
        steps: of the main stage.
        batch: images a step.
        learning_rate: at its highest.
        evaluations: how often the held-out probes are scored to select the state to keep.
        textures: folder of images (such as DTD) that forged defects take their texture from; None: procedural ones.
        device: where to train.
    """

    profile: Literal["small", "medium", "full"] = "small"
    steps: int | None = Field(default=None, ge=1)
    batch: int | None = Field(default=None, ge=1, le=1024)
    learning_rate: float | None = Field(default=None, gt=0.0)
    evaluations: int | None = Field(default=None, ge=1)
    textures: str | None = None
    device: Device = "auto"

    def stated(self) -> LearnedSettings:
        """Return the settings as a model states them, without the folders of this machine."""
        return self if self.textures is None else self.model_copy(update={"textures": Path(self.textures).name})


_Settings = TypeVar("_Settings", bound=LearnedSettings)


def fill(settings: _Settings, profiles: Mapping[str, Mapping[str, Any]]) -> _Settings:
    """Return settings where every None that the profile has a value for is filled, so that a model states them all."""
    values = profiles[settings.profile]
    missing = {name: value for name, value in values.items() if getattr(settings, name) is None}
    return settings.model_copy(update=missing)


class LearnedDetector(Protocol):
    """A method whose network is trained; ``learns`` marks it in the registry.

    A network takes pixels ``(N, 3, h, w)`` float32 from 0 to 255, RGB, at network size, and returns the image score
    ``(N,)`` and the map ``(N, gh, gw)``, float32, higher is more anomalous. It is made of what exports; its
    normalisations are `ConvNorm`'s, so that they fold away.
    """

    name: str
    settings: Any
    learns: bool

    def size(self) -> int:
        """Return the side in pixels of the network's input where nobody says another."""

    def backbone(self, spec: BackboneSpec) -> BackboneSpec:
        """Return the backbone that is in the network, given what was asked for; `NO_BACKBONE` where there is none."""

    def network(self, spec: BackboneSpec, size: tuple[int, int], *, load_weights: bool = True) -> nn.Module:
        """Return the network before training; without weights for a caller that loads a saved state over them."""

    def stages(self, network: Any, pixels: Pixels, seed: int) -> Sequence[Stage]:
        """Return how the network is trained on images ``(n, h, w, 3)`` uint8."""

    def complete(self, network: Any, pixels: Pixels, held_out: Pixels) -> None:
        """Set what is not learned by gradients (Gaussians, quantiles, stored codes) after the last stage."""

    def adopt(self, network: Any, tensors: Mapping[str, Tensor]) -> None:
        """Give what depends on the number of training images the shape that it has in saved ``tensors``."""


class LearnedBase:
    """What most learned detectors have in common; the rest of `LearnedDetector` is theirs."""

    name: str
    settings: Any
    learns = True

    def size(self) -> int:
        return 128 if self.settings.profile == "small" else 256

    def backbone(self, spec: BackboneSpec) -> BackboneSpec:
        return self.no_backbone(spec)

    def with_taps(self, spec: BackboneSpec, strides: Sequence[int]) -> BackboneSpec:
        """Return the backbone with the taps that the network needs; raises `ConfigError` for others."""
        if spec.name not in (DEFAULT_BACKBONE, NO_BACKBONE.name) and transformer(spec.name) is not None:
            raise ConfigError(
                f"detector '{self.name}' takes convolutional backbones only; choose one such as resnet18, or "
                "a detector that trains no network"
            )
        if spec.strides not in (DEFAULT_TAPS, tuple(strides)):
            asked = ",".join(map(str, spec.strides))
            raise ConfigError(f"detector '{self.name}' takes taps of its own choice; omit --taps {asked}")
        return BackboneSpec(spec.name, spec.weights, tuple(strides))

    def no_backbone(self, spec: BackboneSpec) -> BackboneSpec:
        """Return `NO_BACKBONE`; raises `ConfigError` where one was asked for."""
        if spec.name not in (DEFAULT_BACKBONE, NO_BACKBONE.name):
            raise ConfigError(
                f"detector '{self.name}' with profile={self.settings.profile} trains its own network and takes no "
                f"backbone; omit --backbone {spec.name}"
            )
        self.with_taps(spec, ())
        return NO_BACKBONE

    def complete(self, network: Any, pixels: Pixels, held_out: Pixels) -> None:
        """Nothing is left to do."""

    def adopt(self, network: Any, tensors: Mapping[str, Tensor]) -> None:
        """Nothing depends on the number of images."""


class LearnedModule(nn.Module):
    """``images (N, h, w, 3)`` uint8 RGB -> ``(score (N,), map (N, gh, gw))`` float32, of a trained network.

    Args:
        network: trained, or one to load a state into; it is folded here.
        size: ``(height, width)`` of its input.
    """

    def __init__(self, network: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        fold_batch_norm(network)
        self.network = network
        self.eval().requires_grad_(False)
        with torch.inference_mode():
            grid = self(torch.zeros(1, *size, 3, dtype=torch.uint8))[1].shape[1:]
        self.grid = (int(grid[0]), int(grid[1]))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        # Cast before Transpose: TensorRT's parser refuses a uint8 Transpose.
        score, anomaly_map = self.network(images.to(torch.float32).permute(0, 3, 1, 2))
        return score, anomaly_map


@dataclass(frozen=True, slots=True)
class LearnedFit:
    """A trained model.

    Attributes:
        module: folded, frozen, on the CPU.
        held_out: indices of the images that training did not see, ascending.
        normal_scores: ``(len(held_out),)``, theirs; normal_levels: the means of their maps.
        log: how the training went.
    """

    module: LearnedModule
    held_out: tuple[int, ...]
    normal_scores: NDArray[np.float64]
    normal_levels: NDArray[np.float64]
    log: TrainingLog


def hold_out(count: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the indices to train on and to hold out, ascending; raises `DataError` where there are too few."""
    if count < _LEAST_IMAGES:
        raise DataError(
            f"a learned detector needs at least {_LEAST_IMAGES} good images, two of them to set the threshold; "
            f"got {count}"
        )
    order = np.random.default_rng(seed).permutation(count)
    held = max(2, round(HELD_OUT * count))
    return np.sort(order[held:]), np.sort(order[:held])


# More than six parameters: what every fit takes, and what the network is made of.
def fit_learned(
    detector: LearnedDetector,
    images: base.TrainingImages,
    spec: BackboneSpec,
    size: tuple[int, int],
    *,
    seed: int,
    progress: Progress,
    checkpoint: Checkpoint | None = None,
) -> LearnedFit:
    """Train on four fifths of the normals, select on probes planted on the rest, and score the rest.

    The training images are held in memory, at network size.

    Args:
        spec: what `LearnedDetector.backbone` returned.
        checkpoint: see `edgead.training.training.train`.

    Raises:
        DataError: too few images, or a training that broke down.
    """
    pixels = np.concatenate(list(images.batches(_BATCH)))
    kept, held = hold_out(len(pixels), seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = detector.network(spec, size)
        stages = detector.stages(network, pixels[kept], seed)  # which may start helpers at random
    log = train(
        network,
        stages,
        seed=seed,
        judge=ProbeJudge(pixels[held], seed),
        device=detector.settings.device,
        checkpoint=checkpoint,
        progress=progress,
    )
    with torch.inference_mode():
        detector.complete(network, pixels[kept], pixels[held])
        module = LearnedModule(network, size)
        scores, levels = np.empty(len(held), np.float64), np.empty(len(held), np.float64)
        for place, index in enumerate(held):
            # One at a time, as everything that judges with torch does.
            score, grid = module(torch.from_numpy(pixels[index : index + 1]))
            scores[place], levels[place] = float(score), map_level(grid[0].numpy())
            progress("held-out scores", place + 1, len(held))
    return LearnedFit(module, tuple(int(index) for index in held), scores, levels, log)


def load_learned(
    detector: LearnedDetector, spec: BackboneSpec, size: tuple[int, int], tensors: Mapping[str, Tensor]
) -> LearnedModule:
    """Return the module of saved ``tensors``; raises what `load_state_dict` raises where they do not fit."""
    network = detector.network(spec, size, load_weights=False)
    detector.adopt(network, {name.removeprefix("network."): value for name, value in tensors.items()})
    module = LearnedModule(network, size)
    module.load_state_dict(dict(tensors))
    return module


class ProbeJudge:
    """Judges a network by probes planted on held-out normals: the mean of image and pixel AUROC.

    Args:
        held_out: ``(n, h, w, 3)`` uint8; the first 16 get one probe of each structural kind.
        seed: of the probes.
    """

    def __init__(self, held_out: Pixels, seed: int) -> None:
        painted, self._masks = [], []
        for number, image in enumerate(held_out[:_MOST_PROBED]):
            for kind in STRUCTURAL:
                try:
                    probe, mask = plant(image, kind, seed * 1000 + number)
                except DataError:
                    continue  # too uniform an image for this kind
                painted.append(probe)
                self._masks.append(mask)
        self._normals = len(held_out)
        self._images = np.concatenate([held_out, np.stack(painted)]) if painted else held_out

    def __call__(self, network: nn.Module) -> float:
        if not self._masks:
            return 0.0
        device = next(network.parameters()).device
        scores, maps = [], []
        for start in range(0, len(self._images), _BATCH):
            part = torch.from_numpy(self._images[start : start + _BATCH]).to(device)
            score, grid = network(part.to(torch.float32).permute(0, 3, 1, 2))
            scores.append(score.float().cpu().numpy())
            maps.append(grid.float().cpu().numpy())
        labels = np.arange(len(self._images)) >= self._normals
        by_image = image_auroc(np.concatenate(scores), labels, bootstrap=0).value
        grids = list(np.concatenate(maps))[self._normals :]
        by_pixel = pixel_auroc(count_pixels(grids, self._masks), bootstrap=0).value
        return 0.5 * (by_image + by_pixel)


def copy_module(module: nn.Module) -> nn.Module:
    """Return a frozen copy in eval mode, such as the teacher that a network must not drift away from."""
    return copy.deepcopy(module).eval().requires_grad_(False)
