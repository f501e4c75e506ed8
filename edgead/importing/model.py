"""What an anomalib model is made of, whichever file it came from, and what can be said of it before it is rebuilt."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from edgead.features.folding import Backbone
from edgead.runtime.errors import DataError

PATCHCORE, PADIM = "patchcore", "padim"
ONLY_TWO = "only PatchCore and PaDiM can be imported"

# anomalib's blur: sigma of 4 pixels of the network's input, cut off behind four of them.
_SIGMA = 4.0
_RADIUS = 16


@dataclass(frozen=True, slots=True)
class Preparation:
    """What anomalib does to an image before its network.

    Attributes:
        height, width: pixels it is resized to.
        crop: ``(height, width)`` of the centre that the network then gets; None: all of it.
        mean, std: ``(3,)`` each, of pixels between 0 and 1.
    """

    height: int
    width: int
    crop: tuple[int, int] | None
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    @property
    def inner(self) -> tuple[int, int]:
        """Height and width of what the network gets."""
        return self.crop or (self.height, self.width)

    @property
    def corner(self) -> tuple[int, int]:
        """Top and left of the crop, rounded as torchvision does (half to even)."""
        return round((self.height - self.inner[0]) / 2.0), round((self.width - self.inner[1]) / 2.0)


@dataclass(frozen=True, slots=True)
class Decision:
    """How anomalib decides on a raw score: it is normalised about a threshold, and then compared.

    Attributes:
        threshold: of the raw score, the one of the best F1 on its validation images; NaN where there were none.
        spread: the raw scores of those images, largest minus smallest.
        sensitivity: 0.5 compares with the threshold itself; more finds more.
        normalised: False compares the raw score with ``1 - sensitivity``, as anomalib does.
    """

    threshold: float
    spread: float
    sensitivity: float = 0.5
    normalised: bool = True

    @property
    def value(self) -> float | None:
        """The raw score above which anomalib says anomalous; None where it says nothing."""
        # (score - threshold) / spread + 0.5 > 1 - sensitivity
        found = self.threshold + (0.5 - self.sensitivity) * self.spread if self.normalised else 1.0 - self.sensitivity
        return found if math.isfinite(found) else None

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as anomalib calls them, ready for JSON."""
        numbers = {"image_threshold": self.threshold, "image_max_minus_min": self.spread}
        found: dict[str, Any] = {name: one if math.isfinite(one) else None for name, one in numbers.items()}
        return found | {"image_sensitivity": self.sensitivity, "enable_normalization": self.normalised}


@dataclass(frozen=True, slots=True)
class AnomalibModel:
    """A fitted PatchCore or PaDiM of anomalib.

    Attributes:
        kind: `PATCHCORE` or `PADIM`.
        preparation: of images.
        backbone: network of the crop's size, folded, with a tap for each of anomalib's layers, finest first.
        backbone_name, layers: as anomalib calls them; "" and () where the file does not say.
        tensors: float32; ``memory_bank (M, C)``, or ``mean (d, P)``, ``inv_covariance (P, d, d)`` and ``idx (d,)``
            int64, the channels of the Gaussians.
        neighbours: of PatchCore, how many bank rows weigh the image score; 1 for no weight.
        blur: ``(k,)`` float64, the line whose outer product blurs the map.
        decision: how it decided.
        about: what else is known of it, ready for JSON.
    """

    kind: str
    preparation: Preparation
    backbone: Backbone
    backbone_name: str
    layers: tuple[str, ...]
    tensors: Mapping[str, Tensor]
    neighbours: int
    blur: Tensor
    decision: Decision
    about: Mapping[str, Any] = field(default_factory=dict)


def blur_line(kernel: Tensor | None) -> Tensor:
    """Return the line ``(k,)`` float64 whose outer product is the blur ``(1, 1, k, k)``; anomalib's own for None.

    Raises:
        DataError: the kernel is no such product.
    """
    if kernel is None:
        offsets = torch.arange(-_RADIUS, _RADIUS + 1, dtype=torch.float64)
        line = torch.exp(-0.5 * (offsets / _SIGMA) ** 2)
        return line / line.sum()
    square = kernel.double().flatten(0, -2)
    line = square.sum(1)
    fits = square.shape[0] == square.shape[1] and len(line) % 2 == 1
    rounding = (1e-3 if kernel.dtype == torch.float16 else 1e-6) * float(square.abs().max())
    if not fits or not torch.allclose(torch.outer(line, line), square, rtol=0.0, atol=rounding):
        raise DataError("the blur of this model is not anomalib's; " + ONLY_TWO + ", as anomalib fits them")
    return line
